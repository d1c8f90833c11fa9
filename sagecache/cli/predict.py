"""``sagecache predict``: the poses that a checkpoint sees in a split, and boxes made of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.actions import ensure
from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import emit_json, note, progress
from sagecache.cli.train import newest_checkpoint
from sagecache.errors import SagecacheError, counted

if TYPE_CHECKING:
    from sagecache.project import Project


@click.command("predict", short_help="Keypoints of a split's persons, and boxes about them.")
@project_option
@click.option("--split", default="unlabeled", show_default=True)
@click.option(
    "--checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: the newest."
)
@click.option(
    "--network", type=click.Choice(["ema_teacher", "student"]), default="ema_teacher", show_default=True
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="COCO keypoint results."
)
@click.option(
    "--boxes",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a box about each pose here, after OKS-NMS: a detection JSON for data.py.",
)
@click.option(
    "--confidence", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Of joints in a box."
)
@click.option(
    "--oks", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="Above it two poses are one."
)
@json_option
def predict_command(
    project: Project,
    split: str,
    checkpoint: Path | None,
    network: str,
    out: Path,
    boxes: Path | None,
    confidence: float,
    oks: float,
    as_json: bool,
) -> None:
    """Run a network over the boxes of a split; scores are the box's times the mean of the joints'."""
    for path in (out, boxes):
        if path is not None and not path.parent.is_dir():
            raise SagecacheError("no such folder", file=path.parent, fix="Make it, or name another file.")
    ensure(project, project.split_requirements(split))
    from sagecache.mm.evaluate import predict
    from sagecache.mm.pseudo_boxes import pseudo_boxes

    checkpoint = newest_checkpoint(project, checkpoint)
    with progress(f"predict {split}") as report:
        results = predict(project, checkpoint, project.instances(split), network, report)
    _write(out, [{key: value for key, value in one.items() if value is not None} for one in results])
    summary = dict(
        checkpoint=str(checkpoint), network=network, split=split, persons=len(results), out=str(out)
    )
    if boxes is not None:
        found = pseudo_boxes(results, project.skeleton, confidence, oks)
        _write(boxes, found)
        summary |= dict(boxes=str(boxes), boxed=len(found))
    if as_json:
        emit_json(summary)
        return
    click.echo(f"{counted(len(results), 'pose')} of {checkpoint} ({network}): {out}")
    if boxes is not None:
        told = f"{counted(summary['boxed'], 'person')} with a box"
        known_as = os.path.relpath(boxes.absolute(), Path.cwd() if project.embedded else project.folder)
        click.echo(f'{told}: {boxes}; in data.py boxes="{known_as}"')
        if not summary["boxed"]:
            note(f"no pose has three joints above --confidence {confidence:g}")


def _write(path: Path, content: object) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
