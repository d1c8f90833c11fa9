"""Smooth changes of a view that no matrix can write: lens, tilted plane, bent plane. One form for all.

A distortion is a pair of displacement lattices, plain view -> distorted view (`forward`) and back
(`inverse`). The nodes of a lattice (n, n, 2) lie on a regular square grid over [-MARGIN, 1 + MARGIN] of the
view, row by row; their displacements (dx, dy) are in units of the view's (width - 1, height - 1). So one
lattice serves the view, its heatmap and every other grid whose corner pixels coincide with the view's (UDP,
align_corners=True). Between nodes displacements are read by cubic convolution (Keys 1981, a = -1/2): at the
same 49 nodes bilinear reading lets a point miss its place by .08 to .4 px there and back, cubic by less than
.02. Beyond the lattice displacements stay as at its edge.

The first half is numpy float64 (data pipeline, one view at a time), the second half torch (batches on the
device, float32, differentiable, nothing that makes the host wait for the device).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sagecache.geometry.affine import Size, invert_affine, linear_scale, transform_points
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import unit_from_pixel

NODES = 49
MARGIN = 0.25
IN_VIEW = slice(8, 41)  # rows or columns of nodes from one edge of the view to the other
PER_UNIT = (NODES - 1) / (1 + 2 * MARGIN)
# Curvature of a thin plate is infinite at its control points; averaged over this standard deviation (lattice
# units) the plate misses them by a tenth of their moves, and the lattice can follow it.
PLATE_ROUNDING = 1 / 24
CONTROL = 4  # control points of a plate along each side of the view
# Control points that move by less along each axis can't fold the plate: the slopes of its displacement are at
# most 18 times as large. There and back a point misses its place by .02 px at moves up to .03, at .05 by .03
# px (.2 px where neighbours all move against each other).
MAX_BEND = 0.05
NEWTON_STEPS, MAX_STEPS = 10, 200
INVERSE_TOLERANCE = 5e-6  # lattice units: a thousandth of a pixel
# From the camera to the plane that `tilt` turns, in longer sides of the view: a person filling the picture of
# a normal lens.
CAMERA_DISTANCE = 1.5


# --- numpy: one view at a time -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Distortion:
    """forward (n, n, 2): plain -> distorted view; inverse (n, n, 2): distorted -> plain. float64.

    Raises ValueError when either folds the view: where the Jacobian determinant is not positive two places
    of the plain view fall on one of the distorted view, or a place turns into its mirror image.
    """

    forward: np.ndarray
    inverse: np.ndarray

    def __post_init__(self) -> None:
        _refuse_folds(self.forward)
        _refuse_folds(self.inverse)

    def reversed(self) -> Distortion:
        """What undoes this distortion."""
        return Distortion(self.inverse, self.forward)


def radial(k1: float, k2: float, size: Size) -> Distortion:
    """A lens: points move along the ray from the view's centre.

    Outward for k1 > 0 (pincushion): r' = r (1 + k1 r^2 + k2 r^4) / (1 + k1 / 3 + k2 / 9), r = 1 at the
    view's corners (Brown 1966, equation of the radial terms). The divisor keeps points at the view's
    root-mean-square radius, 1/sqrt(3), where they are: content stays of similar size. Inward for k1 < 0
    (barrel, fisheye): exactly the inverse of radial(-k1, -k2), as lenses are undistorted; the polynomial
    itself would turn back within the picture.

    size (width, height). Raises ValueError when k1 and k2 have opposite signs.
    """
    if k1 * k2 < 0:
        raise ValueError(f"k1 and k2 must have one sign or the picture may fold, got {k1} and {k2}")
    if k1 + k2 < 0:
        return radial(-k1, -k2, size).reversed()
    offset = _grid() - 0.5
    extent = np.array(size, dtype=float) - 1
    squared = ((offset * extent) ** 2).sum(-1, keepdims=True) / (extent @ extent / 4)
    divisor = 1 + k1 / 3 + k2 / 9
    outward = (1 + squared * (k1 + squared * k2)) / divisor
    target = np.sqrt(squared) * divisor
    radius = target.copy()
    for _ in range(12):  # Newton's steps come nearer from above: the polynomial is convex and grows
        square = radius * radius
        value = radius * (1 + square * (k1 + square * k2)) - target
        radius -= value / (1 + square * (3 * k1 + square * 5 * k2))
    square = radius * radius
    inward = divisor / (1 + square * (k1 + square * k2))
    return Distortion((outward - 1) * offset, (inward - 1) * offset)


def tilt(horizontal: float, vertical: float, size: Size) -> Distortion:
    """The view as a plane turned in front of a pinhole camera, about its own centre, which stays.

    The turn is about one axis in the picture's plane (Rodrigues): by |horizontal| degrees alone the right
    side (> 0) or the left side (< 0) comes nearer, by |vertical| alone the lower or upper one; together by
    hypot(horizontal, vertical). The camera is CAMERA_DISTANCE longer sides away, and zooms until areas at the
    centre are what they were.

    size (width, height). Raises ValueError when the plane is turned beyond its horizon.
    """
    turn = cv2.Rodrigues(np.radians([-vertical, horizontal, 0.0]))[0]
    distance = CAMERA_DISTANCE * (max(size) - 1)
    # a point (x, y, 0) of the plane goes to R (x, y, 0), and is seen at distance (X, Y) / (distance + Z)
    homography = np.column_stack([turn[:, 0], turn[:, 1], (0, 0, distance)])
    homography[:2] *= distance / np.sqrt(turn[2, 2])
    extent = np.array(size, dtype=float) - 1
    offset = (_grid() - 0.5) * extent
    moved = [_project(matrix, offset) for matrix in (homography, np.linalg.inv(homography))]
    return Distortion(*((points - offset) / extent for points in moved))


def thin_plate(displacements: np.ndarray) -> Distortion:
    """A thin-plate spline (Bookstein 1989): bends the view as little as the moved control points allow.

    displacements (c, c, 2), lattice units: (dx, dy) of a regular control grid from edge to edge of the view.
    Raises ValueError for a fold; components below MAX_BEND (c = 4) never fold.
    """
    forward = _thin_plate_basis(displacements.shape[0]) @ displacements.reshape(-1, 2)
    forward = forward.reshape(NODES, NODES, 2)
    _refuse_folds(forward)  # a fold has no inverse to look for
    return Distortion(forward, _inverted(forward))


def compose(first: Distortion, second: Distortion) -> Distortion:
    """First, then second."""
    grid = _grid()
    forward = first.forward + _displacement(second.forward, grid + first.forward)
    inverse = second.inverse + _displacement(first.inverse, grid + second.inverse)
    return Distortion(forward, inverse)


def bend(points: np.ndarray, lattice: np.ndarray, size: Size) -> np.ndarray:
    """Move points (..., 2), pixels of a view of size (width, height): numpy's counterpart of bend_points."""
    extent = np.array(size, dtype=float) - 1
    return points + _displacement(lattice, points / extent) * extent


def covered(points: np.ndarray | Tensor, size: Size) -> np.ndarray | Tensor:
    """True where points (..., 2), pixels of a view of size (width, height), lie on its lattices' ground.

    Elsewhere `bend` and `bend_points` only guess: leave such points out. Numpy or torch.
    """
    x, y = points[..., 0] / (size[0] - 1), points[..., 1] / (size[1] - 1)
    return (x >= -MARGIN) & (x <= 1 + MARGIN) & (y >= -MARGIN) & (y <= 1 + MARGIN)


def node_positions(lattice: np.ndarray, size: Size) -> np.ndarray:
    """Where the nodes go, (n, n, 2) pixels of a view of size (width, height)."""
    return (_grid() + lattice) * (np.array(size, dtype=float) - 1)


def at_pixels(values: np.ndarray, size: Size) -> np.ndarray:
    """Values (n, n, C) at nodes, read at every pixel of a view of size (width, height): (h, w, C) float32."""
    across, down = (_interpolation(count) for count in size)
    columns = down @ values.astype(np.float32).transpose(2, 0, 1)  # (C, h, n)
    return np.ascontiguousarray((columns @ across.T).transpose(1, 2, 0))


def determinants(lattice: np.ndarray) -> np.ndarray:
    """Jacobian determinant at each node, (n, n): how much larger areas become there, in any units."""
    a, b, c, d = _jacobians(lattice)
    return a * d - b * c


@functools.cache
def _grid() -> np.ndarray:
    """Node positions (n, n, 2), lattice units."""
    line = np.linspace(-MARGIN, 1 + MARGIN, NODES)
    grid = np.stack(np.meshgrid(line, line), -1)
    grid.setflags(write=False)
    return grid


@functools.cache
def _thin_plate_basis(control: int) -> np.ndarray:
    """Displacement of each node by a unit displacement of each control point, (n^2, control^2)."""
    from scipy.interpolate import RBFInterpolator  # a third of a second that other views need not wait

    line = np.linspace(0, 1, control)
    places = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    spline = RBFInterpolator(places, np.eye(len(places)), kernel="thin_plate_spline")
    steps, weights = np.polynomial.hermite_e.hermegauss(5)  # averages under a Gaussian
    nodes = _grid().reshape(-1, 2)
    pairs = itertools.product(zip(steps, weights, strict=True), repeat=2)
    total = sum(wx * wy * spline(nodes + PLATE_ROUNDING * np.array([x, y])) for (x, wx), (y, wy) in pairs)
    return total / weights.sum() ** 2


@functools.lru_cache(maxsize=32)
def _interpolation(count: int) -> np.ndarray:
    """Weights (count, n) of the nodes of a line at count pixels from edge to edge of the view; float32."""
    rows = []
    for value in np.eye(NODES):
        lattice = np.zeros((NODES, NODES, 2))
        lattice[..., 0] = value
        points = np.column_stack([np.linspace(0, 1, count), np.full(count, 0.5)])
        rows.append(_displacement(lattice, points)[:, 0])
    return np.stack(rows, -1).astype(np.float32)


def _refuse_folds(lattice: np.ndarray) -> None:
    least = determinants(lattice)[IN_VIEW, IN_VIEW].min()
    if not least > 0:
        raise ValueError(f"the view is folded (least Jacobian determinant {least:.3g}): distort it less")


def _jacobians(lattice: np.ndarray) -> tuple[np.ndarray, ...]:
    """dx'/dx, dx'/dy, dy'/dx, dy'/dy at each node, (n, n) each: exactly the slopes of the cubic reading."""
    down, across = np.gradient(lattice, 1 / PER_UNIT, axis=(0, 1))
    return 1 + across[..., 0], down[..., 0], across[..., 1], 1 + down[..., 1]


def _displacement(lattice: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Displacement at points (..., 2), all in lattice units."""
    place = ((points.reshape(-1, 2).T + MARGIN) * PER_UNIT).clip(0, NODES - 1)
    first = np.minimum(place.astype(int), NODES - 2)
    weights = _cubic(place - first)
    planes = np.ascontiguousarray(lattice.reshape(-1, 2).T)
    moved = np.zeros_like(place)
    for j, down in enumerate(weights):
        row = (first[1] + (j - 1)).clip(0, NODES - 1) * NODES
        for i, across in enumerate(weights):
            index = row + (first[0] + (i - 1)).clip(0, NODES - 1)
            moved += planes.take(index, axis=1) * (across[0] * down[1])
    return moved.T.reshape(points.shape)


def _inverted(forward: np.ndarray) -> np.ndarray:
    """The lattice that undoes another: at each node y, the x with x + forward(x) = y.

    Newton's method with the slopes at the node nearest to x: near enough for two digits a step. Where that
    runs in a circle (at kinks of nearly folded plates) plain iteration goes on from there: it comes nearer
    in any case while displacements have slopes below one. Raises ValueError where both fail.
    """
    a, b, c, d = _jacobians(forward)
    inverse_slopes = (np.stack([d, -b, -c, a]) / (a * d - b * c)).reshape(4, -1)
    grid = _grid()
    inverse, missed = np.zeros_like(forward), forward
    for number in range(MAX_STEPS):
        x, y = missed[..., 0], missed[..., 1]
        if number < NEWTON_STEPS:
            nearest = ((grid + inverse + MARGIN) * PER_UNIT).round().astype(int).clip(0, NODES - 1)
            a, b, c, d = inverse_slopes[:, nearest[..., 1] * NODES + nearest[..., 0]]
            x, y = a * x + b * y, c * x + d * y
        inverse = inverse - np.stack([x, y], -1)
        missed = inverse + _displacement(forward, grid + inverse)
        if np.abs(missed).max() < INVERSE_TOLERANCE:
            return inverse
    raise ValueError("the view is nearly folded, no inverse was found: distort it less")


def _project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    moved = points @ homography[:, :2].T + homography[:, 2]
    depth = moved[..., 2:] / homography[2, 2]
    if not depth.min() > 0:
        raise ValueError("the plane is turned beyond its horizon: tilt it less")
    return moved[..., :2] / moved[..., 2:]


def _cubic(t):
    """Weights of four neighbours at t in [0, 1] between the middle two; numpy or torch."""
    return (
        ((-0.5 * t + 1) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )


def _cubic_slope(t: Tensor) -> tuple[Tensor, ...]:
    """Derivative of `_cubic`."""
    return (
        (-1.5 * t + 2) * t - 0.5,
        (4.5 * t - 5) * t,
        (-4.5 * t + 4) * t + 0.5,
        (1.5 * t - 1) * t,
    )


# --- torch: batches ------------------------------------------------------------------------------


@full_precision
def bend_points(points: Tensor, lattice: Tensor, size: Size) -> Tensor:
    """Move points (B, N, 2), pixels of a view of size (width, height), by lattices (B, n, n, 2).

    A `forward` lattice takes plain to distorted pixels, an `inverse` one back. Differentiable in both.
    """
    values, weights, _ = _nearby(points, lattice, size)
    moved = _weighted(values, *weights)
    return points + torch.stack([moved[..., 0] * (size[0] - 1), moved[..., 1] * (size[1] - 1)], -1)


@full_precision
def local_area(points: Tensor, lattice: Tensor, size: Size) -> Tensor:
    """By how much the map of `bend_points` enlarges areas at points (B, N, 2): |det|, (B, N)."""
    values, (wx, wy), (sx, sy) = _nearby(points, lattice, size)
    across, down = _weighted(values, sx, wy), _weighted(values, wx, sy)
    return ((1 + across[..., 0]) * (1 + down[..., 1]) - across[..., 1] * down[..., 0]).abs()


@full_precision
def bend_maps(maps: Tensor, inverse_lattice: Tensor) -> Tensor:
    """Resample maps (B, K, h, w) of plain views in their distorted views, zeros outside.

    inverse_lattice (B, n, n, 2): distorted -> plain. Grids as in `sampling.warp_heatmaps`: a lattice of
    zeros changes nothing.
    """
    return _sample(maps, _plain_pixels(inverse_lattice, maps))


@full_precision
def warp_bent_heatmaps(
    heatmaps: Tensor,
    student_from_teacher: Tensor,
    inverse_lattice: Tensor,
    map_from_view: Tensor | None = None,
    size: Size | None = None,
) -> Tensor:
    """`sampling.warp_heatmaps` to a distorted student's view, resampled once.

    heatmaps (B, K, h, w) >= 0 in the teacher's plain view; student_from_teacher (B, 3, 3), heatmap pixels, to
    the student's view before its distortion; inverse_lattice (B, n, n, 2) of that distortion. map_from_view
    (3, 3), no turn, and size (width, height) of the view: for maps whose corners are not the view's (MSRA).
    Returns (B, K, h, w), zero where the teacher's view does not reach; see `bent_in_view_mass`.
    """
    plain = _plain_pixels(inverse_lattice, heatmaps, map_from_view, size)
    return _sample(heatmaps, transform_points(invert_affine(student_from_teacher), plain))


@full_precision
def bent_in_view_mass(warped: Tensor, student_from_teacher: Tensor, area: Tensor) -> Tensor:
    """`heatmap.in_view_mass` after `warp_bent_heatmaps`: the share of each map's mass that is still in view.

    A blob's area grows by |det| of the matrix times `local_area` of the forward lattice at the joint.
    warped (B, K, h, w), area (B, K) at the teacher's joints brought to the student's plain view. Exact for
    small blobs, as area stands for the whole of one. Returns (B, K) in [0, 1].
    """
    whole = linear_scale(student_from_teacher).square().unsqueeze(-1) * area
    return (warped.sum((-2, -1)) / whole).clamp(max=1)


def _plain_pixels(
    inverse_lattice: Tensor, maps: Tensor, map_from_view: Tensor | None = None, size: Size | None = None
) -> Tensor:
    """Where each pixel of a distorted map (..., h, w) lies in the plain one: (B, h * w, 2).

    Rows first, then columns, tap by tap: 8 products for a pixel instead of 16, and no matrix product (TF32).
    """
    height, width = maps.shape[-2:]
    x = torch.arange(width, device=maps.device, dtype=maps.dtype)
    y = torch.arange(height, device=maps.device, dtype=maps.dtype)
    if map_from_view is None:
        left, top, across, down = 0, 0, max(width - 1, 1), max(height - 1, 1)
    else:  # where the view's first pixels lie, and how far from them its last ones, map pixels
        left, top = map_from_view[:2, 2]
        across, down = map_from_view[0, 0] * (size[0] - 1), map_from_view[1, 1] * (size[1] - 1)
    values, last = inverse_lattice.to(maps.dtype).movedim(-1, 0), inverse_lattice.shape[1] - 1
    taps, weights, _ = _taps((y - top) / down, last)  # (h, 4)
    values = sum(values.index_select(2, taps[:, i]) * weights[:, i, None] for i in range(4))  # (2, B, h, n)
    taps, weights, _ = _taps((x - left) / across, last)
    values = sum(values.index_select(3, taps[:, i]) * weights[:, i] for i in range(4))  # (2, B, h, w)
    plain = [x + values[0] * across, y.unsqueeze(-1) + values[1] * down]
    return torch.stack(plain, -1).flatten(1, 2)


def _sample(maps: Tensor, pixels: Tensor) -> Tensor:
    grid = unit_from_pixel(pixels, maps).unflatten(1, maps.shape[-2:])
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _nearby(points: Tensor, lattice: Tensor, size: Size) -> tuple[Tensor, tuple, tuple]:
    """Displacements (B, N, 4, 4, 2) about points, row by row; weights and slopes (B, N, 4) in x and y."""
    count = lattice.shape[1]
    x, wx, sx = _taps(points[..., 0] / (size[0] - 1), count - 1)
    y, wy, sy = _taps(points[..., 1] / (size[1] - 1), count - 1)
    index = (y.unsqueeze(-1) * count + x.unsqueeze(-2)).flatten(1)  # (B, N * 16)
    values = lattice.to(points.dtype).flatten(1, 2).gather(1, index.unsqueeze(-1).expand(-1, -1, 2))
    return values.unflatten(1, (-1, 4, 4)), (wx, wy), (sx, sy)


def _weighted(values: Tensor, across: Tensor, down: Tensor) -> Tensor:
    return (values * across[..., None, :, None] * down[..., :, None, None]).sum((-3, -2))


def _taps(unit: Tensor, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """For coordinates (...), lattice units: four nodes of a line, their weights and slopes, (..., 4) each."""
    per_unit = last / (1 + 2 * MARGIN)
    place = (unit + MARGIN) * per_unit
    kept = place.clamp(0, last)
    first = kept.detach().floor().clamp(max=last - 1)
    steps = torch.arange(-1, 3, device=unit.device)
    taps = (first.long().unsqueeze(-1) + steps).clamp(0, last)
    t = kept - first
    inside = (place == kept).unsqueeze(-1)
    return taps, torch.stack(_cubic(t), -1), torch.stack(_cubic_slope(t), -1) * (per_unit * inside)
