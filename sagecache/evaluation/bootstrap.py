"""Is one arm better than another? Intervals for seeds and test images together, for AP as well as for PCK.

A figure hangs on the seeds (labels, batches, start weights) and on the images it is measured on, which are
the same for all seeds. So each draw of the bootstrap takes both with replacement, the same ones for
all arms: images, which move the mean over the seeds, and seeds, whose mean on all images moves beside it
(taken together, as in the pigeonhole bootstrap of Owen, Annals of Applied Statistics 2007, the part in which
seeds and images act on each other would count three times). Few seeds understate how far seeds lie apart:
their weights are spread about their mean by sqrt(S / (S - 1)) and by Student's quantile over the normal one,
so that the interval of seeds alone is close to Student's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri, stdtrit

from sagecache.errors import SagecacheError, nearest

if TYPE_CHECKING:
    from sagecache.evaluation.keypoints import KeypointReport

RANKED_METRICS = ("AP", "AP50", "AP75", "AR")
TAIL = 0.025  # of a 95 % interval, on each side


@dataclass(frozen=True)
class Estimate:
    """A figure (NaN: can't be had), its 95 % interval (infinite where unknown), and each seed's figure."""

    value: float
    low: float
    high: float
    by_seed: dict[int, float]


class ArmBootstrap:
    """Figures of arms, each measured with several seeds on the same images.

    arms: name -> seed -> report. metric: AP, AP50, AP75, AR, PCK@t. n draws. What involves several arms is
    told of the seeds that all of them have. Raises SagecacheError where the reports are not about the same
    images or not measured by the same rules.
    """

    def __init__(
        self,
        arms: Mapping[str, Mapping[int, KeypointReport]],
        metric: str = "PCK@0.05",
        n: int = 1000,
        seed: int = 0,
    ) -> None:
        reports = [report for seeds in arms.values() for report in seeds.values()]
        _require_alike(reports)
        count = len(reports[0].image_ids) if reports else 0
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=n)
        # the first row is the data as they are
        images = np.concatenate([np.ones((1, count)), drawn]).astype(np.float64)
        self._seed, self._draws = seed, n
        self._figures = {
            name: {number: _measure(report, metric)(images) for number, report in seeds.items()}
            for name, seeds in arms.items()
        }

    def contrast(self, weights: Mapping[str, float]) -> Estimate:
        """Weighted sum of arms' figures: {'a': 1, 'b': -1} is the paired difference a - b."""
        return self._estimate(
            list(weights), lambda *figures: sum(w * f for w, f in zip(weights.values(), figures, strict=True))
        )

    def mean(self, arm: str) -> Estimate:
        return self.contrast({arm: 1.0})

    def gap_closed(self, arm: str, floor: str, ceiling: str) -> Estimate:
        """(arm - floor) / (ceiling - floor); the ratio of means over seeds, not the mean of ratios.

        Its interval is infinite where the ceiling can't be told from the floor (as Fieller's).
        """

        def ratio(figure: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
            gap = high - low
            return (figure - low) / np.where(gap > 0, gap, np.nan)

        return self._estimate([arm, floor, ceiling], ratio)

    def _estimate(self, arms: Sequence[str], function: Callable[..., np.ndarray]) -> Estimate:
        seeds = sorted(set.intersection(*(set(self._figures[arm]) for arm in arms)))
        if not seeds:
            return Estimate(math.nan, math.nan, math.nan, {})
        figures = [np.stack([self._figures[arm][one] for one in seeds], 1) for arm in arms]  # (1 + n, S)
        weights = seed_weights(len(seeds), self._draws, np.random.default_rng(self._seed + 1))
        samples = function(*(one[1:].mean(1) + (weights * one[0]).sum(1) - one[0].mean() for one in figures))
        low, high = -math.inf, math.inf
        if np.isfinite(samples).mean() >= 1 - 2 * TAIL:
            low, high = np.nanquantile(samples, [TAIL, 1 - TAIL])
        value = function(*(one[:1].mean(1) for one in figures))
        by_seed = function(*(one[0] for one in figures))
        return Estimate(
            float(value[0]), float(low), float(high), dict(zip(seeds, map(float, by_seed), strict=True))
        )


def seed_weights(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, count), each row's sum 1: what each seed counts in a draw; see the module."""
    if count == 1:
        return np.ones((draws, 1))
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
    student = stdtrit(count - 1, 1 - TAIL) / ndtri(1 - TAIL)
    return 1 / count + (drawn - 1 / count) * math.sqrt(count / (count - 1)) * student


def paired_bootstrap(
    report_a: KeypointReport, report_b: KeypointReport, metric: str = "PCK@0.05", n: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """a - b of a metric for two trained networks, and its 95 % interval over the choice of images.

    Returns (difference, low, high) as fractions. Raises SagecacheError as `ArmBootstrap`.
    """
    found = ArmBootstrap({"a": {0: report_a}, "b": {0: report_b}}, metric, n, seed)
    difference = found.contrast({"a": 1, "b": -1})
    return difference.value, difference.low, difference.high


def _require_alike(reports: Sequence[KeypointReport]) -> None:
    for report in reports[1:]:
        if not np.array_equal(report.image_ids, reports[0].image_ids):
            raise SagecacheError(
                "these reports are about different images", fix="Evaluate both on one split, with one --limit"
            )
        if (report.area_rule, report.normaliser) != (reports[0].area_rule, reports[0].normaliser):
            raise SagecacheError("these reports use different area rules or normalisers")


def _measure(report: KeypointReport, metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """Weights of images (N, I) -> values of the metric (N,)."""
    if metric in RANKED_METRICS:
        return lambda weights: np.array([report.ranking.value(metric, one) for one in weights])
    sums = report.per_image()
    names = [name for name in sums if name.startswith("PCK@")]
    if metric not in names:
        raise SagecacheError(f"unknown metric '{metric}'", fix=nearest(metric, [*RANKED_METRICS, *names]))

    def pck(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ sums[metric]) / (weights @ sums["labeled"])

    return pck
