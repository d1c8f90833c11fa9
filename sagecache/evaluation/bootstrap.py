"""Is one report better than another? Paired bootstrap over images, for AP as well as for PCK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sagecache.errors import SagecacheError, nearest

if TYPE_CHECKING:
    from sagecache.evaluation.keypoints import KeypointReport

RANKED_METRICS = ("AP", "AP50", "AP75", "AR")


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
    correct, labeled = sums[metric], sums["labeled"]

    def pck(weights: np.ndarray) -> float:
        total = weights @ labeled
        return float(weights @ correct / total) if total else float("nan")

    return pck
