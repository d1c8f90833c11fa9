"""What the EMA teacher says of a person, as one value: fuse views, decode, filter, judge, gate.

Everything in the result is in the source image's frame and naming: positions in image pixels, and channel k
is the person's own joint k, also where a view was mirrored (a network calls a mirrored left hand a right
one). Only the maps keep a view's pixels: the first one's. All steps run without gradient and without a sync;
nothing is computed twice for logs or pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sagecache.geometry.affine import (
    compose,
    invert_affine,
    is_mirrored,
    linear_scale,
    swap_mirrored,
    transform_points,
)
from sagecache.geometry.heatmap import decode
from sagecache.semi.coupling import StructuralCoupling
from sagecache.semi.filtering import FilterDecision, KeypointFilter
from sagecache.semi.fusion import Fused, TeacherView, ViewFusion
from sagecache.semi.gating import GateDecision, HybridGate, Plausibility
from sagecache.semi.instances import InstanceGate
from sagecache.semi.swaps import FacingVote, SwapCheck, SwapDecision
from sagecache.structures import Fate, PseudoLabels

Correct = Callable[[Tensor, Tensor], Tensor]


class PseudoLabeler(nn.Module):
    """Teacher maps in, `PseudoLabels` out.

    sigma: the maps' ideal Gaussian, heatmap pixels (scale of the confidence). flip_indices (K,): mirror
    pairs. plausibility: None without labeled statistics; then KPS is the mean confidence of kept joints.
    fusion: of several views; the default serves one. instances: drops whole persons. coupling: lowers the
    weights of joints whose limbs or angles no labeled body shows. swaps: compare each person's left and
    right with what another network said of them, and exchange or silence the names.
    """

    def __init__(
        self,
        sigma: float,
        flip_indices: Tensor,
        keypoint_filter: KeypointFilter,
        gate: HybridGate,
        plausibility: Plausibility | None = None,
        fusion: ViewFusion | None = None,
        instances: InstanceGate | None = None,
        coupling: StructuralCoupling | None = None,
        swaps: tuple[FacingVote, SwapCheck] | None = None,
    ) -> None:
        super().__init__()
        self.sigma, self.gate = sigma, gate
        self.keypoint_filter, self.plausibility = keypoint_filter, plausibility
        self.fusion = fusion or ViewFusion(sigma)
        self.instances, self.coupling = instances, coupling
        self.facing, self.swaps = swaps or (None, None)
        self.register_buffer("flip_indices", torch.as_tensor(flip_indices), persistent=False)

    @torch.no_grad()
    def forward(
        self,
        views: Sequence[TeacherView],
        heatmap_from_input: Tensor,
        bbox_scale: Tensor,
        correct: Correct | None = None,
        fixed_votes: Tensor | None = None,
    ) -> PseudoLabels:
        """views: what the teachers saw of B persons; the first one's heatmap frame is that of the maps.

        heatmap_from_input (3, 3): view input -> heatmap pixels. bbox_scale (B,): sqrt(w h) of the boxes,
        image pixels. correct(keypoints, confidence): pose B, in image pixels; required by a gate with a
        teacher B. fixed_votes (B,): what another network's `facing` said of each person; without them names
        stay as they are.
        """
        fused = self.fusion(views, heatmap_from_input, self.flip_indices)
        heatmap_from_image = compose(heatmap_from_input, views[0].view_from_image)
        fused, points, confidence, named = self._named(fused, heatmap_from_image, bbox_scale, fixed_votes)
        keypoints = transform_points(invert_affine(heatmap_from_image), points)

        filtered = self.keypoint_filter(confidence)  # drops what is not finite
        keypoints, confidence = _finite(keypoints), _finite(confidence)
        trusted = filtered.weight
        if self.fusion.rule == "drop":
            trusted = torch.where(fused.disagree, 0, trusted)
        places = torch.zeros_like(trusted)
        if named is not None:
            places = torch.where(named.silenced, trusted, 0)
            trusted = torch.where(named.silenced, 0, trusted * named.weight[:, None])
        # lengths, angles and sizes don't depend on names of sides: silenced joints are judged like the others
        keep, known = trusted > 0, (trusted > 0) | (places > 0)
        if self.coupling is not None:
            doubt = self.coupling(keypoints, known, bbox_scale)
            trusted, places = trusted * doubt, places * doubt
        score = self._plausibility(keypoints, known, bbox_scale, confidence)
        corrected = None if correct is None else correct(keypoints, confidence)
        decision = self.gate(confidence, keep, score, corrected)
        weights = decision.weights * torch.where(decision.teacher_a[:, None], trusted, 1)
        places = places * decision.teacher_a[:, None]
        fate = _fate(fused.disagree, filtered, keep, decision)
        if named is not None:
            weights = torch.where(named.silenced, 0, weights)  # nor are they learned from teacher B
            fate = torch.where(named.corrected & (fate == Fate.KEPT), int(Fate.CORRECTED), fate)
            silent = (places > 0) | (named.silenced & (fate == Fate.BY_PRIOR))
            fate = torch.where(silent, int(Fate.SWAPPED), fate)
        if self.instances is not None:
            person = self.instances(
                fused.probability, heatmap_from_image, keypoints, known, confidence, bbox_scale
            )
            weights = weights * person.keep[:, None]
            places = places * person.keep[:, None]
            fate = torch.where(person.keep[:, None], fate, int(Fate.INSTANCE))
        return PseudoLabels(
            probability=fused.probability,
            keypoints=keypoints,
            confidence=confidence,
            plausibility=score,
            teacher_a=decision.teacher_a,
            weights=weights,
            fate=fate,
            places=places,
            # the gate has dropped what is not finite
            corrected=keypoints
            if corrected is None
            else torch.where(corrected.isfinite(), corrected, keypoints),
        )

    @torch.no_grad()
    def votes(self, views: Sequence[TeacherView], heatmap_from_input: Tensor, bbox_scale: Tensor) -> Tensor:
        """Front or back, (B,) in [-1, 1], by `FacingVote`; arguments as in ``forward``."""
        maps = _finite(self.fusion(views, heatmap_from_input, self.flip_indices).probability)
        return self._vote(maps, compose(heatmap_from_input, views[0].view_from_image), bbox_scale)

    def _named(
        self, fused: Fused, heatmap_from_image: Tensor, bbox_scale: Tensor, fixed_votes: Tensor | None
    ) -> tuple[Fused, Tensor, Tensor, SwapDecision | None]:
        """Maps, points and confidence as the fixed votes name them. Maps are finite; of one that was not,
        point and confidence say so.
        """
        points, confidence = decode(fused.probability, self.sigma)
        confidence = confidence * fused.agreement
        fused = fused._replace(probability=_finite(fused.probability))
        if self.swaps is None or fixed_votes is None:
            return fused, points, confidence, None
        vote = self._vote(fused.probability, heatmap_from_image, bbox_scale)
        named = self.swaps(fused.probability, points, confidence, vote, fixed_votes)
        disagree = swap_mirrored(fused.disagree, named.exchanged, self.flip_indices)
        fused = fused._replace(probability=named.probability, disagree=disagree)
        return fused, named.points, named.confidence, named

    def _vote(self, maps: Tensor, heatmap_from_image: Tensor, bbox_scale: Tensor) -> Tensor:
        return self.facing(
            maps, bbox_scale * linear_scale(heatmap_from_image), is_mirrored(heatmap_from_image)
        )

    def _plausibility(self, keypoints, known, bbox_scale, confidence) -> Tensor:
        """Judged by the joints that would be learned from, by name or by place: the rest may lie anywhere."""
        if self.plausibility is not None:
            return self.plausibility(keypoints, known, bbox_scale, confidence)
        return (confidence * known).sum(-1) / known.sum(-1).clamp_min(1)


def _finite(values: Tensor) -> Tensor:
    """0 for what is not: it is dropped, but NaN times a weight of 0 would still be NaN."""
    return values.nan_to_num(0, 0, 0)


def _fate(disagree: Tensor, filtered: FilterDecision, keep: Tensor, decision: GateDecision) -> Tensor:
    """(B, K) int64 of `Fate`; of what would drop a joint the first reason in its order."""
    by_a = torch.where(filtered.rescued, int(Fate.RESCUED), int(Fate.KEPT))
    dropped = torch.where(filtered.keep & disagree, int(Fate.DISAGREE), int(Fate.LOW_CONFIDENCE))
    by_a = torch.where(keep, by_a, dropped)
    by_b = torch.where(decision.keep, int(Fate.BY_PRIOR), int(Fate.REFUSED))
    return torch.where(decision.teacher_a[:, None], by_a, by_b)
