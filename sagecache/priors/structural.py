"""Structural priors: a predicted skeleton against the ranges that labeled ones span, with a live gradient.

Three quantities (limb length, offset from the neighbours, angle), one normaliser (sqrt(w h) of the box), one
rule (MATHS 5): what lies within the labeled split's quantiles costs nothing, the excess costs Huber's loss.
A penalty on the quantity itself would shrink the body (the minimum of p^T L p is a point) or straighten
elbows (labeled ones bend by 37 degrees at the median). These are ranges in the image, not of anatomy: they
catch gross errors and no more. A von Mises loss of angles, -kappa cos(angle - mean), is not offered: these
angles have no sign, so they are not circular, they fill most of [0, pi] (kappa near 0), and it would pull
every rightly bent joint towards the mean.

Legend: B bodies, K joints; keypoints (B, K, 2) and bbox_scale (B,) in pixels of one frame, left and right as
in the image; present (B, K) bool: joints that take part. Each function returns loss and weight, (B, M) each,
over the M rows of its limits. Float32 with autocast off; the gradient reaches the keypoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sagecache.errors import SagecacheError
from sagecache.geometry.pose import (
    SHORT,
    Limits,
    all_present,
    excess,
    in_body_units,
    joint_angles,
    joint_offsets,
    limb_lengths,
)
from sagecache.geometry.precision import full_precision
from sagecache.priors.frames import labels_in_view, student_keypoints
from sagecache.strict import share
from sagecache.structures import TermOutput, UnlabeledBatch

BETA_LENGTH = 0.05  # body units: where the loss turns from square to linear, with slope 1 from there on
BETA_ANGLE = 0.2  # radians


# --- pure functions ----------------------------------------------------------------------------


@full_precision
def bone_loss(
    keypoints: Tensor, present: Tensor, bbox_scale: Tensor, limits: Limits, short: float = SHORT
) -> tuple[Tensor, Tensor]:
    """Limbs longer than labeled ones, and shorter ones at `short` of the price. limits: `limb_limits`."""
    points = in_body_units(keypoints, present, bbox_scale)
    loss = _outside(limb_lengths(points, limits.rows), limits, BETA_LENGTH, short)
    return loss, all_present(present, limits.rows).to(loss.dtype)


@full_precision
def topology_loss(
    keypoints: Tensor, present: Tensor, bbox_scale: Tensor, limits: Limits, short: float = SHORT
) -> tuple[Tensor, Tensor]:
    """Joints farther from the mean of their neighbours than labeled ones; nearer ones at `short` of it.

    The differential coordinate of mesh editing, d_i = p_i - mean p_j (Sorkine 2006), bounded where p^T L p
    would shrink it: a joint torn from its limbs has a long one. A joint counts where all its neighbours are
    present. limits: `offset_limits`.
    """
    points = in_body_units(keypoints, present, bbox_scale)
    loss = _outside(joint_offsets(points, limits.rows), limits, BETA_LENGTH, short)
    return loss, all_present(present, limits.rows).to(loss.dtype)


@full_precision
def angle_loss(
    keypoints: Tensor, present: Tensor, bbox_scale: Tensor, limits: Limits
) -> tuple[Tensor, Tensor]:
    """Angles outside the labeled range, both ways alike. The weight fades where a side is too short to have
    a direction (`joint_angles`). limits: `angle_limits`.
    """
    points = in_body_units(keypoints, present, bbox_scale)
    angle, trust = joint_angles(points, limits.rows)
    return _outside(angle, limits, BETA_ANGLE, 1.0), trust * all_present(present, limits.rows)


def _outside(value: Tensor, limits: Limits, beta: float, short: float) -> Tensor:
    below, above = excess(value, limits)
    none = torch.zeros_like(value)
    return short * F.smooth_l1_loss(below, none, reduction="none", beta=beta) + F.smooth_l1_loss(
        above, none, reduction="none", beta=beta
    )


# --- terms -------------------------------------------------------------------------------------


class StructuralTerm(nn.Module):
    """What the three share: the student's joints in the image's frame, and the mean over what was measured.

    Every joint within the strong view takes part, also one that the filter dropped: where the teacher says
    nothing the prior still does. limits belong to the term; flip_indices (K,) undo the channel order of
    mirrored views.
    """

    def __init__(self, limits: Limits, flip_indices: Tensor) -> None:
        super().__init__()
        if len(limits.low) == 0:
            raise SagecacheError(
                f"too few labeled bodies show what '{type(self).__name__}' compares with: it would be silent",
                fix="Label more persons, or give the term weight 0",
            )
        for name, value in limits._asdict().items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("flip_indices", torch.as_tensor(flip_indices), persistent=False)

    @property
    def limits(self) -> Limits:
        return Limits(self.rows, self.low, self.high)

    def measure(self, keypoints: Tensor, present: Tensor, bbox_scale: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        """outside: share of what was measured that lies beyond its range."""
        keypoints = student_keypoints(batch, self.flip_indices)
        loss, weight = self.measure(keypoints, labels_in_view(batch), batch.bbox_scale)
        outside = ((loss > 0) & (weight > 0)).sum() / (weight > 0).sum().clamp_min(1)
        return TermOutput((weight * loss).sum() / weight.sum().clamp_min(1), {"outside": outside})


class LengthTerm(StructuralTerm):
    """What is of lengths. short in [0, 1]: price of one that is too short, where too long costs 1."""

    def __init__(self, limits: Limits, flip_indices: Tensor, short: float = SHORT) -> None:
        super().__init__(limits, flip_indices)
        share("short", short)
        self.short = short


class BoneLength(LengthTerm):
    """`bone_loss` of the student's keypoints. short in [0, 1]: price of a limb that is too short."""

    def measure(self, keypoints: Tensor, present: Tensor, bbox_scale: Tensor) -> tuple[Tensor, Tensor]:
        return bone_loss(keypoints, present, bbox_scale, self.limits, self.short)


class Topology(LengthTerm):
    """`topology_loss` of the student's keypoints. short in [0, 1]: price of a joint that is too near."""

    def measure(self, keypoints: Tensor, present: Tensor, bbox_scale: Tensor) -> tuple[Tensor, Tensor]:
        return topology_loss(keypoints, present, bbox_scale, self.limits, self.short)


class JointAngle(StructuralTerm):
    """`angle_loss` of the student's keypoints."""

    def measure(self, keypoints: Tensor, present: Tensor, bbox_scale: Tensor) -> tuple[Tensor, Tensor]:
        return angle_loss(keypoints, present, bbox_scale, self.limits)
