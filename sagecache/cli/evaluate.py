"""``sagecache eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from sagecache.cli.actions import detect, ensure, train
from sagecache.cli.context import json_option, project_option
from sagecache.cli.jobs import require_fresh_boxes
from sagecache.cli.output import RESULTS, emit_json, emit_table, note, progress, require_places
from sagecache.cli.train import newest_checkpoint
from sagecache.errors import SagecacheError
from sagecache.store.files import write_whole

if TYPE_CHECKING:
    from sagecache.project import Project


@click.command("eval", short_help="AP, AR and PCK of a checkpoint.")
@project_option
@click.option(
    "--checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: the newest."
)
@click.option("--split", default="val", show_default=True)
@click.option(
    "--boxes", type=click.Choice(["annotations", "detections"]), default="annotations", show_default=True
)
@click.option(
    "--network", type=click.Choice(["ema_teacher", "student"]), default="ema_teacher", show_default=True
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="COCO results file. Default: beside the checkpoint.",
)
@click.option(
    "--predictions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Judge this COCO results file instead; no network runs.",
)
@json_option
@click.pass_context
def eval_command(
    context: click.Context,
    project: Project,
    checkpoint: Path | None,
    predictions: Path | None,
    as_json: bool,
    **options,
) -> None:
    """COCO AP/AR and PCK of a checkpoint, or of anybody's predictions, overall and by joint."""
    if predictions is not None:
        _refuse_words_of_a_network(context)
        summary = evaluate_predictions(project, predictions, options["split"])
        emit_json(summary) if as_json else show(summary)
        return
    if checkpoint is None and project.embedded and project.checkpoint() is None:
        note("no checkpoint yet: sagecache train stage1-full")
        train(project, "stage1-full")
    summary = evaluate(project, newest_checkpoint(project, checkpoint), **options)
    emit_json(summary) if as_json else show(summary)


def _refuse_words_of_a_network(context: click.Context) -> None:
    for name in ("checkpoint", "boxes", "network", "out"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} does not go with --predictions: no network runs.", context)


def evaluate_predictions(project: Project, predictions: Path, split: str = "val") -> dict:
    """Score a COCO results file by the project's rules."""
    from sagecache.data.coco import load_keypoint_results
    from sagecache.mm.evaluate import ground_truth, judge

    ensure(project, project.split_requirements(split))
    results = load_keypoint_results(predictions, project.skeleton.num_keypoints)
    if not results:
        note(f"{predictions} holds no poses")
    try:
        report = judge(project, ground_truth(project, split), results, keep_order=True)
    except SagecacheError as error:
        if error.file is not None or not str(error.record).startswith("prediction"):
            raise
        raise SagecacheError(error.message, file=predictions, record=error.record, fix=error.fix) from error
    return dict(split=split, predictions=str(predictions), **report.as_dict())


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
    if boxes == "detections":
        if not project.detections(split).is_file():
            detect(project, split)
        require_fresh_boxes(project, split, boxes)
    from sagecache.evaluation.keypoints import sort_predictions
    from sagecache.mm.evaluate import score

    out = out or checkpoint.parent / f"predictions_{checkpoint.stem}_{network}_{split}_{boxes}.json"
    out.parent.mkdir(parents=True, exist_ok=True)  # first: a folder that can't be used costs no evaluation
    require_places({out: RESULTS}, [checkpoint, *project.split_files(split)])
    with progress(f"eval {split}") as report:
        result, predictions = score(project, checkpoint, split, boxes, network, report)
    write_whole(out, json.dumps(sort_predictions(predictions)).encode())
    return dict(
        checkpoint=str(checkpoint),
        network=network,
        split=split,
        boxes=boxes,
        sampling=project.data.evaluation.sampling,
        predictions=str(out),
        **result.as_dict(),
    )


def show(summary: dict) -> None:
    """Print an evaluation in percent: the overall figures with their rules, then the joints."""
    judged = "predictions"
    if "checkpoint" in summary:
        sampled = "" if summary["sampling"] == "training" else f", crops sampled as in {summary['sampling']}"
        judged = f"boxes: {summary['boxes']}{sampled}"
        click.echo(f"{summary['checkpoint']} ({summary['network']})")
    click.echo(f"split {summary['split']}, {summary['persons']} persons, {judged}")
    click.echo(f"OKS area {summary['area_rule']}; PCK of {summary['pck_normaliser']}")
    click.echo(f"persons matched by {summary['matching']}")
    names = ("AP", "AP50", "AP75", "AR", "PCK@0.05", "PCK@0.1")
    emit_table("", names, [[percent(summary[name]) for name in names]])
    joints = summary["per_joint"]
    rows = [
        (joint, percent(value), percent(joints["PCK@0.1"][joint]))
        for joint, value in joints["PCK@0.05"].items()
    ]
    emit_table("", ("joint", "PCK@0.05", "PCK@0.1"), rows)
    click.echo(f"predictions: {summary['predictions']}")


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
