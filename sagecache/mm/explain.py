"""What a checkpoint says of single instances: student, EMA teacher, confidence, plausibility, gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sagecache.geometry.affine import compose, invert_affine, transform_points
from sagecache.geometry.heatmap import decode, probability
from sagecache.mm.build import build_estimator
from sagecache.mm.checkpoints import PREFIXES, load_network
from sagecache.mm.codecs import codec_of, map_sigma
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.outputs import network_maps
from sagecache.mm.refresh import stored_votes
from sagecache.mm.samples import upright_views
from sagecache.models.weight_files import read_tensors
from sagecache.project import Project, Recipe
from sagecache.structures import Instance

Explained = dict[str, object]


def explain(
    project: Project, recipe_name: str, checkpoint: Path, instances: Sequence[Instance]
) -> dict[tuple[int, int], Explained]:
    """As `explain_as`, by the page of a recipe."""
    return explain_as(project, *project.recipe(recipe_name), checkpoint, instances)


@torch.no_grad()
def explain_as(
    project: Project, recipe: Recipe, model: dict, checkpoint: Path, instances: Sequence[Instance]
) -> dict[tuple[int, int], Explained]:
    """(image_id, instance) -> student and ema_teacher (K, 3) in image pixels with confidence, keep (K,),
    plausibility, teacher_a, corrected (K, 2) or None; by the recipe's filter and gate. Of a recipe that
    learns from no unlabeled images, and so has neither: the two poses alone.
    """
    estimator = trained_estimator(project, recipe, model, checkpoint)
    size = tuple(codec_of(model)["input_size"])
    two = recipe.views.appearance is not None
    batch = upright_views(instances, size, recipe.views.padding, two)
    sigma = map_sigma(codec_of(model))
    student = _decoded(estimator, estimator.student, batch, sigma)
    if not recipe.uses_unlabeled:
        teacher = _decoded(estimator, estimator.ema_teacher, batch, sigma)
        return {one.key: dict(student=student[i], ema_teacher=teacher[i]) for i, one in enumerate(instances)}
    if recipe.semi.swaps:
        estimator.votes = stored_votes(checkpoint.parent, instances)
    batch["index"] = torch.arange(len(instances))
    labels = estimator.pseudo_labels(batch)
    teacher = torch.cat([labels.keypoints, labels.confidence[..., None]], -1).numpy()
    return {
        one.key: dict(
            student=student[i],
            ema_teacher=teacher[i],
            keep=labels.keep[i].numpy(),
            plausibility=float(labels.plausibility[i]),
            teacher_a=bool(labels.teacher_a[i]),
            corrected=None if estimator.prior is None else labels.corrected[i].numpy(),
        )
        for i, one in enumerate(instances)
    }


def trained_estimator(project: Project, recipe: Recipe, model: dict, checkpoint: Path) -> SemiPoseEstimator:
    """Networks and running statistics of the filters as a checkpoint has them, without terms, in eval mode.

    A checkpoint of plain mmpose has no statistics: they are then as at a run's start.
    """
    estimator = build_estimator(project, replace(recipe, load_from=None), model, with_terms=False)
    for name in (prefix.removesuffix(".") for prefix in PREFIXES):
        if getattr(estimator, name, None) is not None:
            load_network(getattr(estimator, name), checkpoint, name)
    state = estimator.state_dict()
    known = {key for key in state if not key.startswith(PREFIXES)}
    found = {key: value for key, value in read_tensors(checkpoint).items() if key in known}
    estimator.load_state_dict(state | found)
    return estimator.eval()


def _decoded(estimator, network, batch: dict, sigma: float) -> np.ndarray:
    """A network's pose on the weak views, (B, K, 3): image pixels and confidence."""
    maps, kind = network_maps(network, estimator.normalise(batch["weak"]))
    points, confidence = decode(probability(maps, kind), sigma)
    image_from_map = invert_affine(compose(estimator.heatmap_from_input, batch["weak_from_image"]))
    return torch.cat([transform_points(image_from_map, points), confidence[..., None]], -1).numpy()
