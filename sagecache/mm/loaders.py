"""What a training is fed with: labeled and unlabeled streams, and crops to validate on; a share a process."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
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
from sagecache.errors import counted
from sagecache.mm.codecs import codec_of
from sagecache.mm.evaluate import evaluation_crops, evaluation_loader
from sagecache.mm.metrics import KeypointMetric
from sagecache.mm.samples import EncodedSteps, LabelEncoder
from sagecache.project import Project, Recipe
from sagecache.store import JoinedReader, StoreReader
from sagecache.structures import Instance

logger = logging.getLogger(__name__)


def train_loader(project: Project, recipe: Recipe, model: dict, seed: int) -> DataLoader:
    """Labeled and unlabeled streams, a batch of each per step."""
    codec, views, skeleton = codec_of(model), recipe.views, project.skeleton
    instances = [item for split in recipe.data.labeled for item in project.instances(split, "annotations")]
    images = ImageReader(recipe.data.image_cache_mb * 2**20)
    size = tuple(codec["input_size"])
    labeled = LabeledViews(instances, size, views.padding, views.strong, skeleton, images)
    unlabeled = None
    if recipe.uses_unlabeled:
        split = recipe.data.unlabeled
        targets = project.joined_targets(split) if recipe.uses_geometry else None
        unlabeled = unlabeled_views(recipe, model, project.instances(split), targets, images)
        if unlabeled.skipped:
            logger.warning(_left_out(project, split, unlabeled))
    sampler = MixedBatchSampler(
        len(labeled),
        len(unlabeled) if unlabeled is not None else 0,
        recipe.batch.labeled,
        recipe.batch.unlabeled if unlabeled is not None else 0,
        seed=seed,
        rank=rank(),
        world_size=world_size(),
    )
    dataset = EncodedSteps(CachedTargetDataset(labeled, unlabeled), LabelEncoder(codec, skeleton))
    return build_loader(dataset, sampler, recipe.batch.workers, pin_memory=torch.cuda.is_available())


def unlabeled_views(
    recipe: Recipe,
    model: dict,
    instances: Sequence[Instance],
    targets: StoreReader | JoinedReader | None = None,
    images: ImageReader | None = None,
) -> UnlabeledViews:
    """The views of a training step; without targets for those who look at pseudo-labels alone."""
    views = recipe.views
    return UnlabeledViews(
        instances,
        targets,
        tuple(codec_of(model)["input_size"]),
        views.padding,
        views.weak,
        views.strong,
        num_strong_views=views.num_strong,
        on_missing=recipe.data.on_missing,
        images=images,
        appearance=views.appearance,
    )


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


def validation_cfg(project: Project, recipe: Recipe, work_dir: Path) -> dict[str, Any]:
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
    loader = evaluation_loader(crops, DistributedSampler(crops, world_size(), rank(), shuffle=False))
    return dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=Evaluator(metric))


def rank() -> int:
    """This process's number, as torchrun says."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))
