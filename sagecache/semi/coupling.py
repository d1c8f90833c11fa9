"""An implausible structure lowers its own weight: pseudo-labels against the ranges of labeled skeletons.

Joint by joint, where the gate's KPS judges the person as a whole (semi.gating). The same limbs, angles and
ranges as the structural prior's (geometry.pose), with which it shares the statistics and nothing else.
Nothing here carries a gradient or makes the host wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.geometry.pose import (
    ANGLE_SOFTNESS,
    SHORT,
    Limits,
    all_present,
    angle_limits,
    excess,
    in_body_units,
    joint_angles,
    limb_lengths,
    limb_limits,
)
from sagecache.geometry.precision import full_precision
from sagecache.skeleton.stats import SkeletonStats
from sagecache.strict import positive

LIMB_SOFTNESS = 0.05  # units of sqrt(w h): a limb this far outside its range weighs exp(-1)
LEAST = 1e-3  # a doubted joint stays a kept one, so that normalising by the kept ones doesn't jump


@torch.no_grad()
@full_precision
def structural_weight(
    keypoints: Tensor,
    present: Tensor,
    bbox_scale: Tensor,
    limbs: Limits,
    angles: Limits,
    softness: float = 1.0,
) -> Tensor:
    """How far each joint's own limbs and angles speak for it, (B, K) in (0, 1]; 1 within the ranges.

    A limb weighs exp(-(excess / (softness LIMB_SOFTNESS))^2), an angle the same with ANGLE_SOFTNESS, its
    excess times how far it can be trusted (`joint_angles`). A joint gets the best of its limbs times the
    best of its angles: one torn joint spoils all of its limbs and only one of each neighbour's, so that the
    doubt falls on it alone. An end joint beyond a torn one is doubted with it, since nothing else vouches
    for it; and two neighbours torn off together vouch for each other.
    Joints that are not present, and those of the head, which have no limbs, take no part and keep 1.

    keypoints (B, K, 2) and bbox_scale (B,), sqrt(w h), in pixels of one frame; present (B, K) bool; limbs,
    angles: `limb_limits`, `angle_limits`; softness > 0.
    """
    points = in_body_units(keypoints, present, bbox_scale)
    below, above = excess(limb_lengths(points, limbs.rows), limbs)
    limb = torch.exp(-((SHORT * below + above) / (softness * LIMB_SOFTNESS)).square())
    angle, trust = joint_angles(points, angles.rows)
    beyond = trust * sum(excess(angle, angles))
    bend = torch.exp(-(beyond / (softness * ANGLE_SOFTNESS)).square())
    weight = _best(limb, limbs.rows, present) * _best(bend, angles.rows, present)
    return weight.clamp_min(LEAST)


def _best(weight: Tensor, rows: Tensor, present: Tensor) -> Tensor:
    """weight (B, M) of rows (M, n) of joints -> (B, K): the largest of each joint's; 1 where it has none."""
    batch, joints = present.shape
    weight = torch.where(all_present(present, rows), weight, -1)
    spread = weight.unsqueeze(-1).expand(-1, -1, rows.shape[1]).flatten(1)
    best = torch.full((batch, joints), -1.0, dtype=weight.dtype, device=weight.device)
    best = best.scatter_reduce(1, rows.flatten().expand(batch, -1), spread, "amax")
    return torch.where(best < 0, 1, best)


class StructuralCoupling(nn.Module):
    """`structural_weight` by the statistics of the labeled split, which are not saved: a file says them.

    softness > 0: how forgiving; 1 gives a limb that is too long by a twentieth of sqrt(w h) a weight of
    exp(-1). A judge of few cases: hardly a confident joint of the demo's bodies stands out of its range.
    Raises SagecacheError where too few labeled bodies show any limb.
    """

    def __init__(self, stats: SkeletonStats, softness: float = 1.0) -> None:
        super().__init__()
        positive("softness", softness)
        self.softness = softness
        for name, limits in (("limb", limb_limits(stats)), ("angle", angle_limits(stats))):
            for key, value in limits._asdict().items():
                self.register_buffer(f"{name}_{key}", value, persistent=False)
        if len(self.limb_low) == 0:
            raise SagecacheError(
                "too few labeled persons show a limb: the coupling would lower no weight",
                fix="Label more persons, or leave the coupling off",
            )

    def forward(self, keypoints: Tensor, present: Tensor, bbox_scale: Tensor) -> Tensor:
        """See `structural_weight`. Returns (B, K)."""
        limits = (
            Limits(*(getattr(self, f"{name}_{key}") for key in Limits._fields)) for name in ("limb", "angle")
        )
        return structural_weight(keypoints, present, bbox_scale, *limits, self.softness)
