"""THE pixel convention, and the affine maps between image, crop, view, heatmap and target map.

Convention: (x, y) with pixel centres at integers, y down; sizes are (width, height); mirroring is
x' = W - 1 - x (mmpose's convention, `mmpose/structures/keypoint/transforms.py`). Matrices are 3x3,
affine, with the last row (0, 0, 1), and named target first, so that products read by cancelling:
``view_from_image = view_from_crop @ crop_from_image``.

The first half is numpy float64 (data pipeline, one instance at a time); the second half is torch
(batches on the device, float32, differentiable, nothing that makes the host wait for the device).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sagecache.geometry.precision import full_precision

Size = tuple[int, int]


# --- numpy: one matrix at a time ---------------------------------------------------------------


def crop_affine(bbox: Sequence[float], size: Size, padding: float = 1.25) -> np.ndarray:
    """crop_from_image of a box, by the rule of mmpose's GetBBoxCenterScale + TopdownAffine(use_udp=True).

    The box grows about its centre to the aspect ratio of size, then by padding; the edges of the grown
    box land on the pixel centres 0 and W - 1 (UDP, arXiv 1911.07524). The two scales differ by the ratio
    of (W - 1) / W to (H - 1) / H: .3 % for a crop of 96x128.

    bbox (x, y, w, h) in image pixels; size (width, height) of the crop; padding > 0.
    Returns (3, 3) float64. Raises ValueError for an empty box, a size below 2 or padding <= 0.
    """
    x, y, box_width, box_height = (float(value) for value in bbox)
    width, height = size
    if not (box_width > 0 and box_height > 0 and math.isfinite(x + y + box_width + box_height)):
        raise ValueError(f"a box needs finite corners and a positive width and height, got {tuple(bbox)}")
    if width < 2 or height < 2 or padding <= 0:
        raise ValueError(f"a crop needs at least 2x2 pixels and padding > 0, got {size} and {padding}")
    aspect = width / height
    grown_width = padding * max(box_width, box_height * aspect)
    grown_height = grown_width / aspect
    scale_x, scale_y = (width - 1) / grown_width, (height - 1) / grown_height
    left, top = x + (box_width - grown_width) / 2, y + (box_height - grown_height) / 2
    return np.array([[scale_x, 0.0, -scale_x * left], [0.0, scale_y, -scale_y * top], [0.0, 0.0, 1.0]])


def augment_affine(
    size: Size,
    rotation: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> np.ndarray:
    """view_from_crop of a random view: mirror, then turn and zoom about the centre, then shift.

    size (width, height) of crop and view; rotation in degrees, positive from +x to +y (clockwise on the
    screen); scale > 1 enlarges the content; shift (x, y) in fractions of width and height.
    Returns (3, 3) float64: a similarity, with negative determinant when flip is set.
    """
    width, height = size
    angle = math.radians(rotation)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = centre + np.array([shift[0] * width, shift[1] * height]) - linear @ centre
    return matrix


def resize_affine(from_size: Size, to_size: Size) -> np.ndarray:
    """Pixel areas kept (align_corners=False, cv2.resize): x' = (x + .5) w' / w - .5.

    For maps that a network predicts at another resolution than its input. Returns (3, 3) float64.
    """
    ratio = np.array(to_size, dtype=float) / np.array(from_size, dtype=float)
    matrix = np.diag([*ratio, 1.0])
    matrix[:2, 2] = ratio / 2 - 0.5
    return matrix


def heatmap_affine(input_size: Size, heatmap_size: Size) -> np.ndarray:
    """heatmap_from_input under UDP (align_corners=True): x' = x (w' - 1) / (w - 1). (3, 3) float64."""
    ratio = (np.array(heatmap_size, dtype=float) - 1) / (np.array(input_size, dtype=float) - 1)
    return np.diag([*ratio, 1.0])


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Move points (..., 2) by matrix (3, 3): numpy's counterpart of transform_points."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


# --- torch: batches ----------------------------------------------------------------------------


@full_precision
def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Move points by affine matrices: to_from (..., 3, 3), points (..., N, 2) in `from` pixels.

    Leading dimensions broadcast: one (3, 3) serves a batch. Written out rather than as a matrix product:
    with TF32 allowed a GPU keeps 10 bits of the mantissa, a tenth of a pixel at x = 200.
    """
    matrix = matrix.to(points.dtype).unsqueeze(-3)  # (..., 1, 3, 3)
    return (matrix[..., :2, :2] * points.unsqueeze(-2)).sum(-1) + matrix[..., :2, 2]


@full_precision
def compose(*matrices: Tensor) -> Tensor:
    """Product of affine matrices (..., 3, 3) from left to right, exact in float32 (no TF32, see above)."""
    product = matrices[0]
    for matrix in matrices[1:]:
        product = (product.unsqueeze(-1) * matrix.unsqueeze(-3)).sum(-2)
    return product


@full_precision
def invert_affine(matrix: Tensor) -> Tensor:
    """Closed-form inverse of (..., 3, 3) with last row (0, 0, 1).

    torch.linalg.inv would check for singular input, which makes the host wait for the device. A singular
    matrix gives inf or nan here.
    """
    a, b, x = matrix[..., 0, :].unbind(-1)
    c, d, y = matrix[..., 1, :].unbind(-1)
    determinant = a * d - b * c
    rows = (d, -b, b * y - d * x, -c, a, c * x - a * y)
    top = torch.stack(rows, -1).unflatten(-1, (2, 3)) / determinant[..., None, None]
    return torch.cat([top, matrix[..., 2:, :]], -2)


def linear_scale(matrix: Tensor) -> Tensor:
    """sqrt |det| of the linear part of (..., 3, 3): by how much lengths grow on average. Shape (...)."""
    return _determinant(matrix).abs().sqrt()


def is_mirrored(matrix: Tensor) -> Tensor:
    """True where (..., 3, 3) turns left into right (negative determinant). Shape (...), bool."""
    return _determinant(matrix) < 0


def swap_mirrored(values: Tensor, mirrored: Tensor, flip_indices: Tensor | Sequence[int]) -> Tensor:
    """Exchange left and right joints of the samples that are mirrored; an involution.

    values (B, K, ...), mirrored (B,) bool, flip_indices (K,): the joint that takes the place of each.
    """
    index = torch.as_tensor(flip_indices, device=values.device)
    where = mirrored.view(-1, *[1] * (values.ndim - 1))
    return torch.where(where, values.index_select(1, index), values)


@full_precision
def _determinant(matrix: Tensor) -> Tensor:
    return matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
