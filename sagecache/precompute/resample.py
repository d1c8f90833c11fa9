"""Maps of a whole image -> maps of one instance's target crop, from valid pixels alone.

Knows arrays and one affine; no files, no teachers. Crops are upright, so that the two axes are resampled one
after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_matrix

COVERED = 0.5  # a target pixel is on the instance where more of it than this is
_SHORTEST = 1e-3  # of a mean normal: what it averages points in all directions


def cut_maps(
    maps: Mapping[str, np.ndarray],
    valid: np.ndarray,
    target_from_image: np.ndarray,
    size: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Resample maps where valid is true; each target pixel is a mean of valid pixels only.

    maps: 'depth' (1, H, W), 'normal' (3, H, W), finite where valid (H, W) bool; target_from_image (3, 3):
    scales and shift, no rotation. size: (width, height) of the target maps. Returns the same with
    'mask' (1, h, w) float32, 1 where more than half of a pixel's weight lies on valid pixels; normals have
    unit length there. Off the mask values are 0. Where all pixels under the kernel are valid, values that are
    linear in x and y come out exact.
    """
    if target_from_image[0, 1] or target_from_image[1, 0]:
        raise ValueError("a target crop is upright; this affine turns or shears")
    across = axis_weights(size[0], valid.shape[1], target_from_image[0, 0], target_from_image[0, 2])
    down = axis_weights(size[1], valid.shape[0], target_from_image[1, 1], target_from_image[1, 2])
    columns, rows = _touched(across), _touched(down)
    seen = valid[rows, columns]
    names = list(maps)
    stack = np.concatenate([seen[None], *(np.where(seen, maps[name][:, rows, columns], 0) for name in names)])
    cut = _apply(down[:, rows], _apply(across[:, columns], stack.astype(np.float64), 2), 1)  # (C, h, w)
    coverage, values = cut[0], cut[1:]
    inside = coverage > COVERED
    values = np.divide(values, coverage, out=np.zeros_like(values), where=inside)
    channels = np.cumsum([len(maps[name]) for name in names])[:-1]
    found = dict(zip(names, np.split(values, channels), strict=True))
    if "normal" in found:
        length = np.linalg.norm(found["normal"], axis=0)
        inside &= length > _SHORTEST
        found["normal"] = np.divide(found["normal"], length, out=np.zeros_like(found["normal"]), where=inside)
    found = {name: np.where(inside, value, 0).astype(np.float32) for name, value in found.items()}
    return {**found, "mask": inside[None].astype(np.float32)}


def axis_weights(count: int, length: int, scale: float, shift: float) -> csr_matrix:
    """(count, length) weights along one axis: target pixel i sees x = (i - shift) / scale.

    Linear interpolation, averaged where the target shrinks the image over 1 / scale - 1 pixels, so that every
    pixel counts and nothing aliases. A row sums to 1, less what it would give to pixels outside the image.
    """
    centres = (np.arange(count) - shift) / scale
    half = max(0.0, 1 / scale - 1) / 2
    reach = int(np.ceil(half)) + 1
    columns = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)
    distance = centres[:, None] - columns
    if half > 0:
        weights = (_hat_integral(distance + half) - _hat_integral(distance - half)) / (2 * half)
    else:
        weights = np.maximum(0, 1 - np.abs(distance))
    inside = (columns >= 0) & (columns < length) & (weights > 0)
    rows = np.broadcast_to(np.arange(count)[:, None], columns.shape)
    return csr_matrix((weights[inside], (rows[inside], columns[inside])), shape=(count, length))


def _hat_integral(t: np.ndarray) -> np.ndarray:
    """Integral of max(0, 1 - |x|) from -infinity to t."""
    t = np.clip(t, -1, 1)
    return np.where(t < 0, (t + 1) ** 2 / 2, 1 - (1 - t) ** 2 / 2)


def _touched(weights: csr_matrix) -> slice:
    """The columns from the first to the last that have a weight."""
    used = weights.indices
    return slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 0)


def _apply(weights: csr_matrix, stack: np.ndarray, axis: int) -> np.ndarray:
    """weights along one axis of stack."""
    moved = np.moveaxis(stack, axis, 0)
    flat = weights @ moved.reshape(len(moved), math.prod(moved.shape[1:]))  # either may be 0
    return np.moveaxis(flat.reshape(weights.shape[0], *moved.shape[1:]), 0, axis)
