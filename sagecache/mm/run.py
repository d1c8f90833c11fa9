"""Train, evaluate and predict on mmengine's Runner. Composes; decides nothing that a recipe could say."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from sagecache.errors import SagecacheError, recipe_is
from sagecache.mm.build import build_estimator, warn_of_start
from sagecache.mm.checkpoints import Resumable, newest_readable
from sagecache.mm.compat import ddp_wrapper_cfg, init_cpu_distributed
from sagecache.mm.guards import watchers
from sagecache.mm.hooks import (
    IntervalRuntimeInfoHook,
    JointLogHook,
    ProgressHook,
    ResumedValidationHook,
    SemiHook,
)
from sagecache.mm.inputs import inputs_of
from sagecache.mm.loaders import rank, train_loader, validation_cfg, world_size
from sagecache.mm.memory import memory_advice
from sagecache.mm.optimisers import build_optimizer, schedule, schedule_of_micro_steps
from sagecache.mm.refresh import label_hooks
from sagecache.mm.tracking import log_writers
from sagecache.project import Project, Recipe
from sagecache.project.leaks import refuse_leaks
from sagecache.project.runs import (
    FinishedRun,
    changed_since_start,
    mark_finished,
    note_start,
    noted_start,
    put_back,
    recipe_digest,
    set_aside,
    unmark,
)
from sagecache.store.lock import FolderLock

logger = logging.getLogger(__name__)

Progress = Callable[..., None]
_RUNS = count(1)  # of this process
BEST_METRIC = "keypoints/PCK@0.05"


class QuietRunner(Runner):
    """The progress report speaks on the console; mmengine's log goes to its file."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        log = super().build_logger(*args, **kwargs)
        for handler in log.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        return log


@dataclass(frozen=True)
class TrainOptions:
    """What the command line may say beside the recipe. overrides: dotted key -> value. wandb: log to W&B."""

    work_dir: Path | None = None
    resume: bool = False
    max_iters: int | None = None
    wandb: bool = False
    seed: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def train(project: Project, name: str, options: TrainOptions, report: Progress) -> Path:
    """Train a recipe; returns its best checkpoint. Everything it needs must be there.

    Raises SagecacheError, among others, where another training is at work in the work dir, and for a run to
    resume that was of another recipe.
    """
    work_dir = options.work_dir or project.work_dir(name)
    if rank() > 0:
        return _train(project, name, options, work_dir, report)
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(work_dir, shared=False)
    try:
        return _train(project, name, options, work_dir, report)
    finally:
        lock.release()


def _train(project: Project, name: str, options: TrainOptions, work_dir: Path, report: Progress) -> Path:
    recipe, model = project.recipe(name, options.overrides)
    if recipe.train_cfg is None:
        raise SagecacheError(
            "the recipe has no train_cfg", file=f"recipe {name}", fix="Set train_cfg = dict(max_iters=…)."
        )
    refuse_leaks(project, recipe)
    last = _last_of_run(work_dir, recipe, model, options) if options.resume else None
    # Batches and views are drawn from the seed, so a run that goes on keeps its own.
    seeds = (options.seed, None if last is None else last.seed, recipe.seed)
    seed = next(one for one in seeds if one is not None)
    if world_size() > 1:
        init_cpu_distributed()
    torch.manual_seed(seed)
    if last is None and rank() == 0:
        warn_of_start(project, recipe, model)
    with recipe_is(project.recipe_page(name)):
        estimator = build_estimator(project, recipe, model)
    loader = train_loader(project, recipe, model, seed)
    sections = _sections(project, name, recipe, model, options, work_dir, seed, report)
    about = dict(recipe=name, recipe_sha256=recipe_digest(recipe, model), seed=seed)
    sections["custom_hooks"] += label_hooks(recipe, estimator, loader, work_dir, about, report)
    with _way_made(work_dir, last) if rank() == 0 else nullcontext():
        runner = _runner(
            name,
            dict(
                model=estimator,
                optim_wrapper=build_optimizer(
                    estimator.student, recipe.optim_wrapper, recipe.amp, estimator.terms
                ),
                train_dataloader=loader,
                load_from=None if last is None else str(last.path),
                resume=last is not None,
                **sections,
            ),
        )
        if runner.rank == 0 and last is None:
            note_start(work_dir, recipe, model, inputs_of(project, recipe), world_size())
        with (
            memory_advice(recipe, model),
            schedule_of_micro_steps(recipe.optim_wrapper),
            _logs_closed(runner),
        ):
            runner.train()
        best = runner.message_hub.runtime_info.get("best_ckpt")
        checkpoint = Path(best) if best else work_dir / f"iter_{runner.iter}.pth"
        if runner.rank == 0 and not checkpoint.is_file():
            raise SagecacheError(
                "the run wrote no checkpoint", file=work_dir, fix="Leave default_hooks.checkpoint on."
            )
    if runner.rank == 0:
        mark_finished(work_dir, FinishedRun(runner.iter, checkpoint.name))
    return checkpoint


@contextmanager
def _logs_closed(runner: Runner) -> Iterator[None]:
    """mmengine closes its writers at the end; the folder of a training that fails may be moved under them."""
    try:
        yield
    except BaseException:
        runner.visualizer.close()
        raise


def _last_of_run(work_dir: Path, recipe: Recipe, model: dict, options: TrainOptions) -> Resumable | None:
    """The checkpoint to go on from. Raises SagecacheError for a run of another recipe."""
    last = newest_readable(work_dir)
    if last is None:
        logger.warning("nothing to resume: %s has no checkpoint, the training starts anew", work_dir)
        return None
    if how := changed_since_start(work_dir, recipe, model):
        raise SagecacheError(
            f"the run to resume was of another recipe ({how})",
            file=work_dir,
            fix="Give the options of that run, or train anew: leave --resume out.",
        )
    began_with = noted_start(work_dir)
    if began_with is not None and began_with.processes not in (None, world_size()) and rank() == 0:
        logger.warning(
            "the run began with %d processes and goes on with %d: a step has %.3g times the images",
            began_with.processes,
            world_size(),
            world_size() / began_with.processes,
        )
    max_iters = options.max_iters or recipe.train_cfg.max_iters
    if last.iteration >= max_iters:
        logger.warning("nothing left to do: %s is at iteration %d of %d", work_dir, last.iteration, max_iters)
    elif within := last.iteration % recipe.accumulation:
        logger.warning(
            "iteration %d ends within an optimiser step of %d: checkpoints keep no gradients, so that the %d "
            "before it are missing in the first step",
            last.iteration,
            recipe.accumulation,
            within,
        )
    return last


@contextmanager
def _way_made(work_dir: Path, last: Resumable | None) -> Iterator[None]:
    """Unmark a run that goes on; a fresh one sets the files of an earlier run aside.

    They come back where the fresh one fails before its first checkpoint; where it is stopped by hand they
    do not: a --resume means the stopped one.
    """
    if last is not None:
        unmark(work_dir)
        yield
        return
    folder = set_aside(work_dir)
    if folder is not None:
        logger.warning("what an earlier run left is kept in %s", folder)
    try:
        yield
    except Exception:
        if folder is not None:
            put_back(work_dir, folder)
        raise


def _runner(name: str, sections: Mapping[str, Any]) -> Runner:
    """Raises SagecacheError for what mmengine can't build: hooks, backends, env_cfg."""
    try:
        return QuietRunner(**sections)
    except (ImportError, KeyError, TypeError, ValueError, AssertionError) as error:
        told = str(error).strip('"').split("\n")[0]
        raise SagecacheError(f"mmengine refuses it: {told}", file=f"recipe {name}") from error


def _sections(
    project: Project,
    name: str,
    recipe: Recipe,
    model: dict,
    options: TrainOptions,
    work_dir: Path,
    seed: int,
    report: Progress,
) -> dict[str, Any]:
    """What mmengine's Runner takes beside the model, its optimiser and the loader."""
    settings = recipe.train_cfg
    max_iters = options.max_iters or settings.max_iters
    whole = partial(_whole_steps, accumulated=recipe.accumulation, max_iters=max_iters)
    val_interval = whole("val_interval", settings.val_interval or max_iters)
    saved_every = whole("checkpoint_interval", settings.checkpoint_interval or val_interval)
    distributed = world_size() > 1
    validation = validation_cfg(project, recipe, work_dir)
    hooks = _default_hooks(settings.log_interval, saved_every, bool(validation))
    own_hooks = [
        SemiHook(seed, rank()),
        ProgressHook(report, settings.log_interval),
        ResumedValidationHook(),
        *watchers(project, recipe, model, val_interval),
    ]
    if recipe.uses_unlabeled:
        own_hooks.append(JointLogHook(project.skeleton.names, settings.log_interval))
    return dict(
        work_dir=str(work_dir),
        # mmengine adds the second: two short trainings of one process must not share their logs and hubs
        experiment_name=f"{work_dir.name}_{next(_RUNS)}",
        train_cfg=dict(type="StreamTrainLoop", max_iters=max_iters, val_interval=val_interval),
        param_scheduler=schedule(recipe.param_scheduler, settings.max_iters),
        default_hooks=hooks | recipe.default_hooks,
        custom_hooks=[*own_hooks, *recipe.custom_hooks],
        launcher="pytorch" if distributed else "none",
        randomness=dict(seed=seed),
        env_cfg=dict(dist_cfg=dict(backend="nccl" if torch.cuda.is_available() else "gloo")) | recipe.env_cfg,
        visualizer=dict(type="Visualizer", vis_backends=log_writers(project, name, recipe, options.wandb)),
        log_processor=dict(by_epoch=False),
        default_scope="mmpose",
        cfg=dict(recipe=_plain(recipe), model_wrapper_cfg=ddp_wrapper_cfg() if distributed else None),
        **validation,
    )


def _whole_steps(key: str, interval: int, accumulated: int, max_iters: int) -> int:
    """The next interval that ends with an optimiser step: a checkpoint keeps no gradient of half a one."""
    whole = min(-(-interval // accumulated) * accumulated, max_iters)
    if whole > interval and rank() == 0:
        told = "train_cfg.%s %d becomes %d: optimiser steps of %d iterations are not cut"
        logger.warning(told, key, interval, whole, accumulated)
    return whole


def _default_hooks(log_interval: int, saved_every: int, validated: bool) -> dict[str, Any]:
    """Those of mmengine that we set otherwise; a recipe's default_hooks come on top."""
    checkpoint = dict(
        type="CheckpointHook",
        by_epoch=False,
        interval=saved_every,
        max_keep_ckpts=2,
        save_best=BEST_METRIC if validated else None,
        rule="greater" if validated else None,
    )
    return dict(
        runtime_info=IntervalRuntimeInfoHook(log_interval),
        logger=dict(type="LoggerHook", interval=log_interval, log_metric_by_epoch=False),
        checkpoint=checkpoint,
        sampler_seed=None,
    )


def _plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(recipe), default=str))
