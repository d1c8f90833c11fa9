"""The leak guard: which splits of a project a recipe learns from, which measure it, and what they share."""

from __future__ import annotations

import logging

from sagecache.data.coco import load_coco
from sagecache.data.leaks import ImageList, Leak, find_leaks
from sagecache.data.splits import is_held_out
from sagecache.errors import SagecacheError, counted
from sagecache.project.project import Project
from sagecache.project.recipe import Recipe

logger = logging.getLogger(__name__)


def refuse_leaks(project: Project, recipe: Recipe) -> None:
    """Raise SagecacheError where a split that measures shares images or recordings with what is learned from.

    Measuring are the recipe's val, and every split that is named val… or test…: each is somebody's later
    ``eval``. Splits whose files are not there yet are left out. Without unlabeled images it is a warning:
    a labeled run is also how one sees that a network can learn its training images by heart. So it is of a
    val that is a labeled split by its very file, as `sagecache init` writes it for who has no other: that is
    meant, and its figures are only too good.
    """
    data, leaks = recipe.data, _leaks(project, recipe)
    for leak in leaks:
        text, fix = _told(leak, data.unlabeled if recipe.uses_unlabeled else None), _fix(project, leak)
        warned = leak.kind == "recording" and recipe.guards.recordings == "warn"
        meant = leak.trained != data.unlabeled and _one_file(project, leak)
        if recipe.uses_unlabeled and not warned and not meant:
            raise SagecacheError(text, file=project.folder / "data.py", record=leak.first, fix=fix)
        logger.warning("%s: %s", leak.first, text)


def _leaks(project: Project, recipe: Recipe) -> list[Leak]:
    data = recipe.data
    learned = [*data.labeled]
    if recipe.uses_unlabeled:
        learned += [data.unlabeled, *project.data.stats_splits]
    measuring = [*([data.val] if data.val else []), *filter(is_held_out, project.data.splits)]
    lists: dict[str, ImageList] = {}
    for name in dict.fromkeys([*learned, *measuring]):
        split = project.split(name)
        annotations = project.path(split.annotations)
        if annotations.is_file():
            lists[name] = ImageList(project.path(split.images), load_coco(annotations)["images"])
        elif not split.render:
            logger.warning("split '%s' has no file yet, so it is not compared: %s", name, annotations)
    sides = ({name: lists[name] for name in names if name in lists} for names in (learned, measuring))
    return find_leaks(*sides)


def _one_file(project: Project, leak: Leak) -> bool:
    files = (project.path(project.split(name).annotations) for name in (leak.trained, leak.measures))
    return len(set(files)) == 1


def _told(leak: Leak, unlabeled: str | None) -> str:
    what = counted(leak.count, leak.kind)
    if leak.kind == "recording":
        return (
            f"frames of {what} are in '{leak.trained}', which is trained on, and in '{leak.measures}', which "
            "measures: neighbouring frames are all but the same image, so the figures would be too good"
        )
    least, are = "" if leak.whole else "at least ", "is" if leak.count == 1 else "are"
    text = f"{least}{what} of '{leak.measures}', which measures, {are} in '{leak.trained}'"
    text += ", which is trained on"
    if leak.trained == unlabeled:
        return (
            f"{text}: a teacher that was adapted to an image, even without its labels (transductively), is "
            "measured too well on it, and on no other would it do as well"
        )
    return f"{text}: the figures would be those of images seen in training"


def _fix(project: Project, leak: Leak) -> str:
    splits = " ".join(f"--split {name}" for name in dict.fromkeys((leak.measures, leak.trained)))
    check = project.command(f"sagecache data check {splits}")
    if leak.kind == "recording":
        return (
            f"Split by recording ({check} lists them). Where names mislead, say the recording in a field "
            "'video_id' of each image, or set guards.recordings='warn'."
        )
    if leak.trained == leak.measures:
        return f"Name another split than '{leak.trained}' in one of the two places."
    return f"Remove them from '{leak.trained}', or name another split; all are listed by: {check}."
