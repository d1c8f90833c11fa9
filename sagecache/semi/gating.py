"""Is this skeleton plausible, and who teaches the sample: A (the EMA teacher) or B (its corrected pose)?

KPS, the kinematic plausibility score (MATHS 5), compares a pose with the labeled split's statistics; the
hybrid gate takes A's pose as a hard label where it is confident and plausible, and else at most B's pose as
a soft, down-weighted target. The gate receives poses and never a prior. Nothing here carries a gradient or
makes the host wait for the device.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.pose import (
    ANGLE_SOFTNESS,
    Limits,
    all_present,
    excess,
    in_body_units,
    joint_angles,
    limb_lengths,
)
from sagecache.geometry.precision import full_precision
from sagecache.skeleton.stats import SkeletonStats
from sagecache.strict import share

# A limb's spread is at least this share of its median: the MAD of twenty bodies can be zero by chance.
MIN_SPREAD = 0.05
TEACHER_B = ("none", "diffusion")


class PoseStatistics(NamedTuple):
    """What KPS compares with. edges (L, 2) and triplets (T, 3) [a, vertex, b]: joint indices, int64.

    limb_median, limb_spread (L,): centre and robust sd (1.4826 MAD) of limb length / sqrt(w h of the box).
    angle_low, angle_high (T,): radians in [0, pi], the range in the image (not the anatomical one).
    """

    edges: Tensor
    limb_median: Tensor
    limb_spread: Tensor
    triplets: Tensor
    angle_low: Tensor
    angle_high: Tensor


@torch.no_grad()
@full_precision
def plausibility(
    keypoints: Tensor,
    present: Tensor,
    bbox_scale: Tensor,
    confidence: Tensor,
    statistics: PoseStatistics,
    weights: Tensor,
) -> Tensor:
    """KPS = sum w_i s_i / sum w_i in [0, 1], by sample (MATHS 5).

    s_conf: mean confidence. s_len: mean over limbs of exp(-z^2 / 2) with z = relu((l - median) / spread), l
    in units of bbox_scale: one-sided, because foreshortening only shortens. s_rom: mean over joint triplets
    of exp(-(excess / 10 deg)^2), excess beyond [low, high].
    Joints that are not present drop out, and with them their limbs and triplets; a part with nothing left
    drops out of both sums; a sample with no joint at all scores 0.

    keypoints (B, K, 2) and bbox_scale (B,), sqrt(w h), in pixels of one frame; present (B, K) bool;
    confidence (B, K) in [0, 1]; weights (3,) of the parts (conf, len, rom), >= 0. Returns (B,).
    """
    points = in_body_units(keypoints, present, bbox_scale)
    parts = torch.stack(
        [
            *_mean(confidence, present),
            *_mean(_limb_score(points, statistics), all_present(present, statistics.edges)),
            *_mean(_angle_score(points, statistics), all_present(present, statistics.triplets)),
        ],
        -1,
    ).unflatten(-1, (3, 2))
    score, known = parts.unbind(-1)  # (B, 3) each
    share = known * weights.to(known.dtype)
    return (score * share).sum(-1) / share.sum(-1).clamp_min(torch.finfo(share.dtype).tiny)


def _limb_score(points: Tensor, statistics: PoseStatistics) -> Tensor:
    length = limb_lengths(points, statistics.edges)
    z = ((length - statistics.limb_median) / statistics.limb_spread).relu()
    return torch.exp(-z.square() / 2)


def _angle_score(points: Tensor, statistics: PoseStatistics) -> Tensor:
    angle, trust = joint_angles(points, statistics.triplets)
    angle = torch.where(trust > 0, angle, 0)  # joints in one place: a collapsed pose is not plausible
    limits = Limits(statistics.triplets, statistics.angle_low, statistics.angle_high)
    return torch.exp(-(sum(excess(angle, limits)) / ANGLE_SOFTNESS).square())


def _mean(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the last axis of what counts, and 1 where there is any of that (0 elsewhere)."""
    total = counts.sum(-1)
    # where, not a product: an absent joint's confidence may be NaN
    return torch.where(counts, values, 0).sum(-1) / total.clamp_min(1), (total > 0).to(values.dtype)


class Plausibility(nn.Module):
    """`plausibility`; statistics and weights are buffers, not saved: a file and the constructor say them."""

    def __init__(self, statistics: PoseStatistics, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)):
        super().__init__()
        if len(weights) != 3 or min(weights) < 0 or sum(weights) <= 0:
            raise SagecacheError(f"KPS needs three weights >= 0 that are not all zero, got {tuple(weights)}")
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        for name, value in statistics._asdict().items():
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def from_stats(cls, stats: SkeletonStats, weights=(1.0, 1.0, 1.0)) -> Plausibility:
        """Limbs and angles that enough labeled bodies showed; angles within their q2.5 to q97.5."""
        limbs, angles = stats.limb("sqrt_area"), stats.angles
        spread = np.maximum(1.4826 * limbs.mad, MIN_SPREAD * limbs.median)
        chosen = [
            stats.skeleton.limb_edges[limbs.enough],
            limbs.median[limbs.enough],
            spread[limbs.enough],
            stats.skeleton.angle_triplets[angles.enough],
            angles.q025[angles.enough],
            angles.q975[angles.enough],
        ]
        tensors = (torch.tensor(array) for array in chosen)
        return cls(PoseStatistics(*(t.float() if t.is_floating_point() else t for t in tensors)), weights)

    def forward(self, keypoints: Tensor, present: Tensor, bbox_scale: Tensor, confidence: Tensor) -> Tensor:
        """See `plausibility`. Returns (B,)."""
        statistics = PoseStatistics(*(getattr(self, name) for name in PoseStatistics._fields))
        return plausibility(keypoints, present, bbox_scale, confidence, statistics, self.weights)


class GateDecision(NamedTuple):
    """teacher_a (B,) bool; keep (B, K) bool; weights (B, K): keep times the teacher's weight."""

    teacher_a: Tensor
    keep: Tensor
    weights: Tensor


class HybridGate:
    """Sample by sample: A where mean confidence and KPS reach their thresholds, B elsewhere (SPEC 5.4).

    A gives hard labels of weight 1 at the joints the filter keeps. B with 'diffusion' gives soft targets of
    weight weight_b at joints of confidence above keep_b (lower than A's filter: such joints are what the
    correction is for, and a soft target costs little when wrong); with 'none' the sample is silent.
    Thresholds of 0 send every sample to A: plain pseudo-labeling.
    """

    def __init__(
        self,
        threshold_confidence: float = 0.0,
        threshold_plausibility: float = 0.0,
        teacher_b: Literal["none", "diffusion"] = "none",
        weight_b: float = 0.3,
        keep_b: float = 0.3,
    ) -> None:
        if teacher_b not in TEACHER_B:
            raise SagecacheError(f"unknown teacher_b '{teacher_b}'", fix=nearest(str(teacher_b), TEACHER_B))
        if not 0 <= weight_b < 1:
            raise SagecacheError(f"weight_b is in [0, 1), got {weight_b}", fix="B is never a hard label")
        share("threshold_confidence", threshold_confidence)
        share("threshold_plausibility", threshold_plausibility)
        share("keep_b", keep_b)
        self.threshold_confidence = threshold_confidence
        self.threshold_plausibility = threshold_plausibility
        self.teacher_b, self.weight_b, self.keep_b = teacher_b, weight_b, keep_b

    @torch.no_grad()
    def __call__(
        self, confidence: Tensor, keep: Tensor, plausibility: Tensor, corrected: Tensor | None = None
    ) -> GateDecision:
        """confidence (B, K), keep (B, K) bool from the filter, plausibility (B,), corrected (B, K, 2).

        Raises SagecacheError when B is to teach and no corrected pose came.
        """
        confident = confidence.mean(-1) >= self.threshold_confidence
        teacher_a = confident & (plausibility >= self.threshold_plausibility)
        if self.teacher_b == "none":
            keep = keep & teacher_a[:, None]
            return GateDecision(teacher_a, keep, keep.to(confidence.dtype))
        if corrected is None:
            raise SagecacheError("teacher B needs a corrected pose", fix="Give a prior, or teacher_b='none'")
        keep_b = (confidence > self.keep_b) & corrected.isfinite().all(-1)
        keep = torch.where(teacher_a[:, None], keep, keep_b)
        weight = torch.where(teacher_a, 1.0, self.weight_b).to(confidence.dtype)
        return GateDecision(teacher_a, keep, keep * weight[:, None])


@torch.no_grad()
def calibrate_threshold(
    score: Plausibility,
    keypoints: Tensor,
    present: Tensor,
    bbox_scale: Tensor,
    confidence: Tensor | float,
    noise: float = 0.03,
    quantile: float = 0.05,
    draws: int = 20,
    seed: int = 0,
) -> float:
    """The KPS that all but a share `quantile` of true poses reach, once they err like predictions.

    keypoints (N, K, 2), present (N, K) bool, bbox_scale (N,): labeled bodies. confidence (N, K), or one
    number: what the teacher says of poses worth learning, such as the gate's own threshold_confidence.
    noise: sd of a prediction's error along x and y in units of bbox_scale, drawn anew `draws` times.
    Returns a number in [0, 1], the same for the same seed. Raises SagecacheError for an empty split.
    """
    if len(keypoints) == 0:
        raise SagecacheError("no labeled body to calibrate the plausibility threshold on")
    generator = torch.Generator().manual_seed(seed)
    keypoints, bbox_scale = keypoints.float(), bbox_scale.float()
    confidence = torch.as_tensor(confidence, dtype=torch.float32, device=keypoints.device)
    confidence = confidence.expand(keypoints.shape[:2])
    scores = []
    for _ in range(draws):
        error = torch.randn(keypoints.shape, generator=generator).to(keypoints.device)
        moved = keypoints + noise * bbox_scale[:, None, None] * error
        scores.append(score(moved, present, bbox_scale, confidence))
    return torch.cat(scores).quantile(quantile).item()
