"""Heatmaps as probabilities, and positions read from them or drawn into them.

Convention: heatmap pixels, (x, y), centres at integers; maps (B, K, H, W); float32 with autocast off.
A head's raw output becomes a probability in one place (`probability`), so that thresholds, fusion,
consistency and decoding mean the same thing for every codec. Knows no views and no training.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sagecache.geometry.affine import linear_scale
from sagecache.geometry.precision import full_precision

Kind = Literal["logits", "heatmap"]

# Half the side of the window in which a joint's position is read, in sigmas: wide enough to hold the peak,
# narrow enough to leave a second mode out. At least 2 cells: 5x5 up to sigma 2, 17x17 for Sapiens' sigma 6.
WINDOW_SIGMAS = 1.25
# Added to a rectified heatmap: an empty map becomes uniform (confidence about 2 pi sigma^2 / HW) instead of
# 0/0, and the slope of its logarithm stays below 1 / HEATMAP_FLOOR.
HEATMAP_FLOOR = 1e-6
# A drawn joint whose Gaussian keeps less than this share inside the map loses target mass with it.
FADE_BELOW = 0.3
# A warped map that lost more than half of its mass (`in_view_mass`) says little about where the joint is.
MIN_IN_VIEW = 0.5


@full_precision
def probability(heatmaps: Tensor, kind: Kind) -> Tensor:
    """Turn a head's output (B, K, H, W) into maps that sum to one.

    'logits': softmax over space (heads trained by cross-entropy). 'heatmap': rectify and divide by the
    sum (heads trained by MSE to a Gaussian of peak 1). A softmax of such raw values would be almost flat:
    its soft-argmax of a perfect peak at (10, 50) on 48x64 is (23.4, 31.7).
    Raises ValueError for another kind.
    """
    flat = heatmaps.flatten(2)
    if kind == "logits":
        return flat.softmax(-1).view_as(heatmaps)
    return _normalised(flat, kind).view_as(heatmaps)


@full_precision
def log_probability(heatmaps: Tensor, kind: Kind) -> Tensor:
    """Logarithm of `probability`, without the underflow of taking log afterwards. (B, K, H, W), <= 0.

    A 'heatmap' has no gradient where it is negative, and a steep one (up to 1 / HEATMAP_FLOOR) just above
    zero: distances between logarithms suit 'logits', MSE suits 'heatmap'.
    """
    flat = heatmaps.flatten(2)
    if kind == "logits":
        return flat.log_softmax(-1).view_as(heatmaps)
    return _normalised(flat, kind).log().view_as(heatmaps)


def _normalised(flat: Tensor, kind: str) -> Tensor:
    if kind != "heatmap":
        raise ValueError(f"kind is 'logits' or 'heatmap', got {kind!r}")
    positive = flat.relu() + HEATMAP_FLOOR
    return positive / positive.sum(-1, keepdim=True)


@full_precision
def decode(prob: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Read joints and confidences from probability maps (B, K, H, W); no gradient is meant to pass.

    The position is that of `soft_argmax`. The confidence is the peak in units of the peak of a perfect map,
    min(1, 2 pi sigma^2 max p): comparable between sigmas, while max p of a perfect map is .04 at sigma 2.

    sigma in heatmap pixels. Returns keypoints (B, K, 2) in heatmap pixels and confidence (B, K) in [0, 1].
    """
    keypoints, values = _read(prob, sigma)
    return keypoints, (values.amax(-1) * (2 * math.pi * sigma**2)).clamp(max=1)


@full_precision
def soft_argmax(prob: Tensor, sigma: float) -> Tensor:
    """Differentiable position: the centroid of a square window about the (detached) peak, widened.

    Local, because the mean of a whole map lies between two modes, where no joint is. The window shortens
    the offset of a Gaussian of this sigma by a known factor (otherwise .11 px off at sigma 1.25 and .29 px
    at sigma 2), by which the centroid's offset is divided. Values outside the map count as zero.

    prob (B, K, H, W), sigma in heatmap pixels. Returns (B, K, 2) in heatmap pixels.
    """
    return _read(prob, sigma)[0]


def _read(prob: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Positions (B, K, 2), and the values (B, K, n) of the windows in which they were read."""
    radius = max(2, round(WINDOW_SIGMAS * sigma))
    peak, values, mean_offset = _window_centroid(prob, radius)
    return peak + mean_offset / _window_shrink(radius, sigma), values


def _window_centroid(prob: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Peak position (B, K, 2), values of the window about it (B, K, n), and their mean offset (B, K, 2)."""
    height, width = prob.shape[-2:]
    flat = prob.flatten(2)
    index = flat.detach().argmax(-1, keepdim=True)
    peak_x, peak_y = index % width, index // width
    step = torch.arange(-radius, radius + 1, device=prob.device)
    offset_y, offset_x = (grid.flatten() for grid in torch.meshgrid(step, step, indexing="ij"))  # (n,) each
    x, y = peak_x + offset_x, peak_y + offset_y
    # masked rather than padded: a padded copy of all maps costs more than finding their peaks
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    values = torch.where(within, flat.gather(2, torch.where(within, y * width + x, index)), 0)
    total = values.sum(-1, keepdim=True).clamp_min(torch.finfo(prob.dtype).tiny)
    offsets = torch.stack([offset_x, offset_y], -1).to(prob.dtype)  # (n, 2)
    mean_offset = (values.unsqueeze(-1) * offsets).sum(-2) / total
    return torch.cat([peak_x, peak_y], -1).to(prob.dtype), values, mean_offset


def _window_shrink(radius: int, sigma: float) -> float:
    """d(centroid in the window)/d(centre of the Gaussian) at offset 0: its variance there over sigma^2."""
    offsets = range(-radius, radius + 1)
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in offsets]
    variance = sum(w * offset**2 for w, offset in zip(weights, offsets, strict=True)) / sum(weights)
    return variance / sigma**2


@full_precision
def gaussian(keypoints: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Draw joints as probability maps.

    A joint in view sums to one. Once less than FADE_BELOW of its Gaussian lies inside the map, the divisor
    stops shrinking and the mass fades to zero: a joint far outside gives no target, not a bright border.

    keypoints (B, K, 2) and sigma in heatmap pixels; size (width, height). Returns (B, K, H, W).
    """
    width, height = size
    x = torch.arange(width, device=keypoints.device, dtype=keypoints.dtype)
    y = torch.arange(height, device=keypoints.device, dtype=keypoints.dtype)
    along_x = torch.exp(-((x - keypoints[..., :1]) ** 2) / (2 * sigma**2))  # (B, K, W)
    along_y = torch.exp(-((y - keypoints[..., 1:]) ** 2) / (2 * sigma**2))  # (B, K, H)
    inside = along_x.sum(-1) * along_y.sum(-1)
    scale = 1 / inside.clamp_min(FADE_BELOW * 2 * math.pi * sigma**2)
    return (along_y * scale.unsqueeze(-1)).unsqueeze(-1) * along_x.unsqueeze(-2)


@full_precision
def in_view_mass(warped: Tensor, student_from_teacher: Tensor) -> Tensor:
    """Share of each map's mass that is still in view after `sampling.warp_heatmaps`, before renormalising.

    Sampling p(B^-1 x) multiplies the area of a blob by |det B|, so the share is the sum over |det B|.
    warped (B, K, H, W), student_from_teacher (B, 3, 3) in heatmap pixels. Returns (B, K) in [0, 1].
    """
    area = linear_scale(student_from_teacher).square().to(warped.dtype)
    return (warped.sum((-2, -1)) / area.unsqueeze(-1)).clamp(max=1)
