"""A run that was trained: its recipe as it was then, its checkpoint, and the command that makes it again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagecache.errors import SagecacheError
from sagecache.project.project import Project
from sagecache.project.recipe import Recipe
from sagecache.project.runs import (
    as_noted,
    finished_run,
    newest_work_dir,
    noted_start,
    standing_checkpoint,
)
from sagecache.store.fingerprint import ABSENT, diff


@dataclass(frozen=True)
class TrainedRun:
    """recipe and model: as they were trained, overrides included. doubt: '' where that is sure, else why the
    page of today may not be what was trained. checkpoint: the one that stands for the run, None before its
    first. iterations: of a run that ended by itself, else None.
    """

    name: str
    work_dir: Path
    recipe: Recipe
    model: dict[str, Any]
    doubt: str
    checkpoint: Path | None
    iterations: int | None
    command: str


def trained_run(project: Project, name: str | None = None, work_dir: Path | None = None) -> TrainedRun:
    """The run of a recipe, or in a folder; without either the project's newest.

    Raises SagecacheError where nothing was trained.
    """
    folder = _folder(project, name, work_dir)
    name = name or folder.name.replace("_", "-")
    started, finished = noted_start(folder), finished_run(folder)
    if started is None:
        recipe, model = project.recipe(name)
        doubt = "trained with settings that it does not tell"
    else:
        recipe, doubt = started.recipe, ""
        # JSON knows no tuples: the page's model where it is the same
        same = as_noted(recipe, project.model)["model"] == started.model
        model = project.model if same else started.model
    words = ["sagecache train", shlex.quote(name), *_options(project, name, recipe, model)]
    if finished is not None and recipe.train_cfg and finished.iterations < recipe.train_cfg.max_iters:
        words.append(f"--max-iters {finished.iterations}")
    if folder.resolve() != project.work_dir(name).resolve():
        words.append(f"--work-dir {shlex.quote(str(folder))}")
    return TrainedRun(
        name,
        folder,
        recipe,
        model,
        doubt,
        standing_checkpoint(folder),
        None if finished is None else finished.iterations,
        project.command(" ".join(words)),
    )


def _folder(project: Project, name: str | None, work_dir: Path | None) -> Path:
    if name is not None and work_dir is None and name not in project.recipe_names():
        project.recipe(name)  # names the nearest one
    folder = work_dir or project.work_dir(name) if name or work_dir else None
    folder = folder or _newest(project.work_root)
    if folder is None or not folder.is_dir():
        first = name if name in project.recipe_names() else "stage0"
        raise SagecacheError(
            "nothing was trained yet" if work_dir is None else "no such folder",
            file=folder or project.folder,
            fix=f"Run: {project.train_command(first)}",
        )
    return folder


def _newest(root: Path) -> Path | None:
    """The run below root that wrote its checkpoint or its log last: one that has no checkpoint yet, too."""
    logs = {log: log.parents[2] for log in root.glob("*/*/vis_data/scalars.json")}
    saved = newest_work_dir(root)
    files = logs | ({} if saved is None else dict.fromkeys(saved.glob("*.pth"), saved))
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else files[newest]


def _options(project: Project, name: str, recipe: Recipe, model: dict[str, Any]) -> list[str]:
    """What the command line said beside the page; nothing for a run whose page is gone."""
    if name.replace("_", "-") not in project.recipe_names():
        return []
    words, page = [], as_noted(*project.recipe(name))
    for key, _, value in diff(page, as_noted(recipe, model)):
        key = key.removeprefix("recipe.")
        if key == "seed":
            words.append(f"--seed {value}")
        elif value != ABSENT:
            words.append(f"--cfg-options {shlex.quote(f'{key}={value}')}")
    return words
