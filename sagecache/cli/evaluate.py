"""``sagecache eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .context import json_option, project_option
from .output import emit_json, emit_table, note, progress
from .prepare import ensure
from .train import newest_checkpoint

if TYPE_CHECKING:
    from ..project import Project


@click.command("eval")
@project_option
@click.option("--checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: the newest.")
@click.option("--split", default="val", show_default=True)
@click.option("--boxes", type=click.Choice(["annotations", "detections"]), default="annotations", show_default=True)
@click.option("--network", type=click.Choice(["ema_teacher", "student"]), default="ema_teacher", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="COCO results file. Default: beside the checkpoint.")
@json_option
def eval_command(project: Project, checkpoint: Path | None, as_json: bool, **options) -> None:
    """COCO AP/AR and PCK of a checkpoint, overall and by joint."""
    if checkpoint is None and project.embedded and project.checkpoint() is None:
        from .train import run

        note("no checkpoint yet: sagecache train stage1-full")
        run(project, "stage1-full")
    summary = evaluate(project, newest_checkpoint(project, checkpoint), **options)
    if as_json:
        emit_json(summary)
    else:
        show(summary)


def evaluate(
    project: Project,
    checkpoint: Path,
    split: str = "val",
    boxes: str = "annotations",
    network: str = "ema_teacher",
    out: Path | None = None,
) -> dict:
    """Score a checkpoint, write its predictions as a COCO results file, return what there is to report."""
    ensure(project, project.split_requirements(split))
    if boxes == "detections" and not project.detections(split).is_file():
        from .precompute import detect

        detect(project, split)
    from ..mm.evaluate import score

    with progress(f"eval {split}") as report:
        result, predictions = score(project, checkpoint, split, boxes, network, report)
    out = out or checkpoint.parent / f"predictions_{split}_{boxes}.json"
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(json.dumps(predictions))
    temporary.replace(out)
    return dict(
        checkpoint=str(checkpoint), network=network, split=split, boxes=boxes, predictions=str(out), **result.as_dict()
    )


def show(summary: dict) -> None:
    """Print an evaluation: the overall figures with their rules, then the joints."""
    rules = f"OKS area: {summary['area_rule']}; PCK of the {summary['normaliser']} of the true box"
    click.echo(f"{summary['checkpoint']} ({summary['network']}) on {summary['split']}, boxes: {summary['boxes']}. {rules}")
    names = ("AP", "AP50", "AP75", "AR", "PCK@0.05", "PCK@0.1")
    emit_table("", names, [[f"{summary[name]:.1f}" for name in names]])
    joints = summary["joints"]
    rows = [(name, f"{row['PCK@0.05']:.1f}", f"{row['PCK@0.1']:.1f}", row["count"]) for name, row in joints.items()]
    emit_table("", ("joint", "PCK@0.05", "PCK@0.1", "labeled"), rows)
    click.echo(f"predictions: {summary['predictions']}")
