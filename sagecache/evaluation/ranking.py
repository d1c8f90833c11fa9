"""What AP is made of: ranked detections, and what pycocotools decided for each of them.

AP is no mean over images. With the decisions at hand it can be had for any weighting of the images, without
matching anything again; a bootstrap needs that a thousand times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """D detections of all images, best score first, at T OKS thresholds.

    image (D,): row of the sorted image ids. hit, miss (T, D) bool: true, false positive (neither: ignored).
    positives (I,): persons that count, by image. recalls (R,): where precision is read.
    """

    image: np.ndarray
    hit: np.ndarray
    miss: np.ndarray
    positives: np.ndarray
    recalls: np.ndarray

    @classmethod
    def from_cocoeval(cls, judge: COCOeval) -> RankedDetections:
        """Take the matches of the 'all' area range from a COCOeval after evaluate(), one category."""
        count, most = len(judge.params.imgIds), judge.params.maxDets[-1]
        thresholds = len(judge.params.iouThrs)
        positives = np.zeros(count, dtype=np.int64)
        images, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
        matched, ignored = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
        for row, found in enumerate(judge.evalImgs[:count]):  # the first area range is 'all'
            if found is None:
                continue
            positives[row] = np.count_nonzero(np.asarray(found["gtIgnore"]) == 0)
            scores.append(np.asarray(found["dtScores"][:most], dtype=np.float64))
            images.append(np.full(len(scores[-1]), row))
            matched.append(np.asarray(found["dtMatches"])[:, :most] != 0)
            ignored.append(np.asarray(found["dtIgnore"])[:, :most].astype(bool))
        order = np.argsort(-np.concatenate(scores), kind="mergesort")
        hit, skip = np.concatenate(matched, axis=1)[:, order], np.concatenate(ignored, axis=1)[:, order]
        recalls = np.asarray(judge.params.recThrs)
        return cls(np.concatenate(images)[order], hit & ~skip, ~hit & ~skip, positives, recalls)

    def value(self, metric: str, weights: np.ndarray) -> float:
        """AP, AP50, AP75 or AR with each image counted weights (I,) times; NaN without persons."""
        total = float(weights @ self.positives)
        if total == 0:
            return float("nan")
        rows = {"AP50": slice(0, 1), "AP75": slice(5, 6)}.get(metric, slice(None))
        weight = weights[self.image]
        hits = np.cumsum(self.hit[rows] * weight, axis=1)
        if metric == "AR":
            return float(hits[:, -1].mean() / total) if hits.shape[1] else 0.0
        misses = np.cumsum(self.miss[rows] * weight, axis=1)
        precision = hits / (hits + misses + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        read = np.zeros((len(precision), len(self.recalls)))
        for t, recall in enumerate(hits / total):
            at = np.searchsorted(recall, self.recalls, side="left")
            reached = at < len(recall)
            read[t, reached] = precision[t, at[reached]]
        return float(read.mean())
