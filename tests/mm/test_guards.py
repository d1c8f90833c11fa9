"""When the collapse alarm rings, by plain numbers; and that it reads no more than what is logged."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from dots import write_dots_project
from mmengine.logging import MessageHub

from sagecache.errors import SagecacheError
from sagecache.mm.guards import KEPT, PEAK, CollapseHook, CollapseWatch, watchers
from sagecache.mm.probe import ProbeHook
from sagecache.project import Project
from sagecache.project.recipe import GuardSettings

NAN = float("nan")


def alarms(peaks, kept=None, **settings) -> list[int]:
    """The intervals at which an alarm rang."""
    watch = CollapseWatch(GuardSettings(**{"patience": 3, **settings}))
    kept = kept or [0.5] * len(peaks)
    return [i for i, pair in enumerate(zip(peaks, kept, strict=True)) if watch.update(*pair)]


@pytest.mark.parametrize(
    "peaks, rung",
    [
        ([0.1, 0.2, 0.4, 0.6, 0.5, 0.6, 0.55], []),  # from scratch it starts low and rises
        ([0.6, 0.6, 0.29, 0.29, 0.29, 0.2, 0.1, 0.1], [4]),  # once, when it has stood for three
        ([0.6, 0.2, 0.2, 0.6, 0.2, 0.2, 0.6], []),  # never three in a row
        ([0.6, 0.2, 0.2, 0.2, 0.5, 0.2, 0.2, 0.2], [3, 7]),  # a second time after it was over
        ([0.6, NAN, NAN, NAN, 0.31, NAN], []),  # others tell of these
        ([None] * 6, []),
    ],
)
def test_a_fading_peak(peaks, rung):
    assert alarms(peaks) == rung


@pytest.mark.parametrize(
    "kept, settings, rung",
    [
        ([0.5, 0.009, 0.0, 0.0, 0.0], {}, [3]),
        ([0.5, 0.011, 0.5, 0.02, 0.01], {}, []),
        ([1.0, 0.996, 1.0, 1.0], {}, [2]),
        ([1.0] * 5, dict(kept_high=1.0), []),
        ([0.0] * 5, dict(kept_low=0.0), []),
        ([None] * 5, {}, []),
    ],
)
def test_an_empty_and_a_full_mask(kept, settings, rung):
    assert alarms([0.5] * len(kept), kept, **settings) == rung


class Run:
    """As much of a runner as the hook looks at; values arrive every ten iterations, as they are logged."""

    def __init__(self, name: str, warm_up: int = 0, **settings) -> None:
        self.message_hub = MessageHub.get_instance(name)
        self.logger, self.iter = logging.getLogger("the run's own log"), 0
        self.hook = CollapseHook(GuardSettings(patience=2, **settings), interval=10, warm_up=warm_up)

    def interval(self, peak: float, kept: float) -> None:
        for _ in range(10):
            self.iter += 1
            if self.iter % 10 == 0:
                for wobble in range(10):
                    self.message_hub.update_scalar(PEAK, peak * (0.9 if wobble % 2 else 1.1))
                    self.message_hub.update_scalar(KEPT, kept)
            # mmengine counts from 0 within the iteration
            view = SimpleNamespace(message_hub=self.message_hub, logger=self.logger, iter=self.iter - 1)
            self.hook.after_train_iter(view, self.iter - 1)


def test_it_is_told_once_on_the_console_and_in_the_log_of_the_run(caplog):
    run = Run("guards warn")
    for peak in (0.8, 0.8, 0.3, 0.3, 0.3, 0.3):
        run.interval(peak, 0.5)
    (console, log) = caplog.records
    assert (console.name, log.name) == ("sagecache.mm.guards", "the run's own log")
    assert console.getMessage() == log.getMessage()
    text = console.getMessage()
    assert text.startswith("iteration 40: for 2 log intervals the student's mean peak is 0.3 on")
    assert "was 0.8" in text and "loss='mse'" in text and "ema_decay" in text


def test_a_filter_that_warms_up_keeps_everything_and_is_left_alone(caplog):
    run = Run("guards warm", warm_up=25)
    for _ in range(4):
        run.interval(0.8, 1.0)
    assert caplog.text == ""  # three intervals of warming up, at least in part, and one
    run.interval(0.8, 1.0)
    assert "iteration 50: for 2 log intervals 100 % of the joints" in caplog.text


def test_a_run_may_be_stopped_by_it():
    run = Run("guards stop", collapse="stop")
    run.interval(0.8, 0.0)
    with pytest.raises(SagecacheError, match="iteration 20: .* 0 % of the joints are learned from") as caught:
        run.interval(0.8, 0.0)
    assert caught.value.fix.startswith("Try a lower semi.pseudo_labels.threshold")
    assert caught.value.fix.endswith("guards.collapse='warn' goes on.")


def test_a_resumed_run_is_measured_by_the_peak_before(caplog):
    first = Run("guards resumed")
    for _ in range(3):
        first.interval(0.9, 0.5)
    again = Run("guards resumed")  # the same history, as mmengine restores it
    again.hook.before_train(SimpleNamespace(message_hub=again.message_hub))
    assert again.hook.watch.highest == pytest.approx(0.9)
    again.interval(0.3, 0.5)
    again.interval(0.3, 0.5)
    assert "mean peak is 0.3 on unlabeled views, and was 0.9" in caplog.text
    fresh = Run("guards fresh")
    fresh.hook.before_train(SimpleNamespace(message_hub=fresh.message_hub))
    assert fresh.hook.watch.highest == 0


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_resumed_run_keeps_its_patience(caplog, cut):
    course = [(0.8, 1.0), (0.8, 0.5), (0.3, 0.5), (0.3, 0.0), (0.3, 0.0), (0.3, 0.0)]
    run = Run(f"guards patience {cut}", warm_up=10)
    for number, values in enumerate(course):
        if number == cut:
            again = Run(f"guards patience {cut}", warm_up=10)
            again.iter = run.iter
            again.hook.before_train(SimpleNamespace(message_hub=again.message_hub))
            run = again
        run.interval(*values)
    told = [one.getMessage().split(":")[0] for one in caplog.records if one.name == "sagecache.mm.guards"]
    assert told == ["iteration 40", "iteration 50"]  # as without the cut: the peak, then the empty mask


@pytest.mark.parametrize(
    "name, kept, warm_up, told",
    [
        ("nothing", (0, 0), 0, True),
        ("late", (0, 0.01), 0, False),
        ("warmed", (1, 0), 10, True),
        ("still warming", (0, 0), 20, False),
    ],
)
def test_a_run_that_kept_nothing_says_so_at_its_end(caplog, name, kept, warm_up, told):
    run = Run(f"guards end {name}", warm_up=warm_up, kept_low=0.0)
    for share in kept:
        run.interval(0.5, share)
    assert caplog.text == ""
    run.hook.after_train(SimpleNamespace(message_hub=run.message_hub, logger=run.logger))
    assert ("no pseudo-label was ever kept" in caplog.text) == told
    if told:
        assert {one.name for one in caplog.records} == {"sagecache.mm.guards", "the run's own log"}
        assert "semi.instances" in caplog.text and "docs/sage-pose.md" in caplog.text


def test_without_such_scalars_it_is_silent(caplog):
    hook = CollapseHook(GuardSettings(patience=1), interval=1)
    hub = MessageHub.get_instance("guards nothing")
    hook.after_train_iter(SimpleNamespace(message_hub=hub, iter=0, logger=logging.getLogger("x")), 0)
    hook.after_train(SimpleNamespace(message_hub=hub, logger=logging.getLogger("x")))
    assert caplog.text == ""


def test_the_recipe_says_who_watches(tmp_path):
    project = Project.open(write_dots_project(tmp_path / "dots"))

    def watching(name="stage1-full", **words):
        return watchers(project, *project.recipe(name, words), val_interval=4)

    probe, alarm = watching(**{"semi.pseudo_labels.warm_up": 30, "train_cfg.log_interval": 7})
    assert isinstance(probe, ProbeHook) and (alarm.interval, alarm.warm_up) == (7, 30)
    assert alarm.watch.settings == GuardSettings()
    (soft,) = watching(**{"semi.pseudo_labels.rule": "softmatch", "data.probe": None})
    assert soft.watch.settings == GuardSettings(kept_high=1.0)  # it gives every joint some weight
    assert [type(one) for one in watching(**{"guards.collapse": "off"})] == [ProbeHook]
    assert watching("stage0") == []
