"""``sagecache data check`` and ``sagecache data synth``; ``sagecache data convert`` is in `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.actions import ensure, synth
from sagecache.cli.context import json_option, project_option
from sagecache.cli.convert import convert_command
from sagecache.cli.output import emit_json, emit_table, note, progress
from sagecache.errors import SagecacheError, counted

if TYPE_CHECKING:
    from sagecache.project import Project


@click.group("data")
def data_command() -> None:
    """Verify splits; bring data of other formats; render the demo's infants."""


data_command.add_command(convert_command)


@data_command.command("synth")
@project_option
@click.option("--split", "splits", multiple=True, help="A split that data.py renders. Default: all of them.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes. Default: one a core.")
def synth_command(project: Project, splits: tuple[str, ...], workers: int | None) -> None:
    """Render splits of infants with exact keypoints, depth, normals and masks."""
    names = splits or tuple(name for name, split in project.data.splits.items() if split.render)
    if not names:
        raise SagecacheError("no split with 'render'", file=project.folder / "data.py")
    for name in names:
        synth(project, name, workers)


@data_command.command("check")
@project_option
@click.option("--split", "splits", multiple=True, help="Only these splits. Default: all; leakage needs two.")
@click.option("--decode", is_flag=True, help="Decode every image instead of reading its header.")
@json_option
@click.pass_context
def check_command(context, project: Project, splits: tuple[str, ...], decode: bool, as_json: bool) -> None:
    """Verify that files, boxes, ids and splits are sound. Exit 1 on errors."""
    from sagecache.data.check import check_splits, fold

    names = splits or _rendered(project)
    if project.embedded:
        for name in names:
            ensure(project, project.split_requirements(name)[:1])
    trained, labeled = _uses(project)
    sources = {name: _source(project, name, name in trained, name in labeled) for name in names}
    with progress("check") as report:
        findings = check_splits(sources, decode=decode, skeleton=project.skeleton, progress=report)
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        emit_json(dict(errors=errors, findings=[finding.as_dict() for finding in findings]))
    else:
        rows = [(f.level, f.code, f.split, f.record or "", f.message, f.fix or "") for f in fold(findings)]
        emit_table("data check", ("level", "check", "split", "record", "what", "fix"), rows)
        for name, source in sources.items():
            if (told := _boxes(project, name, source.detections)) is not None:
                click.echo(told)
        warnings = sum(finding.level == "warning" for finding in findings)
        how = "every pixel was decoded" if decode else "images by their headers; --decode reads every pixel"
        click.echo(f"{counted(errors, 'error')}, {counted(warnings, 'warning')} ({how})")
    context.exit(1 if errors else 0)


def _boxes(project: Project, name: str, detections: Path | None) -> str | None:
    """How many boxes a split was given, and how many of these count; None where it has none of its own."""
    from sagecache.data.coco import load_detections

    if detections is None:
        return None
    try:
        given, used = load_detections(detections), project.instances(name)
    except SagecacheError:  # a finding of the check
        return None
    images = len({one.image_id for one in used})
    return (
        f"{name}: {counted(len(given), 'detection')}, {len(used)} of them used, "
        f"on {counted(images, 'image')} (min_score and max_per_image of the split)"
    )


def _rendered(project: Project) -> tuple[str, ...]:
    """All splits but those still to be rendered: a check of seconds shall not take minutes."""
    names = tuple(project.data.splits)
    if not project.embedded:
        return names
    there = tuple(name for name in names if project.split_requirements(name)[0].present())
    if len(there) < len(names):
        absent = ", ".join(name for name in names if name not in there)
        note(f"not rendered yet, so not checked: {absent} (sagecache data synth)")
    return there


def _uses(project: Project) -> tuple[set[str], set[str]]:
    """Splits that a recipe learns from, and splits that one reads for their keypoints."""
    recipes = [project.recipe(name)[0] for name in project.recipe_names()]
    labeled = {name for recipe in recipes for name in recipe.data.labeled}
    unlabeled = {recipe.data.unlabeled for recipe in recipes if recipe.uses_unlabeled}
    val = {recipe.data.val for recipe in recipes}
    return labeled | unlabeled, labeled | val | set(project.data.stats_splits)


def _source(project: Project, name: str, trained: bool, labeled: bool):
    from sagecache.data.check import SplitSource

    split = project.split(name)
    detections = None if split.boxes == "annotations" else project.detections(name)
    if split.boxes == "detect" and not detections.is_file():
        detections = None
    return SplitSource(
        images=project.path(split.images),
        annotations=project.path(split.annotations),
        detections=detections,
        trained=trained,
        labeled=labeled,
        min_score=split.min_score,
        find_persons=project.command(f"sagecache precompute detect --split {name}"),
    )
