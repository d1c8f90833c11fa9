"""Is one report better than another? Paired bootstrap over images, for AP as well as for PCK.

AP is not a mean over images, so `RankedDetections` keeps what pycocotools decided for each detection, and
recomputes AP for any weighting of the images without matching anything again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sagecache.errors import SagecacheError, nearest

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

    from sagecache.evaluation.keypoints import KeypointReport

RANKED_METRICS = ("AP", "AP50", "AP75", "AR")


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


def paired_bootstrap(
    report_a: KeypointReport | Sequence[KeypointReport],
    report_b: KeypointReport | Sequence[KeypointReport],
    metric: str = "PCK@0.05",
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """a - b of a metric and its 95% interval, images drawn with replacement, the same ones for a and b.

    A sequence of reports (seeds of one arm) counts by the mean of its metric; the interval then holds for
    these seeds. metric: AP, AP50, AP75, AR, PCK@t. Returns (difference, low, high) as fractions. Raises
    SagecacheError where the reports are not about the same images.
    """
    arms = [_as_list(report_a), _as_list(report_b)]
    first = arms[0][0]
    for report in arms[0] + arms[1]:
        if not np.array_equal(report.image_ids, first.image_ids):
            raise SagecacheError(
                "these reports are about different images", fix="Evaluate both on one split, with one --limit"
            )
        if (report.area_rule, report.normaliser) != (first.area_rule, first.normaliser):
            raise SagecacheError("these reports use different area rules or normalisers")
    measures = [[_measure(report, metric) for report in arm] for arm in arms]

    def difference(weights: np.ndarray) -> float:
        a, b = (np.mean([measure(weights) for measure in arm]) for arm in measures)
        return float(a - b)

    count = len(first.image_ids)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=n).astype(np.float64)
    samples = np.array([difference(weights) for weights in draws])
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return difference(np.ones(count)), float(low), float(high)


def _as_list(reports) -> list[KeypointReport]:
    return list(reports) if isinstance(reports, Sequence) else [reports]


def _measure(report: KeypointReport, metric: str):
    """weights (I,) -> value of the metric."""
    if metric in RANKED_METRICS:
        return lambda weights: report.ranking.value(metric, weights)
    sums = report.per_image()
    names = [name for name in sums if name.startswith("PCK@")]
    if metric not in names:
        raise SagecacheError(f"unknown metric '{metric}'", fix=nearest(metric, [*RANKED_METRICS, *names]))
    correct, labelled = sums[metric], sums["labelled"]

    def pck(weights: np.ndarray) -> float:
        total = weights @ labelled
        return float(weights @ correct / total) if total else float("nan")

    return pck
