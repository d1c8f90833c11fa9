"""Which persons may be learned from at all, before any joint is judged.

A crop that shows another person's limbs, or nobody, gives joints that are each sure of themselves. So whole
skeletons are judged first: by the OKS their maps expect, by mean confidence, and by whether they are a giant,
a dwarf or stand on their head within their own trunk. Every key is off at first, and one that is off costs
nothing. Nothing here carries a gradient or makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import linear_scale, transform_points
from sagecache.geometry.confidence import expected_oks, visibility
from sagecache.geometry.pose import all_present, in_body_units, limb_lengths
from sagecache.geometry.precision import full_precision
from sagecache.skeleton.stats import BODY, MIN_COUNT, SkeletonStats
from sagecache.strict import share


class Reason(IntEnum):
    """What dropped a person: the first of these that did, in this order."""

    KEPT = 0
    CONFIDENCE = 1
    EXPECTED_OKS = 2
    SIZE = 3
    INVERTED = 4


class InstanceDecision(NamedTuple):
    """keep (B,) bool; reason (B,) int64, of `Reason`; score (B,) in [0, 1]: expected OKS, None where off."""

    keep: Tensor
    reason: Tensor
    score: Tensor | None


class InstanceGate(nn.Module):
    """Drop persons whose skeleton as a whole is not to be believed.

    expected_oks in [0, 1]: least mean over joints of `geometry.confidence.expected_oks`; 0 is off. With
    visibility each joint's is multiplied by `geometry.confidence.visibility`, so that joints without a clear
    peak count against the person. It is off because it ranked the demo's persons no better.
    confidence in [0, 1]: least mean confidence over joints; 0 is off.
    size: 0 is off; else at least 1, the slack of the range: giants and dwarfs, whose median limb relative to
    labeled ones (`skeleton.measure.relative_size`, which missing joints or one torn limb hardly move) lies
    outside [q01 / size, q99 * size] of labeled bodies. With few labels the range is narrow: 1.2 is sensible.
    inverted: drop heads that lie nearer the hips than the shoulders, beyond what 99 % of labeled bodies show
    (`skeleton.measure.inversion`), whichever way the body lies in the image. A skeleton that is turned round
    as a whole, feet and all, is a body like any other and can't be told by its shape.

    What can't be measured (too few joints present) drops nobody. stats: of the labeled split; sigma: the
    codec's, heatmap pixels. Raises SagecacheError for values out of range and where the statistics lack
    what a key compares with.
    """

    def __init__(
        self,
        stats: SkeletonStats,
        sigma: float,
        expected_oks: float = 0.0,
        visibility: bool = False,
        confidence: float = 0.0,
        size: float = 0.0,
        inverted: bool = False,
    ) -> None:
        super().__init__()
        share("expected_oks", expected_oks)
        share("confidence", confidence)
        if size != 0 and not 1 <= size < float("inf"):
            raise SagecacheError(
                f"size is {size}, it must be 0 or at least 1",
                fix="0 is off, 1 the range of labeled bodies, 1.2 that range and 20 % more on both ends",
            )
        if visibility and not expected_oks:
            raise SagecacheError("visibility weighs the expected OKS, which is off", fix="Set expected_oks")
        self.sigma, self.size = sigma, size
        self.expected_oks, self.visibility = expected_oks, visibility
        self.confidence, self.inverted = confidence, inverted
        if expected_oks:
            self._remember("sigmas", stats.skeleton.sigmas)
        _require_enough(stats, {"size": bool(size), "inverted": inverted})
        if size:
            self._prepare_size(stats)
        if inverted:
            self._prepare_inversion(stats)

    def _prepare_size(self, stats: SkeletonStats) -> None:
        limbs = stats.limb("sqrt_area")
        row = BODY.index("size")
        self._remember("edges", stats.skeleton.limb_edges[limbs.enough])
        self._remember("typical", limbs.median[limbs.enough])
        self._remember("size_range", [stats.body.q01[row] / self.size, stats.body.q99[row] * self.size])

    def _prepare_inversion(self, stats: SkeletonStats) -> None:
        row = BODY.index("inversion")
        self._remember("torso", stats.skeleton.torso_joints)
        self._remember("head", stats.skeleton.is_head)
        self._remember("most", np.exp(max(0.0, stats.body.q99[row])))

    def _remember(self, name: str, value) -> None:
        tensor = torch.tensor(np.asarray(value))
        self.register_buffer(name, tensor.float() if tensor.is_floating_point() else tensor, persistent=False)

    @torch.no_grad()
    def forward(
        self,
        probability: Tensor,
        heatmap_from_image: Tensor,
        keypoints: Tensor,
        present: Tensor,
        confidence: Tensor,
        bbox_scale: Tensor,
    ) -> InstanceDecision:
        """probability (B, K, h, w) and keypoints (B, K, 2), image pixels: maps and what they were decoded to.

        heatmap_from_image (B, 3, 3); present (B, K) bool: joints by which the shape is judged; confidence
        (B, K) in [0, 1]; bbox_scale (B,): sqrt(w h) of the box, image pixels, as the square root of the area.
        """
        reason = torch.zeros(len(keypoints), dtype=torch.int64, device=keypoints.device)
        score = None
        if self.inverted:  # from the last reason to the first: the first one stays
            reason = torch.where(self._inverted(keypoints, present), Reason.INVERTED, reason)
        if self.size:
            reason = torch.where(self._odd_size(keypoints, present, bbox_scale), Reason.SIZE, reason)
        if self.expected_oks:
            score = self._score(probability, heatmap_from_image, keypoints, bbox_scale)
            reason = torch.where(score < self.expected_oks, Reason.EXPECTED_OKS, reason)
        if self.confidence:
            reason = torch.where(confidence.mean(-1) < self.confidence, Reason.CONFIDENCE, reason)
        return InstanceDecision(reason == Reason.KEPT, reason, score)

    def _score(self, maps: Tensor, to_map: Tensor, keypoints: Tensor, bbox_scale: Tensor) -> Tensor:
        points = transform_points(to_map, keypoints)
        each = expected_oks(maps, points, bbox_scale * linear_scale(to_map), self.sigmas, self.sigma)
        return (each * visibility(maps, self.sigma) if self.visibility else each).mean(-1)

    @full_precision
    def _odd_size(self, keypoints: Tensor, present: Tensor, bbox_scale: Tensor) -> Tensor:
        lengths = limb_lengths(in_body_units(keypoints, present, bbox_scale), self.edges)
        ratio = torch.where(all_present(present, self.edges), lengths / self.typical, torch.nan)
        size = ratio.nanmedian(-1).values
        return (size < self.size_range[0]) | (size > self.size_range[1])  # both False where it is NaN

    @full_precision
    def _inverted(self, keypoints: Tensor, present: Tensor) -> Tensor:
        of_head = present & self.head
        count = of_head.sum(-1, keepdim=True)
        head = torch.where(of_head.unsqueeze(-1), keypoints, 0).sum(1) / count.clamp_min(1)  # (B, 2)
        middle = keypoints[:, self.torso].mean(2)  # (B, 2, 2): shoulders, hips
        to_shoulders, to_hips = (head.unsqueeze(1) - middle).norm(dim=-1).unbind(-1)
        known = (count[:, 0] > 0) & present[:, self.torso].flatten(1).all(-1)
        return known & (to_shoulders > self.most * to_hips)


OFF = {"size": 0, "inverted": False}


def _require_enough(stats: SkeletonStats, asked: Mapping[str, bool]) -> None:
    """Raise SagecacheError for all keys at once whose measure too few labeled bodies showed."""
    rows = {"size": BODY.index("size"), "inverted": BODY.index("inversion")}
    silent = [key for key, on in asked.items() if on and not stats.body.enough[rows[key]]]
    if silent:
        counts = ", ".join(f"{key} {stats.body.count[rows[key]]}" for key in silent)
        raise SagecacheError(
            f"too few labeled persons show what semi.instances compares with: {counts}, of "
            f"{stats.counts.get('min_count', MIN_COUNT)} that are needed",
            fix="Label more persons, or leave it off: "
            + " ".join(f"semi.instances.{key}={OFF[key]}" for key in silent),
        )
