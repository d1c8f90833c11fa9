"""What the EMA teacher says of a weak view, as one value: decode -> filter -> plausibility -> gate.

Everything in the result is in the source image's frame and naming: positions in image pixels, and channel k
is the person's own joint k, also where the weak view was mirrored (a network calls a mirrored left hand a
right one). Only the maps keep the weak view's pixels. All steps run without gradient and without a sync;
nothing is computed twice for logs or pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sagecache.geometry.affine import compose, invert_affine, is_mirrored, swap_mirrored, transform_points
from sagecache.geometry.heatmap import decode, probability
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.gating import HybridGate, Plausibility
from sagecache.structures import PseudoLabels

Correct = Callable[[Tensor, Tensor], Tensor]


class PseudoLabeler(nn.Module):
    """Teacher maps in, `PseudoLabels` out.

    sigma: the maps' ideal Gaussian, heatmap pixels (scale of the confidence). flip_indices (K,): mirror
    pairs. plausibility: None without labeled statistics; then KPS is the mean confidence of kept joints.
    """

    def __init__(
        self,
        sigma: float,
        flip_indices: Tensor,
        keypoint_filter: KeypointFilter,
        gate: HybridGate,
        plausibility: Plausibility | None = None,
    ) -> None:
        super().__init__()
        self.sigma, self.gate = sigma, gate
        self.keypoint_filter, self.plausibility = keypoint_filter, plausibility
        self.register_buffer("flip_indices", torch.as_tensor(flip_indices), persistent=False)

    @torch.no_grad()
    def forward(
        self,
        heatmaps: Tensor,
        kind: str,
        weak_from_image: Tensor,
        heatmap_from_weak: Tensor,
        bbox_scale: Tensor,
        mirrored_heatmaps: Tensor | None = None,
        correct: Correct | None = None,
    ) -> PseudoLabels:
        """heatmaps (B, K, h, w): the teacher's raw output on the weak views, of this kind (`probability`).

        weak_from_image (B, 3, 3) and heatmap_from_weak (3, 3) or (B, 3, 3): image -> weak-view input
        -> heatmap pixels. bbox_scale (B,): sqrt(w h) of the boxes, image pixels. mirrored_heatmaps: raw
        output on the weak views mirrored once more (test-time flip). correct(keypoints, confidence): pose B,
        in image pixels; required by a gate with a teacher B.
        """
        maps = probability(heatmaps, kind)
        if mirrored_heatmaps is not None:
            maps = fuse_flip(maps, probability(mirrored_heatmaps, kind), self.flip_indices)
        maps = swap_mirrored(maps, is_mirrored(weak_from_image), self.flip_indices)
        points, confidence = decode(maps, self.sigma)
        heatmap_from_image = compose(heatmap_from_weak, weak_from_image)
        keypoints = transform_points(invert_affine(heatmap_from_image), points)

        filtered = self.keypoint_filter(confidence)
        score = self._plausibility(keypoints, filtered.keep, bbox_scale, confidence)
        corrected = None if correct is None else correct(keypoints, confidence)
        decision = self.gate(confidence, filtered.keep, score, corrected)
        hard = decision.teacher_a[:, None]
        return PseudoLabels(
            probability=maps,
            keypoints=keypoints,
            confidence=confidence,
            plausibility=score,
            teacher_a=decision.teacher_a,
            keep=decision.keep,
            weights=decision.weights * torch.where(hard, filtered.weight, 1),
            rescued=filtered.rescued & hard,
            # the gate has dropped what is not finite; NaN times a weight of 0 would still be NaN
            corrected=keypoints
            if corrected is None
            else torch.where(corrected.isfinite(), corrected, keypoints),
        )

    def _plausibility(self, keypoints, keep, bbox_scale, confidence) -> Tensor:
        """Judged by the joints that would be learned from: the rest may lie anywhere."""
        if self.plausibility is not None:
            return self.plausibility(keypoints, keep, bbox_scale, confidence)
        return (confidence * keep).sum(-1) / keep.sum(-1).clamp_min(1)


def fuse_flip(maps: Tensor, mirrored_maps: Tensor, flip_indices: Tensor) -> Tensor:
    """Mean of the maps and of those of the mirrored input, turned back (x' = w - 1 - x, channels swapped).

    Both (B, K, h, w), summing to one. Where the two passes disagree the mean has two low peaks, so that its
    confidence falls: the mean doubles as a test of agreement.
    """
    return (maps + mirrored_maps.flip(-1).index_select(1, flip_indices)) / 2
