"""``sagecache precompute detect | geo | stats | all``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.actions import detect, ensure, geo, stats
from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import emit_json, emit_table, note

if TYPE_CHECKING:
    from sagecache.precompute.runner import Estimate, RunOptions, StepReport
    from sagecache.project import Project


@click.group("precompute", short_help="Run what is frozen once, into stores.")
def precompute_command() -> None:
    """Run what is frozen once: person boxes, depth and normals, skeleton statistics."""


def _run_options(function):
    """Options of the steps that go over a split."""
    for option in (
        click.option("--strict", is_flag=True, help="Stop at the first image or instance that fails."),
        click.option(
            "--dry-run", is_flag=True, help="Say how many instances, bytes and seconds; write nothing."
        ),
        click.option("--force", is_flag=True, help="Set the existing result aside and compute all anew."),
        click.option("--limit", type=click.IntRange(1), help="Only the first N, into a place of their own."),
        json_option,
    ):
        function = option(function)
    return function


@precompute_command.command("detect")
@project_option
@click.option("--split", default="unlabeled", show_default=True)
@_run_options
@click.pass_context
def detect_command(context, project: Project, split: str, dry_run: bool, as_json: bool, **options) -> None:
    """Person boxes of a split, as a COCO detection JSON (mmpose's bbox_file)."""
    if dry_run:
        _show(as_json, _estimate_detect(project, split, _options(**options)))
        return
    _finish(context, as_json, [detect(project, split, _options(**options))])


@precompute_command.command("geo")
@project_option
@click.option("--split", default="unlabeled", show_default=True)
@_run_options
@click.pass_context
def geo_command(context, project: Project, split: str, dry_run: bool, as_json: bool, **options) -> None:
    """Depth, normals and mask of each instance of a split, into a Zarr store."""
    if dry_run:
        _show(as_json, _estimate_geo(project, split, _options(**options)))
        return
    _finish(context, as_json, [geo(project, split, _options(**options))])


@precompute_command.command("stats")
@project_option
@click.option("--force", is_flag=True, help="Set the existing statistics aside and compute them anew.")
@json_option
@click.pass_context
def stats_command(context, project: Project, force: bool, as_json: bool) -> None:
    """Limb lengths, joint angles and visibility of the labeled split: skeleton_stats.json."""
    _finish(context, as_json, [stats(project, _options(force=force))])


@precompute_command.command("all")
@project_option
@_run_options
@click.pass_context
def all_command(context, project: Project, dry_run: bool, as_json: bool, **options) -> None:
    """Everything that the project's recipes need: boxes, geometry of labeled and unlabeled, statistics."""
    names = [name for name in ("labeled", "unlabeled") if name in project.data.splits]
    if dry_run:
        _show(as_json, *_estimate_all(project, names, _options(**options)))
        return
    reports = []
    for name in names:
        if project.split(name).boxes == "detect":
            reports.append(detect(project, name, _options(**options)))
        reports.append(geo(project, name, _options(**options)))
    reports.append(stats(project, _options(force=options["force"])))
    _finish(context, as_json, reports)


def _options(**options) -> RunOptions:
    from sagecache.precompute.runner import RunOptions

    return RunOptions(**options)


def _estimate_all(project: Project, splits: list[str], options: RunOptions) -> list[dict]:
    """Geometry can't be guessed before there are boxes: such a split has a row for its boxes alone."""
    rows = []
    for split in splits:
        detects = project.split(split).boxes == "detect"
        if detects:
            rows.append(_estimate_detect(project, split, options))
        if detects and not project.detections(split).is_file():
            note(f"geo {split}: known once its boxes are there")
        else:
            rows.append(_estimate_geo(project, split, options))
    return rows


def _estimate_detect(project: Project, split: str, options: RunOptions) -> dict:
    from sagecache.cli.jobs import detect_job
    from sagecache.precompute.runner import estimate_detect
    from sagecache.teachers.registry import build_detector

    ensure(project, project.split_requirements(split)[:1])
    job = detect_job(project, split)
    guess = estimate_detect(job, build_detector(project.data.detector), options)
    return _estimate_row("detect", split, guess, job.result)


def _estimate_geo(project: Project, split: str, options: RunOptions) -> dict:
    from sagecache.cli.jobs import geo_job
    from sagecache.precompute.runner import estimate_geo
    from sagecache.teachers.registry import build_teacher

    ensure(project, project.split_requirements(split))
    job = geo_job(project, split)
    guess = estimate_geo(job, build_teacher(project.data.teacher), options)
    return _estimate_row("geo", split, guess, job.root)


def _estimate_row(step: str, split: str, guess: Estimate, result: Path) -> dict:
    """total: images for detect, instances for geo."""
    return dict(
        step=step,
        split=split,
        total=guess.total,
        missing=guess.missing,
        megabytes=round(guess.bytes / 1e6, 2),
        seconds=round(guess.seconds, 1),
        result=str(result),
    )


def _show(as_json: bool, *rows: dict) -> None:
    if as_json:
        emit_json(list(rows))
        return
    emit_table("dry run", list(rows[0]), [list(row.values()) for row in rows])


def _finish(context: click.Context, as_json: bool, reports: list[StepReport]) -> None:
    """Print what was done and what failed; exit 1 when something failed."""
    failed = [(report.step, item) for report in reports for item in report.failed]
    if as_json:
        emit_json([_as_dict(report) for report in reports])
    else:
        rows = [
            (r.step, r.total, r.computed, len(r.failed), f"{r.bytes / 1e6:.1f}", f"{r.seconds:.1f}", r.path)
            for r in reports
        ]
        emit_table("precompute", ("step", "total", "computed", "failed", "MB", "seconds", "result"), rows)
        if failed:
            shown = [
                (step, item.image_id, item.instance, item.reason, item.path) for step, item in failed[:20]
            ]
            emit_table(
                f"failed ({len(failed)}; all with --json)",
                ("step", "image", "instance", "why", "file"),
                shown,
            )
    context.exit(1 if failed else 0)


def _as_dict(report: StepReport) -> dict:
    failed = [
        dict(image_id=item.image_id, instance=item.instance, reason=item.reason, file=str(item.path))
        for item in report.failed
    ]
    return dict(
        step=report.step,
        path=str(report.path),
        total=report.total,
        computed=report.computed,
        failed=failed,
        bytes=report.bytes,
        seconds=round(report.seconds, 3),
    )
