"""Train, evaluate and predict on mmengine's Runner. Composes; decides nothing that a recipe could say."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from sagecache.data.coco import load_coco
from sagecache.data.dataset import (
    CachedTargetDataset,
    ImageReader,
    LabeledViews,
    UnlabeledViews,
    build_loader,
)
from sagecache.data.sampling import MixedBatchSampler
from sagecache.errors import SagecacheError, counted, nearest
from sagecache.mm.checkpoints import Resumable, load_network, newest_readable
from sagecache.mm.codecs import codec_of, map_frame
from sagecache.mm.compat import ddp_wrapper_cfg, init_cpu_distributed
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.evaluate import evaluation_crops, evaluation_loader
from sagecache.mm.guards import watchers
from sagecache.mm.hooks import (
    IntervalRuntimeInfoHook,
    JointLogHook,
    ProgressHook,
    ResumedValidationHook,
    SemiHook,
)
from sagecache.mm.labeling import build_labeler, build_mixing, build_style, load_prior
from sagecache.mm.memory import memory_advice
from sagecache.mm.metrics import KeypointMetric
from sagecache.mm.refresh import RefreshHook
from sagecache.mm.registry import build_student
from sagecache.mm.samples import EncodedSteps, LabelEncoder
from sagecache.mm.terms import build_terms
from sagecache.mm.tracking import log_writers
from sagecache.models.weights import weights_path
from sagecache.project import Project, Recipe
from sagecache.project.leaks import refuse_leaks
from sagecache.project.runs import (
    FinishedRun,
    changed_since_start,
    finished_run,
    mark_finished,
    note_start,
    put_back,
    recipe_digest,
    set_aside,
    shortfall,
    unmark,
)
from sagecache.store.lock import FolderLock

logger = logging.getLogger(__name__)

Progress = Callable[..., None]
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
    amp: bool = False
    wandb: bool = False
    seed: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def train(project: Project, name: str, options: TrainOptions, report: Progress) -> Path:
    """Train a recipe; returns its best checkpoint. Everything it needs must be there.

    Raises SagecacheError, among others, where another training is at work in the work dir, and for a run to
    resume that was of another recipe.
    """
    work_dir = options.work_dir or project.work_dir(name)
    if _rank() > 0:
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
    last = newest_readable(work_dir) if options.resume else None
    if last is not None and (how := changed_since_start(work_dir, recipe, model)):
        raise SagecacheError(
            f"the run to resume was of another recipe ({how})",
            file=work_dir,
            fix="Give the options of that run, or train anew: leave --resume out.",
        )
    max_iters = options.max_iters or recipe.train_cfg.max_iters
    if last is not None and last.iteration >= max_iters:
        logger.warning("nothing left to do: %s is at iteration %d of %d", work_dir, last.iteration, max_iters)
    # Batches and views are drawn from the seed, so a run that goes on keeps its own.
    seeds = (options.seed, None if last is None else last.seed, recipe.seed)
    seed = next(one for one in seeds if one is not None)
    if _world_size() > 1:
        init_cpu_distributed()
    torch.manual_seed(seed)
    estimator = build_estimator(project, recipe, model)
    loader = train_loader(project, recipe, model, seed)
    sections = _sections(project, name, recipe, model, options, work_dir, seed, report)
    if recipe.uses_unlabeled and recipe.semi.refresh:
        about = dict(recipe=name, recipe_sha256=recipe_digest(recipe, model), seed=seed)
        refresh = RefreshHook.of(estimator, loader, recipe.semi.refresh, work_dir / "pseudo_labels", about)
        sections["custom_hooks"].append(refresh)
    runner = _runner(
        name,
        dict(
            model=estimator,
            optim_wrapper=build_optimizer(estimator.student, recipe.optim_wrapper, options.amp),
            train_dataloader=loader,
            load_from=None if last is None else str(last.path),
            resume=last is not None,
            **sections,
        ),
    )
    with _way_made(work_dir, last) if runner.rank == 0 else nullcontext():
        if runner.rank == 0 and last is None:
            note_start(work_dir, recipe, model)
        with memory_advice(recipe, model, options.amp):
            runner.train()
        best = runner.message_hub.runtime_info.get("best_ckpt")
        checkpoint = Path(best) if best else work_dir / f"iter_{runner.iter}.pth"
        if runner.rank == 0 and not checkpoint.is_file():
            raise SagecacheError(
                "the run wrote no checkpoint", file=work_dir, fix="Leave default_hooks.checkpoint on."
            )
    if runner.rank == 0:
        mark_finished(work_dir, FinishedRun(runner.iter, checkpoint.name, recipe_digest(recipe, model)))
    return checkpoint


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
        logger.warning("the checkpoints of an earlier run are kept in %s", folder)
    try:
        yield
    except Exception:
        if folder is not None:
            put_back(work_dir, folder)
        raise


def build_estimator(
    project: Project, recipe: Recipe, model: dict, with_terms: bool = True
) -> SemiPoseEstimator:
    """Student with its start weights, EMA teacher, pseudo labels and the recipe's terms.

    with_terms False: enough to look at pseudo labels; needs no stores.
    """
    student = build_student(model)
    start = start_checkpoint(project, recipe)
    if start is not None:
        load_network(student, start, backbone_serves=True)
    if recipe.channels_last:
        student = student.to(memory_format=torch.channels_last)
    frame = map_frame(codec_of(model))
    semi: dict[str, Any] = {}
    if recipe.uses_unlabeled:
        prior = load_prior(project, recipe)
        semi = dict(
            labeler=build_labeler(project, recipe, frame.sigma),
            terms=build_terms(project, recipe, frame.sigma, prior) if with_terms else {},
            mixing=build_mixing(project, recipe),
            style=build_style(recipe),
            prior=prior if recipe.semi.gate.get("teacher_b") == "diffusion" else None,
            teacher=recipe.semi.teacher,
            ramp_up_steps=recipe.semi.ramp_up,
        )
    return SemiPoseEstimator(student, frame, ema_decay=recipe.ema_decay, **semi)


def start_checkpoint(project: Project, recipe: Recipe) -> Path | None:
    """The file behind ``load_from``: the committed student, a recipe's best checkpoint, or a path."""
    if recipe.load_from is None:
        return None
    if recipe.load_from == "demo":
        return weights_path("student")
    if recipe.load_from in project.recipe_names():
        found = project.checkpoint(recipe.load_from)
        if found is None:
            raise SagecacheError(
                f"recipe '{recipe.load_from}' is not trained yet",
                fix=f"Run: {project.train_command(recipe.load_from)}",
            )
        _warn_of_another_run(project, recipe.load_from)
        return found
    path = project.path(recipe.load_from)
    if not path.is_file():
        raise SagecacheError(
            f"load_from '{recipe.load_from}' is neither a recipe nor a file",
            file=path,
            fix=nearest(recipe.load_from, ["demo", *project.recipe_names()]),
        )
    return path


def _warn_of_another_run(project: Project, name: str) -> None:
    """A trial (--max-iters, overrides) stands for its recipe until that is trained again."""
    run = finished_run(project.work_dir(name))
    if run is not None and (how := shortfall(run, *project.recipe(name))):
        logger.warning("starting from '%s', which was trained %s", name, how)


def train_loader(project: Project, recipe: Recipe, model: dict, seed: int) -> DataLoader:
    """Labeled and unlabeled streams, a batch of each per step."""
    size = tuple(codec_of(model)["input_size"])
    views, skeleton = recipe.views, project.skeleton
    instances = [item for split in recipe.data.labeled for item in project.instances(split, "annotations")]
    images = ImageReader(recipe.data.image_cache_mb * 2**20)
    labeled = LabeledViews(instances, size, views.padding, views.strong, skeleton, images)
    unlabeled = None
    if recipe.uses_unlabeled:
        split = recipe.data.unlabeled
        unlabeled = UnlabeledViews(
            project.instances(split),
            project.joined_targets(split) if recipe.uses_geometry else None,
            size,
            views.padding,
            views.weak,
            views.strong,
            num_strong_views=views.num_strong,
            on_missing=recipe.data.on_missing,
            images=images,
            appearance=views.appearance,
        )
        if unlabeled.skipped:
            logger.warning(_left_out(project, split, unlabeled))
    sampler = MixedBatchSampler(
        len(labeled),
        len(unlabeled) if unlabeled is not None else 0,
        recipe.batch.labeled,
        recipe.batch.unlabeled if unlabeled is not None else 0,
        seed=seed,
        rank=_rank(),
        world_size=_world_size(),
    )
    dataset = EncodedSteps(CachedTargetDataset(labeled, unlabeled), LabelEncoder(codec_of(model), skeleton))
    return build_loader(dataset, sampler, recipe.batch.workers, pin_memory=torch.cuda.is_available())


def _left_out(project: Project, split: str, views: UnlabeledViews) -> str:
    """How many instances are not trained on; the command, where one would give them targets."""
    failed, text = views.skipped - views.not_computed, []
    if failed:
        text.append(f"{failed} failed or show nobody")
    if views.not_computed:
        command = views.targets.attributes.get("command", f"sagecache precompute geo --split {split}")
        text.append(f"{views.not_computed} not computed yet (run: {project.command(command)})")
    without = f"{counted(views.skipped, 'unlabeled instance')} without targets left out"
    return f"{without}: {', '.join(text)}"


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
    val_interval = min(settings.val_interval or max_iters, max_iters)
    distributed = _world_size() > 1
    validation = _validation(project, recipe, work_dir)
    checkpoint = dict(
        type="CheckpointHook",
        by_epoch=False,
        interval=min(settings.checkpoint_interval or val_interval, max_iters),
        max_keep_ckpts=2,
        save_best=BEST_METRIC if validation else None,
        rule="greater" if validation else None,
    )
    hooks = dict(
        runtime_info=IntervalRuntimeInfoHook(settings.log_interval),
        logger=dict(type="LoggerHook", interval=settings.log_interval, log_metric_by_epoch=False),
        checkpoint=checkpoint,
        sampler_seed=None,
    )
    own_hooks = [
        SemiHook(seed, _rank()),
        ProgressHook(report, settings.log_interval),
        ResumedValidationHook(),
        *watchers(project, recipe, model, val_interval),
    ]
    if recipe.uses_unlabeled:
        own_hooks.append(JointLogHook(project.skeleton.names, settings.log_interval))
    return dict(
        work_dir=str(work_dir),
        experiment_name=work_dir.name,
        train_cfg=dict(type="StreamTrainLoop", max_iters=max_iters, val_interval=val_interval),
        param_scheduler=_schedule(recipe.param_scheduler, settings.max_iters),
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


def _validation(project: Project, recipe: Recipe, work_dir: Path) -> dict[str, Any]:
    if recipe.data.val is None:
        return {}
    if not project.instances(recipe.data.val, "annotations"):
        logger.warning("split '%s' has no labeled person: the last checkpoint will count", recipe.data.val)
    crops = evaluation_crops(project, project.instances(recipe.data.val))
    metric = KeypointMetric(
        load_coco(project.path(project.split(recipe.data.val).annotations)),
        project.skeleton,
        project.data.evaluation.area,
        project.data.evaluation.pck_normaliser,
        collect_dir=str(work_dir / ".validation"),
    )
    # Each process its share, by torchrun's words: on GPUs the group is joined only by the Runner.
    loader = evaluation_loader(crops, DistributedSampler(crops, _world_size(), _rank(), shuffle=False))
    return dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=Evaluator(metric))


def _rank() -> int:
    """This process's number, as torchrun says."""
    return int(os.environ.get("RANK", 0))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def build_optimizer(student: nn.Module, config: Mapping[str, Any], amp: bool) -> OptimWrapper:
    """The recipe's optim_wrapper over the student alone: layer decay looks for names in ``backbone.…``."""
    config = dict(config)
    if "optimizer" not in config:
        raise SagecacheError(
            "the recipe has no optimiser", fix="Set optim_wrapper = dict(optimizer=dict(type=…))."
        )
    if amp:
        # bfloat16 has float32's range: no loss scaling, for which the host would wait in every step
        config |= dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(enabled=False))
    try:
        return build_optim_wrapper(student, config)
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise SagecacheError(f"optim_wrapper can't be built: {error}", record=str(dict(config))) from error


def _schedule(schedulers: Any, max_iters: int) -> list[dict] | None:
    """Schedulers by iteration; one without an end runs to the last iteration."""
    if not schedulers:
        return None
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    if not isinstance(schedulers, (list, tuple)) or not all(isinstance(one, Mapping) for one in schedulers):
        raise SagecacheError(
            f"param_scheduler is {schedulers!r}", file="recipe", fix="Set a list of dict(type=…)."
        )
    schedulers = [dict(dict(by_epoch=False, end=max_iters), **scheduler) for scheduler in schedulers]
    for scheduler in schedulers:
        _try_schedule(scheduler)
    return schedulers


def _try_schedule(scheduler: dict[str, Any]) -> None:
    """Build it once for nothing: mmengine builds the real one after the first networks are on the device."""
    if scheduler.get("convert_to_iter_based"):  # needs the length of an epoch
        return
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    try:
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer))
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        told = str(error).strip('"').split("\n")[0]
        raise SagecacheError(f"param_scheduler can't be built: {told}", record=str(scheduler)) from error


def _plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(recipe), default=str))
