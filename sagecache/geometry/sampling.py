"""Maps read at points, and whole maps carried to another view.

Convention: map pixels, (x, y), centres at integers, so a point at a pixel's centre reads that pixel
(align_corners=True); outside the map everything is zero; float32 with autocast off. Losses read cached
targets at points and never warp them (see docs: one frame for geometry); the dense warps of depth, normals
and masks serve pictures and heads that predict such maps in the view's frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sagecache.geometry.affine import Size, invert_affine
from sagecache.geometry.precision import full_precision


@full_precision
def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (B, C, H, W) at points (B, N, 2) in map pixels -> (B, N, C).

    Differentiable in maps and points. Outside the map values fall to zero over one pixel; use `inside` to
    tell such points from true zeros.
    """
    grid = unit_from_pixel(points, maps).unsqueeze(2)  # (B, N, 1, 2)
    maps = maps.to(points.dtype)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return sampled.squeeze(-1).transpose(1, 2)


@full_precision
def inside(points: Tensor, size: Size) -> Tensor:
    """True where points (..., 2) lie between the outer pixel centres of a map of size (width, height)."""
    x, y = points.unbind(-1)
    width, height = size
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


@full_precision
def warp_heatmaps(heatmaps: Tensor, student_from_teacher: Tensor) -> Tensor:
    """Resample teacher heatmaps in the student's view.

    heatmaps (B, K, H, W) >= 0; student_from_teacher (B, 3, 3), affine, heatmap pixels.
    Returns (B, K, H, W), zero where the teacher's view does not reach: padding with the border would invent
    joints outside the view. Channels are not exchanged (`affine.swap_mirrored`), and the maps no longer sum
    to one: see `heatmap.in_view_mass`.
    """
    return _resample(heatmaps, student_from_teacher)


@full_precision
def warp_mask(mask: Tensor, view_from_map: Tensor, size: Size | None = None) -> Tensor:
    """Carry a mask (B, 1, H, W) to a view: true where at least half of what is read is true. Bool.

    view_from_map (B, 3, 3) in pixels of the two grids; size (width, height) of the view, the map's own by
    default.
    """
    return _resample(mask.to(view_from_map.dtype), view_from_map, size) >= 0.5


@full_precision
def warp_depth(
    depth: Tensor, mask: Tensor, view_from_map: Tensor, size: Size | None = None
) -> tuple[Tensor, Tensor]:
    """Carry depth (B, 1, H, W) to a view; its values do not change under any image-plane map.

    Only pixels of mask (B, 1, H, W) take part: the background's values, often zero, must not bleed in, so
    value times mask and mask are resampled separately and divided.
    Returns depth (zero outside) and mask in the view, (B, 1, h, w) each.
    """
    coverage = _resample(mask.to(depth.dtype), view_from_map, size)
    total = _resample(torch.where(mask.bool(), depth, 0), view_from_map, size)
    valid = coverage >= 0.5
    return torch.where(valid, total / coverage.clamp_min(0.5), 0), valid


@full_precision
def warp_normals(
    normals: Tensor, mask: Tensor, view_from_map: Tensor, size: Size | None = None
) -> tuple[Tensor, Tensor]:
    """Carry unit normals (B, 3, H, W) to a view, turning and mirroring them with the picture.

    A turn by phi turns (n_x, n_y) by phi, a mirror negates n_x, and neither touches n_z; crops and zooms
    change nothing. A map that also shears or stretches contributes its nearest rotation or reflection:
    the surface itself was not stretched. Masked as in `warp_depth`, then brought back to length one.
    Returns normals (zero outside) and mask in the view, (B, 3, h, w) and (B, 1, h, w).
    """
    valid = warp_mask(mask, view_from_map, size)
    total = _resample(torch.where(mask.bool(), normals, 0), view_from_map, size)
    turn = _nearest_orthogonal(view_from_map).to(total.dtype)  # (B, 2, 2)
    in_plane = (turn[:, :, :, None, None] * total[:, None, :2]).sum(2)
    turned = torch.cat([in_plane, total[:, 2:]], 1)
    return torch.where(valid, F.normalize(turned, dim=1), 0), valid


def _resample(maps: Tensor, to_from: Tensor, size: Size | None = None) -> Tensor:
    """Bilinear maps (B, C, H, W) on the grid of another frame, zeros outside."""
    grid = _grid(maps, invert_affine(to_from), size or (maps.shape[-1], maps.shape[-2]))
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _grid(maps: Tensor, from_to: Tensor, size: Size) -> Tensor:
    """Where the pixels of a view of this size read maps: (B, height, width, 2), unit of grid_sample.

    A column's part plus a row's: one addition a pixel, where moving each point by the matrix took as long as
    sampling 17 maps. F.affine_grid's matrix product may run in TF32.
    """
    width, height = size
    x = torch.arange(width, device=maps.device, dtype=maps.dtype)
    y = torch.arange(height, device=maps.device, dtype=maps.dtype)
    map_height, map_width = maps.shape[-2:]
    row_x, row_y = from_to[:, :2].to(maps.dtype).unbind(1)  # (B, 3) each
    unit = torch.stack([row_x * (2 / max(map_width - 1, 1)), row_y * (2 / max(map_height - 1, 1))], 1)
    columns = unit[..., :1] * x  # (B, 2, w)
    rows = unit[..., 1:2] * y + (unit[..., 2:] - 1)  # (B, 2, h)
    return (columns.unsqueeze(-2) + rows.unsqueeze(-1)).movedim(1, -1)


def unit_from_pixel(points: Tensor, maps: Tensor) -> Tensor:
    """Pixels of maps (..., H, W) to the [-1, 1] of grid_sample with align_corners=True."""
    height, width = maps.shape[-2:]
    x, y = points.unbind(-1)
    return torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1)


def _nearest_orthogonal(matrix: Tensor) -> Tensor:
    """Nearest rotation or reflection (B, 2, 2) to the linear part of (B, 3, 3): its polar factor.

    For 2x2 the polar factor is A + sign(det A) cof(A), scaled to unit columns.
    """
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    sign = torch.where(a * d - b * c < 0, -1.0, 1.0).to(matrix.dtype)
    rows = torch.stack([a + sign * d, b - sign * c, c - sign * b, d + sign * a], -1).unflatten(-1, (2, 2))
    return rows / rows[..., 0, :].norm(dim=-1)[..., None, None]
