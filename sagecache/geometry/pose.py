"""Limbs, angles and offsets of predicted skeletons, and the ranges that labeled ones span.

The differentiable counterpart of `skeleton.measure`: for losses and for whoever judges pseudo-labels by the
same quantities. Keypoints come in units of the body, sqrt(w h) of its box; absent joints must be finite
(`filled`), and whoever measures drops what they touch (`all_present`). Float32 with autocast off.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagecache.geometry.precision import full_precision
from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.stats import SkeletonStats, Summary

# Squares of body units: keeps slopes finite where joints coincide, and moves no length by more than 1e-4.
TINY = 1e-8
# Error of a good prediction, in body units: a limb no longer than that has no direction.
JOINT_NOISE = 0.03
# How much being shorter than labeled counts against being longer by as much: a limb can look as short as the
# view has it, so it is weak evidence. Above 0, or a body that shrinks to a point would cost nothing.
SHORT = 0.25
# An angle this far outside its range scores exp(-1) with those who judge. Not narrower: labeled bodies leave
# the range as well where it is of few.
ANGLE_SOFTNESS = math.radians(10)


class Limits(NamedTuple):
    """What M quantities were between on labeled bodies; M counts those that enough bodies showed.

    rows: the joints of each, as `limb_lengths`, `joint_angles` or `joint_offsets` take them. low, high (M,):
    in body units, or radians.
    """

    rows: Tensor
    low: Tensor
    high: Tensor


# --- measuring ---------------------------------------------------------------------------------


@full_precision
def in_body_units(keypoints: Tensor, present: Tensor, bbox_scale: Tensor) -> Tensor:
    """keypoints (B, K, 2) / bbox_scale (B,), zeros for joints that are not present (B, K) bool.

    An absent joint may hold NaN, which a weight of 0 would not stop.
    """
    return torch.where(present.unsqueeze(-1), keypoints / bbox_scale[:, None, None], 0)


@full_precision
def limb_lengths(points: Tensor, edges: Tensor) -> Tensor:
    """points (B, K, 2), edges (E, 2) -> (B, E)."""
    along = points[:, edges[:, 0]] - points[:, edges[:, 1]]
    return (along.square().sum(-1) + TINY).sqrt()


@full_precision
def joint_angles(points: Tensor, triplets: Tensor) -> tuple[Tensor, Tensor]:
    """Angle at the middle joint of each triplet (T, 3) [a, vertex, b], and how far it can be trusted.

    atan2(|cross|, dot), radians in [0, pi], a straight limb is pi: unlike arccos it has a finite slope at
    both ends. The trust, product of l^2 / (l^2 + JOINT_NOISE^2) over the two sides, has no gradient: a side
    that points at the camera, or whose joints coincide, has no direction and would have a slope of 1 / l.
    points (B, K, 2). Returns (B, T) each, the trust in [0, 1).
    """
    a, vertex, b = points[:, triplets].unbind(2)
    u, v = a - vertex, b - vertex
    cross = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    angle = torch.atan2((cross.square() + TINY**2).sqrt(), (u * v).sum(-1))
    squared = torch.stack([u, v]).detach().square().sum(-1)  # (2, B, T)
    return angle, (squared / (squared + JOINT_NOISE**2)).prod(0)


@full_precision
def joint_offsets(points: Tensor, laplacian: Tensor) -> Tensor:
    """Length of differential coordinates: points (B, K, 2), rows (M, K) of Skeleton.laplacian -> (B, M).

    Summed term by term: with TF32 a matrix product of positions keeps 10 bits.
    """
    offset = (laplacian.unsqueeze(-1) * points.unsqueeze(1)).sum(2)
    return (offset.square().sum(-1) + TINY).sqrt()


def all_present(present: Tensor, rows: Tensor) -> Tensor:
    """present (B, K) bool, rows of `Limits` -> (B, M) bool: every joint that the quantity is made of."""
    if rows.is_floating_point():
        return ~((rows != 0) & ~present.unsqueeze(1)).any(-1)
    return present[:, rows].all(-1)


def excess(value: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """How far value (B, M) lies below low and above high: two tensors >= 0, 0 within."""
    return (limits.low - value).relu(), (value - limits.high).relu()


# --- the labeled range -------------------------------------------------------------------------


def limb_limits(stats: SkeletonStats) -> Limits:
    """Limb lengths, q01 to q99, in units of sqrt(w h). rows: edges (E, 2)."""
    summary = stats.limb("sqrt_area")
    return _limits(stats.skeleton, stats.skeleton.limb_edges, summary, summary.q01, summary.q99)


def angle_limits(stats: SkeletonStats) -> Limits:
    """Angles at joints, q2.5 to q97.5, radians. rows: triplets (T, 3)."""
    summary = stats.angles
    return _limits(stats.skeleton, stats.skeleton.angle_triplets, summary, summary.q025, summary.q975)


def offset_limits(stats: SkeletonStats) -> Limits:
    """Differential coordinates, q01 to q99, in units of sqrt(w h). rows: of the Laplacian (M, K), float."""
    skeleton, summary = stats.skeleton, stats.offsets
    joints = np.arange(skeleton.num_keypoints)[:, None]
    limits = _limits(skeleton, joints, summary, summary.q01, summary.q99)
    laplacian = torch.tensor(skeleton.laplacian, dtype=torch.float32)
    return limits._replace(rows=laplacian[limits.rows[:, 0]])


def _limits(
    skeleton: Skeleton, rows: np.ndarray, summary: Summary, low: np.ndarray, high: np.ndarray
) -> Limits:
    """Left and right share the wider of their two ranges: a mirrored body is as likely, and few labels give
    uncertain quantiles. A quantity that too few bodies showed takes its mirror's range, or is left out."""
    number = {_either_way(row): i for i, row in enumerate(rows.tolist())}
    mirrored = skeleton.flip_indices[rows].tolist()
    twin = [number.get(_either_way(row), i) for i, row in enumerate(mirrored)]
    low, high = np.where(summary.enough, low, np.nan), np.where(summary.enough, high, np.nan)
    low, high = np.fmin(low, low[twin]), np.fmax(high, high[twin])
    known = np.isfinite(low)
    return Limits(
        torch.tensor(rows[known]),
        torch.tensor(low[known], dtype=torch.float32),
        torch.tensor(high[known], dtype=torch.float32),
    )


def _either_way(row: list[int]) -> tuple[int, ...]:
    return tuple(min(row, row[::-1]))
