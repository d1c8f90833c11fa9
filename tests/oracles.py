"""Slow reference implementations: plain loops over numbers, to judge the vectorised code by.

Written from the definitions, with nothing imported from the package.
"""

import math

import numpy as np


def bilinear(image: np.ndarray, x: float, y: float) -> float:
    """Value of image (H, W) at (x, y), pixel centres at integers, zero outside."""
    height, width = image.shape
    left, top = math.floor(x), math.floor(y)
    total = 0.0
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            total += image[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def warp(image: np.ndarray, to_from: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Image (H, W) carried to a frame of size (width, height) by the 3x3 matrix to_from."""
    from_to = np.linalg.inv(to_from)
    out = np.zeros((size[1], size[0]))
    for row in range(size[1]):
        for column in range(size[0]):
            x, y, _ = from_to @ [column, row, 1]
            out[row, column] = bilinear(image, x, y)
    return out


def window_centroid(image: np.ndarray, radius: int) -> tuple[float, float]:
    """Centre of mass of the square window about the largest pixel; pixels outside the image count as zero."""
    height, width = image.shape
    peak_y, peak_x = np.unravel_index(np.argmax(image), image.shape)
    total = sum_x = sum_y = 0.0
    for row in range(max(0, peak_y - radius), min(height, peak_y + radius + 1)):
        for column in range(max(0, peak_x - radius), min(width, peak_x + radius + 1)):
            total += image[row, column]
            sum_x += image[row, column] * column
            sum_y += image[row, column] * row
    return sum_x / total, sum_y / total


def gaussian(x: float, y: float, size: tuple[int, int], sigma: float) -> np.ndarray:
    """exp(-r^2 / (2 sigma^2)) on a grid of size (width, height): peak 1, not normalised."""
    out = np.zeros((size[1], size[0]))
    for row in range(size[1]):
        for column in range(size[0]):
            out[row, column] = math.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * sigma**2))
    return out


def weighted_median(values, weights) -> float:
    """First value, in ascending order, at which the running weight reaches half of the total."""
    running, half = 0.0, sum(weights) / 2
    for value, weight in sorted(zip(values, weights, strict=True)):
        running += weight
        if running >= half:
            return value
    raise ValueError("no values")


def limb_ratio_losses(keypoints, z, edges, centre, spread, kept, slack, delta) -> list[float]:
    """Huber loss of each limb's log length ratio beyond slack * spread, for one body; kept flags limbs."""
    ratios = []
    for (i, j), middle in zip(edges, centre, strict=True):
        (ax, ay), (bx, by) = keypoints[i], keypoints[j]
        squared = (ax - bx) ** 2 + (ay - by) ** 2 + (z[i] - z[j]) ** 2 + 1
        ratios.append(0.5 * math.log(squared) - middle)
    counted = [ratio for ratio, keep in zip(ratios, kept, strict=True) if keep]
    mean = sum(counted) / len(counted)
    losses = []
    for ratio, width in zip(ratios, spread, strict=True):
        excess = max(0.0, abs(ratio - mean) - slack * width)
        losses.append(excess**2 / 2 if excess <= delta else delta * (excess - delta / 2))
    return losses
