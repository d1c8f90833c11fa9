"""From a recipe to the training model, and to the weights that it starts from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from sagecache.errors import SagecacheError, nearest
from sagecache.mm.checkpoints import load_network
from sagecache.mm.codecs import codec_of, map_frame
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.labeling import build_labeler, build_mixing, build_style, load_prior
from sagecache.mm.registry import build_student
from sagecache.mm.terms import build_terms
from sagecache.models.weight_files import holds_weights
from sagecache.models.weights import weights_path
from sagecache.project import Project, Recipe
from sagecache.project.runs import finished_run, shortfall

logger = logging.getLogger(__name__)


def build_estimator(
    project: Project, recipe: Recipe, model: dict, with_terms: bool = True
) -> SemiPoseEstimator:
    """Student with its start weights, EMA teacher, pseudo labels and the recipe's terms.

    with_terms False: enough to look at pseudo labels; needs no stores.
    """
    student = build_student(model)
    start = start_checkpoint(project, recipe)
    if start is not None:
        _load_start(project, recipe, student, start)
    if recipe.channels_last:
        student = student.to(memory_format=torch.channels_last)
    frame = map_frame(codec_of(model))
    semi: dict[str, Any] = {}
    if recipe.uses_unlabeled:
        prior = load_prior(project, recipe)
        semi = dict(
            labeler=build_labeler(project, recipe, frame.sigma),
            terms=build_terms(project, recipe, frame.sigma, prior, student.head) if with_terms else {},
            mixing=build_mixing(project, recipe),
            style=build_style(recipe),
            prior=prior if recipe.semi.has_teacher_b else None,
            teacher=recipe.semi.teacher,
            ramp_up_steps=recipe.semi.ramp_up,
        )
    return SemiPoseEstimator(student, frame, ema_decay=recipe.ema_decay, **semi)


def _load_start(project: Project, recipe: Recipe, student: torch.nn.Module, start: Path) -> None:
    """Raises SagecacheError; of the committed student, which pages ask for it."""
    try:
        load_network(student, start, as_start=True)
    except SagecacheError as error:
        if recipe.load_from != "demo":
            raise
        raise SagecacheError(
            "load_from = 'demo' is the demo's student, and model.py describes another network",
            file=", ".join(f"recipe {name}" for name in _demo_starts(project)) or "load_from",
            fix="Set it to None (random weights) or to a checkpoint of your model. In detail: "
            + error.message,
        ) from error


def _demo_starts(project: Project) -> list[str]:
    """Recipes whose pages ask for the committed student."""
    return [name for name in project.recipe_names() if project.recipe(name)[0].load_from == "demo"]


def _names_weights(config: Any) -> bool:
    if isinstance(config, (list, tuple)):
        return any(map(_names_weights, config))
    if not isinstance(config, dict):
        return False
    return config.get("type") == "Pretrained" or any(map(_names_weights, config.values()))


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
        return found
    path = project.path(recipe.load_from)
    if not path.is_file() and not holds_weights(path):  # a file, or a Hugging Face folder
        none = "" if recipe.load_from.lower() not in ("none", "null") else "Write None: load_from=None. "
        raise SagecacheError(
            f"load_from '{recipe.load_from}' is neither a recipe nor a file",
            file=path,
            fix=none + nearest(recipe.load_from, ["None", "demo", *project.recipe_names()]),
        )
    return path


def warn_of_start(project: Project, recipe: Recipe, model: dict) -> None:
    """Of a start that may not be meant: random weights, where model.py names none either, or a trial
    (--max-iters, overrides), which stands for its recipe until that is trained again.
    """
    name = recipe.load_from
    if name is None and not _names_weights(model):
        logger.warning(
            "the student starts from random weights: load_from is None, and model.py names none (init_cfg)"
        )
    if name not in project.recipe_names() or finished_run(project.work_dir(name)) is None:
        return
    if how := shortfall(project.work_dir(name), *project.recipe(name)):
        logger.warning("starting from '%s', which was trained %s", name, how)
