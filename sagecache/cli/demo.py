"""``sagecache demo``: the main job on the embedded project, from rendering to pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.context import redrawn
from sagecache.cli.output import emit_table, note

if TYPE_CHECKING:
    from sagecache.project import Project

ARMS = ("stage0", "stage1-full")
SHOWN = ("AP", "AP50", "PCK@0.05", "PCK@0.1")


@click.command("demo", short_help="The whole job on rendered infants, with pictures.")
def demo_command() -> None:
    """Render infants, cache targets, train stage0 and stage1-full, compare them on test, draw pictures."""
    from sagecache.project import Project

    start = time.monotonic()
    folder = click.get_current_context().find_root().params.get("project")
    # never what $SAGECACHE_PROJECT names
    project = redrawn(Project.open(folder) if folder else Project.demo())
    measured = run(project)
    emit_table(f"test split, measured now ({(time.monotonic() - start) / 60:.1f} minutes)", *_table(measured))
    reference = project.folder / "reference.json"
    if reference.is_file():
        content = json.loads(reference.read_text())
        emit_table(
            f"committed reference, mean of {content['seeds']} seeds ({content['command']})",
            *_table(content["arms"]),
        )
    for picture in pictures(project):
        click.echo(picture)


def run(project: Project) -> dict[str, dict[str, float]]:
    """Everything that the two arms need, the two arms, their figures on the test split."""
    from sagecache.cli.actions import can_go_on, train
    from sagecache.cli.evaluate import evaluate

    measured = {}
    for arm in ARMS:
        if not _trained(project, arm):
            train(project, arm, resume=can_go_on(project, arm))
        measured[arm] = evaluate(project, project.checkpoint(arm), "test")
    return measured


def _trained(project: Project, arm: str) -> bool:
    """In full and as the pages say; a trial, or a run of other pages, is trained anew."""
    from sagecache.project.runs import finished_run, shortfall

    if finished_run(project.work_dir(arm)) is None:
        return False
    if how := shortfall(project.work_dir(arm), *project.recipe(arm)):
        note(f"{arm}: trained {how}")
        return False
    note(f"{arm}: already trained, {project.checkpoint(arm)}")
    return True


def pictures(project: Project) -> list[Path]:
    """Panels of a few unlabeled images with what the trained model and the gate make of them."""
    from sagecache.cli.inspect import inspect

    checkpoint = project.checkpoint("stage1-full")
    instances = project.instances("unlabeled")
    chosen = [instances[len(instances) * k // 4].image_id for k in range(1, 4)]
    return [Path(inspect(project, image_id, checkpoint=checkpoint)["picture"]) for image_id in chosen]


def _table(arms: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    rows = [[name, *(f"{100 * figures[key]:.1f}" for key in SHOWN)] for name, figures in arms.items()]
    return ["arm", *SHOWN], rows
