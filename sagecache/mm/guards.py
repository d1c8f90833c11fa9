"""What looks at a semi-supervised training without touching it, above all the collapse alarm.

The alarm watches scalars that are logged anyway, at the log interval only.

MATHS behind it (Xie et al., ICCV 2021): with a mean squared error between maps the network that sees nothing
is a near-minimum of consistency, and every method of pseudo-labels stops learning where its filter lets
nothing through, or everything.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS

from sagecache.errors import SagecacheError
from sagecache.mm.probe import build_probe
from sagecache.project import Project, Recipe
from sagecache.project.recipe import GuardSettings

logger = logging.getLogger(__name__)

PEAK, KEPT = "train/consistency_student_peak", "train/keep_mean"

FADED = (
    "it sees less and less on unlabeled images. Usual causes: loss='mse', which an empty map all but "
    "minimises; a softmax of raw heatmaps; wrong pseudo labels that a low threshold lets through; a teacher "
    "that follows its student too closely. Try semi.terms.consistency.loss='kl', a higher "
    "semi.pseudo_labels.threshold, a higher ema_decay, a longer semi.ramp_up, a weaker weight of the term"
)
EMPTY = (
    "next to nothing is learned from unlabeled images. Usual causes: a teacher that is not trained yet "
    "(load_from), or thresholds in other units than its confidence. Try a lower "
    "semi.pseudo_labels.threshold, or semi.gate.threshold_confidence and threshold_plausibility"
)
NOTHING = (
    "no pseudo-label was ever kept: nothing was learned from the teacher. The shares fate/… in "
    "the log say what drops them; a floor (min_keep, percentile) saves no joint of a person that "
    "semi.instances drops. docs/sage-pose.md, 'Where no pseudo-label is kept', says what to look at"
)
FULL = (
    "the filter lets every joint through, wrong ones too. Usual causes: a threshold of 0 or below all "
    "confidences, a collapsed network that is sure of everything. Try a higher semi.pseudo_labels.threshold; "
    "where no filter is meant: guards.kept_high=1"
)


@dataclass
class CollapseWatch:
    """Plain numbers in, alarms out; knows no training loop. highest: of the mean peak, so far."""

    settings: GuardSettings
    highest: float = 0.0
    _standing: dict[str, int] = field(default_factory=dict)

    def update(self, peak: float | None, kept: float | None) -> list[str]:
        """Means over a log interval, None where a recipe logs no such thing -> alarms that begin here.

        An alarm rings once, when it has stood for ``patience`` intervals; again only after it was over.
        """
        guards, rung = self.settings, []
        if peak is not None:
            self.highest = max(self.highest, peak)  # max() skips a NaN
            text = f"the student's mean peak is {peak:.2g} on unlabeled views, and was {self.highest:.2g}"
            rung += self._stands("peak", peak < guards.peak * self.highest, f"{text}: {FADED}")
        if kept is not None:
            text = f"{100 * kept:.3g} % of the joints are learned from"
            rung += self._stands("low", kept < guards.kept_low, f"{text}: {EMPTY}")
            rung += self._stands("high", kept > guards.kept_high, f"{text}: {FULL}")
        return rung

    def _stands(self, name: str, now: bool, text: str) -> list[str]:
        self._standing[name] = self._standing.get(name, 0) + 1 if now else 0
        return [text] if self._standing[name] == self.settings.patience else []


@HOOKS.register_module()
class CollapseHook(Hook):
    """Reads the means of each log interval off mmengine's history, which is on the host by then.

    The alarm goes to the console and to the run's log; with collapse='stop' it is a SagecacheError. warm_up:
    iterations in which the filter keeps everything on purpose: their share is no alarm. A run that ends
    without one joint kept since says so, however short it was.
    """

    priority = "LOW"  # after IntervalRuntimeInfoHook has written the interval's values

    def __init__(self, settings: GuardSettings, interval: int, warm_up: int = 0) -> None:
        self.watch, self.interval, self.warm_up = CollapseWatch(settings), interval, warm_up

    def before_train(self, runner) -> None:
        """A resumed run goes on with the peak and the patience that it had: the history is watched again,
        and what rang then is not told twice.
        """
        before = (self._means(runner.message_hub.log_scalars.get(name)) for name in (PEAK, KEPT))
        for number, (peak, kept) in enumerate(zip_longest(*before)):
            self.watch.update(peak, self._past_warm_up(kept, number * self.interval))

    def _means(self, history: HistoryBuffer | None) -> list[float]:
        """Of each log interval."""
        values = [] if history is None else history.data[0]
        ends = range(self.interval, len(values) + 1, self.interval)
        return [float(values[end - self.interval : end].mean()) for end in ends]

    def _past_warm_up(self, kept: float | None, begin: int) -> float | None:
        """begin: the iteration before the interval."""
        return None if begin < self.warm_up else kept

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        scalars = runner.message_hub.log_scalars
        peak, kept = (scalars[n].mean(self.interval) if n in scalars else None for n in (PEAK, KEPT))
        kept = self._past_warm_up(kept, runner.iter + 1 - self.interval)
        for alarm in self.watch.update(peak, kept):
            text = f"iteration {runner.iter + 1}: for {self.watch.settings.patience} log intervals {alarm}"
            if self.watch.settings.collapse == "stop":
                told, _, fix = text.partition(". Try ")
                raise SagecacheError(told, fix=f"Try {fix}. guards.collapse='warn' goes on.")
            logger.warning("%s", text)
            runner.logger.warning(text)

    def after_train(self, runner) -> None:
        history = runner.message_hub.log_scalars.get(KEPT)
        kept = () if history is None else history.data[0][self.warm_up :]
        if len(kept) and not max(kept) > 0:
            logger.warning(NOTHING)
            runner.logger.warning(NOTHING)


def watchers(project: Project, recipe: Recipe, model: dict, val_interval: int) -> list[Hook]:
    """The hooks of a recipe that learns from unlabeled images: its probe and its alarm; else none."""
    if not recipe.uses_unlabeled:
        return []
    probe = build_probe(project, recipe, model, val_interval)
    hooks = [] if probe is None else [probe]
    if recipe.guards.collapse != "off":
        keys, guards = recipe.semi.pseudo_labels, recipe.guards
        if keys.get("rule") == "softmatch":  # weighs every joint, and drops none
            guards = replace(guards, kept_high=1.0)
        hooks.append(CollapseHook(guards, recipe.train_cfg.log_interval, keys.get("warm_up", 0)))
    return hooks
