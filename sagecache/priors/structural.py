"""Structural priors: a predicted skeleton against the range that labeled ones span, live gradient.

Three quantities, one normaliser (sqrt(w h) of the box), one rule: what lies within the labeled split's
quantiles costs nothing, the excess costs Huber's loss. A penalty on the quantity itself would shrink the body
(the minimum of p^T L p is a point) or straighten elbows (true ones bend by 37 degrees at the median), and a
limb can only look shorter than it is, so that its lower bound is weak. These are ranges in the image, not of
anatomy: they catch gross errors, and no more.

Legend: B bodies, K joints; keypoints (B, K, 2) in image pixels, left and right as in the image; weights
(B, K) >= 0, 0 for a joint that takes no part; bbox_scale (B,); low, high: the range, in units of bbox_scale
or radians, infinite where too few labels say anything. Float32 with autocast off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sagecache.geometry.affine import invert_affine, is_mirrored, swap_mirrored, transform_points
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import inside
from sagecache.structures import TermOutput, UnlabeledBatch

HUBER = 0.1  # of bbox_scale, or radians: where the loss turns from square to linear
_TINY = 1e-8  # squares of bbox_scale: keeps gradients finite where joints coincide


@full_precision
def bone_excess(
    keypoints: Tensor, weights: Tensor, bbox_scale: Tensor, edges: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """How far each limb's length lies outside [low, high] (E,); edges (E, 2). Loss and weight, (B, E)."""
    unit = keypoints / bbox_scale[:, None, None]
    along = unit[:, edges[:, 0]] - unit[:, edges[:, 1]]
    length = (along.square().sum(-1) + _TINY).sqrt()
    return _outside(length, low, high), weights[:, edges].prod(-1) * low.isfinite()


@full_precision
def topology_excess(
    keypoints: Tensor, weights: Tensor, bbox_scale: Tensor, neighbours: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """How far each joint's distance from the mean of its neighbours lies outside [low, high] (K,).

    The differential coordinate of graph Laplacians, d_i = p_i - mean p_j: a joint torn from its limb has a
    long one. neighbours (K, K): rows of the normalised adjacency, each sums to 1 or, for a joint without
    edges, to 0. A joint counts where all its neighbours do. Loss and weight, (B, K).
    """
    unit = keypoints / bbox_scale[:, None, None]
    taking_part = (weights > 0).to(unit.dtype)
    whole = ((1 - taking_part) @ neighbours.T == 0) & (neighbours.sum(-1) > 0)
    unit = torch.where(taking_part.unsqueeze(-1) > 0, unit, 0)
    offset = unit - neighbours @ unit
    distance = (offset.square().sum(-1) + _TINY).sqrt()
    return _outside(distance, low, high), weights * whole * low.isfinite()


@full_precision
def angle_excess(
    keypoints: Tensor, weights: Tensor, bbox_scale: Tensor, triplets: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """How far the angle at the middle joint lies outside [low, high] (T,), radians in [0, pi].

    triplets (T, 3) [a, vertex, b]. atan2(|cross|, dot), which unlike arccos has a finite slope at 0 and pi.
    Loss and weight, (B, T).
    """
    a, vertex, b = (keypoints / bbox_scale[:, None, None])[:, triplets].unbind(2)
    u, v = a - vertex, b - vertex
    cross = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    angle = torch.atan2((cross.square() + _TINY).sqrt(), (u * v).sum(-1))
    return _outside(angle, low, high), weights[:, triplets].prod(-1) * low.isfinite()


def _outside(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    known = low.isfinite()
    excess = (torch.where(known, low, 0) - value).relu() + (value - torch.where(known, high, 0)).relu()
    return F.huber_loss(excess, torch.zeros_like(excess), reduction="none", delta=HUBER)


class StructuralTerm(nn.Module):
    """One of the three as a term of a training step; joints pushed out of the strong view take no part."""

    measure = staticmethod(bone_excess)

    def __init__(self, joints: Tensor, low: Tensor, high: Tensor, flip_indices: Tensor) -> None:
        super().__init__()
        for name, value in dict(joints=joints, low=low, high=high, flip_indices=flip_indices).items():
            self.register_buffer(name, torch.as_tensor(value), persistent=False)

    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        keypoints = transform_points(invert_affine(batch.strong_from_image), batch.student_keypoints)
        keypoints = swap_mirrored(keypoints, is_mirrored(batch.strong_from_image), self.flip_indices)
        width, height = (round(side) for side in batch.strong_size)
        seen = inside(transform_points(batch.strong_from_image, keypoints), (width, height))
        loss, weight = self.measure(
            keypoints, seen.to(keypoints.dtype), batch.bbox_scale, self.joints, self.low, self.high
        )
        outside = ((loss > 0) & (weight > 0)).sum() / (weight > 0).sum().clamp_min(1)
        return TermOutput((weight * loss).sum() / weight.sum().clamp_min(1), {"outside": outside})


class BoneLength(StructuralTerm):
    """`bone_excess` of the student's keypoints; joints: edges (E, 2)."""


class Topology(StructuralTerm):
    """`topology_excess` of the student's keypoints; joints: the normalised adjacency (K, K)."""

    measure = staticmethod(topology_excess)


class JointAngle(StructuralTerm):
    """`angle_excess` of the student's keypoints; joints: triplets (T, 3)."""

    measure = staticmethod(angle_excess)
