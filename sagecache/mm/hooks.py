"""Training-loop pieces that mmengine lacks: EMA once per optimiser step, a stream that resumes without
reading what came before, logging that waits for the device at the log interval only, progress."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import IterBasedTrainLoop

from sagecache.mm.samples import unpacked

MAX_SEED = 10**9  # what SemiHook makes of it must fit into torch's 64 bits


def unwrap(model):
    return model.module if is_model_wrapper(model) else model


@HOOKS.register_module()
class SemiHook(Hook):
    """Tells the model its optimiser step, updates the EMA, seeds each step with (seed, rank, iteration).

    The seed makes a resumed run draw what the undisturbed run would have drawn.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int = 0, rank: int = 0) -> None:
        self.seed, self.rank = seed, rank

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        # micro-steps of an accumulated gradient belong to one optimiser step
        unwrap(runner.model).step = runner.iter // runner.optim_wrapper._accumulative_counts
        torch.manual_seed((self.seed * 1000 + self.rank) * 10_000_019 + runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        wrapper = runner.optim_wrapper
        if wrapper.should_update():  # this iteration ended in an optimiser step, not in a micro-step
            unwrap(runner.model).update_ema(runner.iter // wrapper._accumulative_counts)


@HOOKS.register_module()
class IntervalRuntimeInfoHook(RuntimeInfoHook):
    """RuntimeInfoHook copies every scalar to the host in every step; this one does it every ``interval``."""

    def __init__(self, interval: int = 10) -> None:
        super().__init__()
        self.interval, self._waiting = interval, []

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if outputs is not None:
            self._waiting.append(outputs)
        if not (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            return
        waiting, self._waiting = self._waiting, []
        for values in waiting:
            super().after_train_iter(runner, batch_idx, data_batch, values)


@HOOKS.register_module()
class ProgressHook(Hook):
    """Reports ``(done, total, message)`` with the losses that matter; ``report`` comes from the caller."""

    priority = "LOW"

    def __init__(self, report: Callable[..., None], interval: int = 10) -> None:
        self.report, self.interval = report, interval

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self.report(runner.iter + 1, runner.max_iters, self._message(runner))

    def _message(self, runner) -> str:
        scalars = runner.message_hub.log_scalars
        shown = []
        for key in sorted(scalars):
            name = key.removeprefix("train/")
            if key.startswith("train/") and (
                name.startswith("loss") or name in ("keep_mean", "num_use_teacherA")
            ):
                shown.append(f"{name.removeprefix('loss_')} {scalars[key].current():.3g}")
        return "  ".join(shown)


@LOOPS.register_module()
class StreamTrainLoop(IterBasedTrainLoop):
    """IterBasedTrainLoop whose resumed run starts its sampler at the resumed step.

    mmengine reads and drops every batch before it, which for long runs takes hours of decoding.
    """

    def run(self):
        done = self._iter
        self.dataloader.sampler.start_step = done
        # The parent drops `done` batches before it starts: hand it that many empty ones.
        batches = map(unpacked, self.dataloader)
        self.dataloader_iterator = itertools.chain(itertools.repeat({}, done), batches)
        return super().run()
