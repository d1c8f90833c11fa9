"""Training-loop pieces that mmengine lacks: EMA once per optimiser step, a stream that resumes without
reading what came before, logging that waits for the device at the log interval only, progress."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine import dist
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import IterBasedTrainLoop

from sagecache.errors import SagecacheError
from sagecache.mm.samples import unpacked


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

    def before_train(self, runner) -> None:
        """Of a resumed run the best checkpoint lies in this folder, wherever the run was before.

        mmengine keeps its absolute path and deletes that file for a better one.
        """
        hub = runner.message_hub
        best = hub.runtime_info.get("best_ckpt")
        if best is None:
            return
        here = Path(runner.work_dir) / Path(best).name
        if here.is_file():
            hub.update_info("best_ckpt", str(here))
        else:
            hub.pop_info("best_ckpt")
            hub.pop_info("best_score", None)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        # micro-steps of an accumulated gradient belong to one optimiser step
        unwrap(runner.model).step = runner.iter // runner.optim_wrapper._accumulative_counts
        torch.manual_seed((self.seed * 1000 + self.rank) * 10_000_019 + runner.iter)

    def before_val_epoch(self, runner) -> None:
        """Every process judges the network of the checkpoint, which the first one wrote: since the last
        forward pass their batch statistics went different ways.
        """
        model = unwrap(runner.model)
        for teacher in (model.ema_teacher, model.appearance_teacher):
            for buffer in () if teacher is None else teacher.buffers():
                dist.broadcast(buffer)

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
    """Reports ``(done, total, message)`` with the losses that matter; ``report`` comes from the caller.

    Raises SagecacheError where a loss is no longer a number: no later step could mend the weights.
    """

    priority = "LOW"

    def __init__(self, report: Callable[..., None], interval: int = 10) -> None:
        self.report, self.interval = report, interval

    def before_train(self, runner) -> None:
        """The speed counts from here, so that a run of one interval has one."""
        self.report(runner.iter, runner.max_iters)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            scalars = runner.message_hub.log_scalars
            names = [key.removeprefix("train/") for key in sorted(scalars) if key.startswith("train/")]
            values = {name: scalars[f"train/{name}"].current() for name in names}
            self._require_finite(values, runner.iter + 1)
            self.report(runner.iter + 1, runner.max_iters, self._message(values))

    @staticmethod
    def _require_finite(values: dict[str, float], iteration: int) -> None:
        for name, value in values.items():
            if name.startswith("loss") and not math.isfinite(value):
                raise SagecacheError(
                    f"{name} is {value} at iteration {iteration}",
                    fix="Lower the learning rate, or clip: optim_wrapper = dict(clip_grad=dict(max_norm=1)).",
                )

    @staticmethod
    def _message(values: dict[str, float]) -> str:
        matters = [n for n in values if n.startswith("loss") or n in ("keep_mean", "num_use_teacherA")]
        return "  ".join(f"{name.removeprefix('loss_')} {values[name]:.3g}" for name in matters)


@HOOKS.register_module()
class JointLogHook(Hook):
    """Logs by joint, since the last interval: share kept, mean confidence, threshold of the filter.

    Sums on the device and asks it once an interval. names (K): of the joints.
    """

    def __init__(self, names: Sequence[str], interval: int = 10) -> None:
        self.names, self.interval = tuple(names), interval
        self._sum, self._count = None, 0

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        labels, labeler = unwrap(runner.model).last_labels, unwrap(runner.model).labeler
        if labels is None:
            return
        rows = torch.stack([labels.keep.float().mean(0), labels.confidence.mean(0)])
        self._sum = rows if self._sum is None else self._sum + rows
        self._count += 1
        if not (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            return
        means = torch.cat([self._sum / self._count, labeler.keypoint_filter.threshold_by_joint[None]])
        self._sum, self._count = None, 0
        figures = {
            f"joints/{kind}/{name}": value
            for kind, values in zip(("kept", "confidence", "threshold"), means.tolist(), strict=True)
            for name, value in zip(self.names, values, strict=True)
        }
        # a row of its own: in the message hub they would make each line of the log three screens long
        runner.visualizer.add_scalars(figures, step=runner.iter + 1)


@HOOKS.register_module()
class ResumedValidationHook(Hook):
    """A checkpoint is written just before its validation: a run that was killed between the two and goes on
    validates first, so that no candidate for the best checkpoint is lost. Else it repeats harmlessly.
    """

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        due = runner.iter % loop.val_interval == 0 or runner.iter == loop.max_iters
        if runner.val_loop is not None and due and runner.iter >= max(loop.val_begin, 1):
            runner.val_loop.run()


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
