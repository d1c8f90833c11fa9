"""The nouns that cross rooms: an instance on disk, and what a training step hands to its terms.

Holds data and no behaviour. torch is named in annotations only, so that the store and the
readers of annotations work without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sagecache.geometry.depth import Gain


@dataclass(frozen=True, slots=True)
class Instance:
    """One person in one image.

    instance counts 0, 1, … in the order of the box source within the image; bbox is (x, y, w, h) in
    image pixels; keypoints (K, 3) are COCO triplets (x, y, v) or None where the split has none.
    """

    image_id: int
    instance: int
    path: Path
    bbox: tuple[float, float, float, float]
    score: float = 1.0
    keypoints: np.ndarray | None = field(default=None, compare=False)
    area: float | None = None
    annotation_id: int | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.image_id, self.instance


class Fate(IntEnum):
    """What became of a joint of a pseudo-label; of several reasons to drop it the first that is named here.

    Kept: above its threshold; exchanged with its mirror partner; below its threshold but kept by a floor;
    learned from where the prior puts it. Dropped: with its whole person; because the teacher's views put it
    in different places; because it looks like the other side's joint; by its threshold; by the hybrid gate.
    """

    KEPT = 0
    CORRECTED = 1
    RESCUED = 2
    BY_PRIOR = 3
    INSTANCE = 4
    DISAGREE = 5
    SWAPPED = 6
    LOW_CONFIDENCE = 7
    REFUSED = 8


@dataclass(slots=True)
class PseudoLabels:
    """What the EMA teacher says of a batch, with every intermediate result (nothing is computed twice).

    probability (B, K, h, w): fused teacher maps in the heatmap pixels of the first view it saw, each summing
    to 1. keypoints (B, K, 2): decoded, source image pixels. confidence (B, K) in [0, 1].
    plausibility (B,): KPS in [0, 1]. teacher_a (B,) bool: sample passes the gate.
    weights (B, K) >= 0: 0 where a joint is not learned from. fate (B, K) int64: of `Fate`, why.
    places (B, K) >= 0: weights of joints whose place is trusted and whose name, left or right, is not.
    corrected (B, K, 2): pose B in image pixels (equal to keypoints where no prior is given).
    """

    probability: Tensor
    keypoints: Tensor
    confidence: Tensor
    plausibility: Tensor
    teacher_a: Tensor
    weights: Tensor
    fate: Tensor
    places: Tensor
    corrected: Tensor

    @property
    def keep(self) -> Tensor:
        """(B, K) bool: joints that are learned from."""
        return self.weights > 0


@dataclass(slots=True)
class UnlabeledBatch:
    """Everything a term may look at. B counts strong views (M per image, flattened).

    student_heatmaps (B, K, h, w): raw output of the student's head on the strong views.
    heatmap_kind: 'logits' | 'heatmap' (see geometry.heatmap.probability).
    student_keypoints (B, K, 2): soft-argmax, strong-view input pixels before the view's distortion, carries
    the gradient.
    student_from_teacher (B, 3, 3): heatmap pixels of pseudo_labels.probability -> of the strong view.
    heatmap_from_strong (3, 3): strong-view input pixels -> heatmap pixels.
    strong_from_image, target_from_image (B, 3, 3): image pixels -> strong-view input / target-map pixels.
    strong_size: (width, height) of a strong view. bbox_scale (B,): sqrt(w * h) of the instance's box, image
    pixels.
    targets: 'depth' (B, 1, H, W) float32, 'normal' (B, 3, H, W), 'mask' (B, 1, H, W) bool; empty dict
    without a store.
    step: optimiser steps done so far.
    gain: of the targets' depth, where it is known already; terms that need it work it out otherwise.
    distortion: (forward, inverse) lattices (B, n, n, 2) of strong views that are not affine
    (geometry.distortion): plain strong view -> the one that the student sees, and back.
    student_features (B, C, h', w'): the student's last features, carrying the gradient; for terms with a
    layer of their own.
    """

    student_heatmaps: Tensor
    heatmap_kind: str
    student_keypoints: Tensor
    student_from_teacher: Tensor
    heatmap_from_strong: Tensor
    strong_from_image: Tensor
    target_from_image: Tensor
    strong_size: tuple[int, int]
    bbox_scale: Tensor
    pseudo_labels: PseudoLabels
    targets: dict[str, Tensor]
    step: int
    gain: Gain | None = None
    distortion: tuple[Tensor, Tensor] | None = None
    student_features: Tensor | None = None


@dataclass(slots=True)
class TermOutput:
    """A term's mean over what it kept, and scalars to log (0-d tensors, reduced at the log interval)."""

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)
