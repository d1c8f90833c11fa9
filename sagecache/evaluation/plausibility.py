"""Which predicted skeletons no true body of a split shows: limbs too long, or unlike their mirror side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.measure import limb_lengths

TAIL = 0.005  # of true limbs that lie beyond a bound


@dataclass(frozen=True, eq=False)
class BodyRange:
    """longest (L,): limb lengths by the square root of the box's area. unlike (P,): |log(left / right)|.

    Only upper bounds: in a picture a limb may look as short as one likes.
    """

    skeleton: Skeleton
    longest: np.ndarray
    unlike: np.ndarray

    @classmethod
    def of(cls, keypoints: np.ndarray, bboxes: np.ndarray, skeleton: Skeleton) -> BodyRange:
        """keypoints (N, K, 3) of true bodies, image pixels, v > 0 where known; bboxes (N, 4) xywh."""
        lengths, unlike = _measure(keypoints, bboxes, skeleton)
        return cls(skeleton, _bound(lengths), _bound(unlike))

    def outside(self, keypoints: np.ndarray, bboxes: np.ndarray) -> np.ndarray:
        """(N,) bool: any limb beyond its bound. keypoints as in `of`; of predictions all joints count."""
        lengths, unlike = _measure(keypoints, bboxes, self.skeleton)
        return (lengths > self.longest).any(1) | (unlike > self.unlike).any(1)  # NaN is not beyond


def _bound(values: np.ndarray) -> np.ndarray:
    """(M,) of (N, M); infinite where nothing was measured."""
    known = [column[np.isfinite(column)] for column in values.T]
    return np.array([np.quantile(one, 1 - TAIL) if len(one) else np.inf for one in known])


def _measure(keypoints: np.ndarray, bboxes: np.ndarray, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray]:
    """Limb lengths (N, L) in units of the box and left/right differences (N, P), NaN where unknown."""
    edges = skeleton.limb_edges
    known = (np.asarray(keypoints)[..., 2] > 0)[:, edges].all(-1)
    size = np.sqrt(np.prod(np.asarray(bboxes, np.float64)[:, 2:4], axis=1))
    lengths = np.where(known, limb_lengths(keypoints, edges) / size[:, None], np.nan)
    pairs = skeleton.mirrored_limbs
    with np.errstate(divide="ignore", invalid="ignore"):
        unlike = np.abs(np.log(lengths[:, pairs[:, 0]] / lengths[:, pairs[:, 1]]))
    return lengths, unlike
