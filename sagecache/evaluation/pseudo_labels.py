"""Are the joints that are learned from right? Pseudo labels of labeled persons against the truth.

Judged as PCK is (`sagecache.evaluation.keypoints`): a joint is right within threshold x normaliser of the
true box. Only joints with v > 0 can be judged, so every share is of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sagecache.errors import SagecacheError, nearest
from sagecache.evaluation.keypoints import NORMALISERS


@dataclass(frozen=True, eq=False)
class PseudoLabelReport:
    """Counts (K,) int64 by joint; two reports add up to that of both sets.

    labeled: joints that can be judged; kept: of these, learned from; right: of the kept; rescued: kept below
    the threshold. paired: kept, and the mirror partner's truth is known too; swapped: of these, wrong and
    nearer to the partner's truth than to their own.
    """

    labeled: np.ndarray
    kept: np.ndarray
    right: np.ndarray
    rescued: np.ndarray
    paired: np.ndarray
    swapped: np.ndarray

    def counts(self) -> np.ndarray:
        """(6, K), in the order of the fields; ``PseudoLabelReport(*counts)`` is the way back."""
        return np.stack([self.labeled, self.kept, self.right, self.rescued, self.paired, self.swapped])

    def __add__(self, other: PseudoLabelReport) -> PseudoLabelReport:
        return PseudoLabelReport(*(self.counts() + other.counts()))

    @property
    def precision(self) -> float:
        """Share of kept joints that are right; NaN where none is kept."""
        return _share(self.right.sum(), self.kept.sum())

    @property
    def kept_share(self) -> float:
        return _share(self.kept.sum(), self.labeled.sum())

    @property
    def rescued_share(self) -> float:
        """Of the kept joints."""
        return _share(self.rescued.sum(), self.kept.sum())

    @property
    def swapped_share(self) -> float:
        """Of the kept joints whose partner's truth is known."""
        return _share(self.swapped.sum(), self.paired.sum())

    @property
    def precision_per_joint(self) -> np.ndarray:
        """(K,), NaN where none is kept."""
        return _shares(self.right, self.kept)

    @property
    def kept_per_joint(self) -> np.ndarray:
        """(K,), NaN where none is labeled."""
        return _shares(self.kept, self.labeled)

    def scalars(self, names: Sequence[str]) -> dict[str, float]:
        """Figures for a log, without those that nothing was counted for. names (K,): of the joints."""
        values = {
            "precision": self.precision,
            "kept": self.kept_share,
            "rescued": self.rescued_share,
            "swapped": self.swapped_share,
        }
        for what, shares in (("precision", self.precision_per_joint), ("kept", self.kept_per_joint)):
            values |= {f"{what}/{name}": float(one) for name, one in zip(names, shares, strict=True)}
        return {name: value for name, value in values.items() if not np.isnan(value)}


def judge(
    keypoints: np.ndarray,
    keep: np.ndarray,
    rescued: np.ndarray,
    truth: np.ndarray,
    sides: np.ndarray,
    flip_indices: np.ndarray,
    *,
    threshold: float = 0.05,
    normaliser: str = "diagonal",
) -> PseudoLabelReport:
    """keypoints (N, K, 2) and truth (N, K, 3; x, y, v) in image pixels; keep and rescued (N, K) bool; sides
    (N, 2): width and height of the true boxes; flip_indices (K,): each joint's mirror partner.

    Raises SagecacheError for an unknown normaliser, and for a box without size.
    """
    if normaliser not in NORMALISERS:
        raise SagecacheError(f"unknown normaliser '{normaliser}'", fix=nearest(normaliser, NORMALISERS))
    size = np.linalg.norm(sides, axis=-1) if normaliser == "diagonal" else sides.max(-1)
    if not (size > 0).all():
        raise SagecacheError("box has no size", record=f"person {int(np.argmin(size))}")
    labeled = truth[..., 2] > 0
    kept = keep & labeled
    own = np.linalg.norm(keypoints - truth[..., :2], axis=-1)
    partner = np.linalg.norm(keypoints - truth[:, flip_indices, :2], axis=-1)
    right = own <= threshold * size[:, None]
    paired = kept & labeled[:, flip_indices] & (flip_indices != np.arange(len(flip_indices)))
    masks = (labeled, kept, kept & right, kept & rescued, paired, paired & ~right & (partner < own))
    return PseudoLabelReport(*(mask.sum(0, dtype=np.int64) for mask in masks))


def _share(part: np.integer, whole: np.integer) -> float:
    return float(part / whole) if whole else float("nan")


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return part / whole
