"""Which joints may be learned from, by their confidence: running statistics, a rule, floors.

The statistics are over kept and dropped joints alike (over the kept alone they would drift upward) and over
all processes; as buffers they are saved and resumed. The rules themselves are in ``thresholds``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.semi import thresholds
from sagecache.semi.reduction import over_processes
from sagecache.strict import share as require_share

RULES = ("fixed", "adaptive", "flexmatch", "freematch", "softmatch")
NEGLIGIBLE = 0.01  # a soft weight below this drops the joint
# bounds of alignment's factor: what is not even half as sure as it should be is noise; dropping is harmless
LOWEST, HIGHEST = math.log(0.1), math.log(2)
# of its steps, and their bound: gaps between modes must be crossed, and none be jumped into at the start
GAIN, STEP = 3, 0.3
BISECTIONS = 12


class FilterDecision(NamedTuple):
    """weight (B, K) in [0, 1], 0 where a joint is dropped; rescued (B, K) bool: kept by a floor alone.

    threshold (K,): confidence above which a joint is kept (the mean for 'softmatch').
    """

    weight: Tensor
    rescued: Tensor
    threshold: Tensor

    @property
    def keep(self) -> Tensor:
        return self.weight > 0


class JointStatistics(nn.Module):
    """Running mean and variance of confidence by joint, and the share of it above a threshold.

    decay in [0, 1): share that stays at each batch, with the warm-up 1 - 1/(updates + 1). Buffers: mean,
    variance, selected (K,), updates (0-d integer).
    """

    def __init__(self, num_keypoints: int, threshold: float, decay: float) -> None:
        super().__init__()
        self.threshold, self.decay = threshold, decay
        self.register_buffer("mean", torch.zeros(num_keypoints))
        self.register_buffer("variance", torch.zeros(num_keypoints))
        self.register_buffer("selected", torch.zeros(num_keypoints))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, confidence: Tensor, whole: bool = False) -> None:
        """confidence (B, K); of all processes together, and without the host's waiting for a device.

        What is not finite doesn't count; a joint of which nothing counts stands still. whole: of all that
        there is, so that nothing of the past stays.
        """
        counts = confidence.isfinite()
        confidence = torch.where(counts, confidence.float(), 0)
        above = counts & (confidence > self.threshold)
        each = torch.stack([confidence, confidence.square(), above.float(), counts.float()])
        sums = over_processes(each.sum(1))
        mean, square, selected = sums[:3] / sums[3].clamp_min(1)
        seen = sums[3] > 0
        self.updates += seen.any()
        rate = seen.float() if whole else self.rate * seen
        self.mean.lerp_(mean, rate)
        # spread about the running mean, not within the batch, whose own mean moves with its pictures
        spread = square - 2 * self.mean * mean + self.mean.square()
        self.variance.lerp_(spread.clamp_min(0), rate)
        self.selected.lerp_(selected, rate)

    @property
    def rate(self) -> Tensor:
        """Share of the last batch in the statistics; a tensor, so that the host need not wait."""
        return (1 / self.updates.clamp_min(1)).clamp(min=1 - self.decay)


class KeypointFilter(nn.Module):
    """Confidence -> weight of each joint.

    rule: 'fixed' keeps what is above ``threshold``; 'adaptive' above mean - beta sd within limits;
    'flexmatch', 'freematch' lower the threshold of joints learned late; 'softmatch' weighs instead (see
    ``thresholds``). threshold in [0, 1] in units of `geometry.heatmap.decode` also says what counts as
    selected. decay: of the running statistics.
    warm_up: batches (or calls of `measure`) in which every joint is kept. min_keep: share of each sample's
    joints that is kept whatever the rule says, the best ones; percentile: likewise of each joint's samples
    in a batch.
    visible (K,): share of labeled bodies that shows each joint; given, each joint's confidence is raised or
    lowered, to its double or a tenth at most, until as large a share is selected: distribution alignment
    (ReMixMatch, Berthelot et al. 2020) for two outcomes, where we move the factor by what is still missing
    after it rather than set it to a quotient of shares. Buffer log_factor (K,), with visible alone.
    """

    def __init__(
        self,
        num_keypoints: int,
        threshold: float = 0.5,
        rule: Literal["fixed", "adaptive", "flexmatch", "freematch", "softmatch"] = "fixed",
        decay: float = 0.99,
        beta: float = 1.0,
        limits: tuple[float, float] = (0.1, 0.9),
        warm_up: int = 0,
        min_keep: float = 0.0,
        percentile: float = 0.0,
        visible: Tensor | None = None,
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise SagecacheError(f"unknown rule '{rule}' of the filter", fix=nearest(str(rule), RULES))
        for name, value in (("threshold", threshold), ("min_keep", min_keep), ("percentile", percentile)):
            require_share(f"the filter's {name}", value)
        if not 0 <= decay < 1:
            raise SagecacheError(f"the filter's decay is {decay}, it must be in [0, 1)")
        if not 0 <= limits[0] <= limits[1] <= 1:
            raise SagecacheError(f"the filter's limits are {tuple(limits)}, they rise within [0, 1]")
        if warm_up < 0 or beta < 0:
            raise SagecacheError(f"the filter's warm_up and beta are {warm_up} and {beta}, they are >= 0")
        self.rule, self.threshold, self.beta, self.limits = rule, threshold, beta, tuple(limits)
        self.warm_up, self.min_keep, self.percentile = warm_up, min_keep, percentile
        self.statistics = JointStatistics(num_keypoints, threshold, decay)
        self.register_buffer("visible", visible, persistent=False)
        self.register_buffer("log_factor", None if visible is None else torch.zeros(num_keypoints))

    @torch.no_grad()
    def forward(self, confidence: Tensor) -> FilterDecision:
        """confidence (B, K) in [0, 1], or not finite: dropped. In training mode the statistics move first."""
        if self.training:
            self.statistics.update(confidence)
        seen = self._seen(confidence)
        weight = self._weight(seen)
        if self.training and self.visible is not None:
            step = (GAIN * self.statistics.rate).clamp(max=STEP)
            moved = self.log_factor + step * self._missing(weight, confidence.isfinite())
            self.log_factor.copy_(moved.clamp(LOWEST, HIGHEST))
        floor = self._floor(seen)
        rescued = floor & (weight == 0)
        return FilterDecision(torch.where(rescued, 1, weight), rescued, self.threshold_by_joint)

    @torch.no_grad()
    def measure(self, confidence: Tensor) -> bool:
        """Statistics and alignment of all instances at once, confidence (N, K), in place of running ones.

        To be called by every process, with its part or with all. Returns whether decisions depend on them.
        """
        self.statistics.update(confidence, whole=True)
        if self.visible is not None:
            low, high = torch.full_like(self.log_factor, LOWEST), torch.full_like(self.log_factor, HIGHEST)
            for _ in range(BISECTIONS):
                self.log_factor.copy_((low + high) / 2)
                missing = self._missing(self._weight(self._seen(confidence)), confidence.isfinite()) > 0
                low = torch.where(missing, self.log_factor, low)
                high = torch.where(missing, high, self.log_factor)
        return self.rule != "fixed" or self.visible is not None or self.warm_up > 0

    @property
    def least(self) -> float:
        """Confidence that the rule asks of every joint, whatever the statistics; floors may take less.

        Of 'flexmatch' what it asks of the joint that is learned best; 'freematch' and 'softmatch' have none.
        """
        known = dict(fixed=self.threshold, flexmatch=self.threshold, adaptive=self.limits[0])
        return known.get(self.rule, 0.0)

    @property
    def threshold_by_joint(self) -> Tensor:
        """(K,): confidence above which a joint is kept now (the mean for 'softmatch')."""
        statistics = self.statistics
        if self.rule == "adaptive":
            mean, variance = statistics.mean, statistics.variance
            return thresholds.adaptive(mean, variance, self.beta, *self.limits)
        if self.rule == "flexmatch":
            return thresholds.flexmatch(self.threshold, statistics.selected)
        if self.rule == "freematch":
            return thresholds.freematch(statistics.mean)
        if self.rule == "softmatch":
            return statistics.mean
        return torch.full_like(statistics.mean, self.threshold)

    def _seen(self, confidence: Tensor) -> Tensor:
        """Aligned; what is not finite lies below every threshold and floor."""
        seen = torch.where(confidence.isfinite(), confidence.float(), -1)
        return seen if self.visible is None else thresholds.aligned(seen, self.log_factor)

    def _weight(self, confidence: Tensor) -> Tensor:
        """By the rule alone, (B, K) in [0, 1]."""
        if self.rule != "softmatch":
            return (confidence > self.threshold_by_joint).to(confidence.dtype)
        weight = thresholds.softmatch(confidence, self.statistics.mean, self.statistics.variance)
        return torch.where(weight < NEGLIGIBLE, 0, weight)

    def _missing(self, weight: Tensor, counts: Tensor) -> Tensor:
        """What each joint's mean weight lacks of its visible share, (K,); 0 where nothing counts."""
        weight, count = over_processes(torch.stack([weight.sum(0), counts.sum(0).to(weight.dtype)]))
        return torch.where(count > 0, self.visible - weight / count.clamp_min(1), 0)

    def _floor(self, confidence: Tensor) -> Tensor:
        floor = (self.statistics.updates <= self.warm_up).expand(confidence.shape) & bool(self.warm_up)
        if self.min_keep:
            floor = floor | thresholds.top_of_sample(confidence, self.min_keep)
        if self.percentile:
            floor = floor | thresholds.top_of_joint(confidence, self.percentile)
        return floor & (confidence >= 0)
