"""``sagecache precompute detect | geo | stats | all``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.actions import detect, ensure, geo, stats
from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import emit_json, emit_table, note

if TYPE_CHECKING:
    from sagecache.precompute.estimates import Estimate
    from sagecache.precompute.jobs import RunOptions, StepReport
    from sagecache.project import Project, Requirement


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


def _rank_options(function):
    """Options of a step that several runs share, such as those of a SLURM array."""
    for option in (
        click.option("--world-size", type=click.IntRange(1), default=1, help="How many runs share the work."),
        click.option("--rank", type=click.IntRange(0), default=0, help="Which of them this is, from 0."),
    ):
        function = option(function)
    return function


def _engine_options(function):
    """Options of the steps that run a network."""
    for option in (
        click.option("--workers", type=click.IntRange(1), help="Threads that read images ahead."),
        click.option("--engine", default="local", show_default=True, help="Who computes: 'local' or 'ray'."),
    ):
        function = option(function)
    return function


@precompute_command.command("detect")
@project_option
@click.option("--split", default="unlabeled", show_default=True)
@_run_options
@_engine_options
@_rank_options
@click.pass_context
def detect_command(context, project: Project, split: str, dry_run: bool, as_json: bool, **options) -> None:
    """Person boxes of a split, as a COCO detection JSON (mmpose's bbox_file)."""
    if dry_run:
        _show(as_json, _estimate_detect(project, split, _options(**options)))
        return
    finish(context, as_json, [detect(project, split, _options(**options))])


@precompute_command.command("geo")
@project_option
@click.option("--split", default="unlabeled", show_default=True)
@_run_options
@_engine_options
@_rank_options
@click.pass_context
def geo_command(context, project: Project, split: str, dry_run: bool, as_json: bool, **options) -> None:
    """Depth, normals and mask of each instance of a split, into a Zarr store."""
    if dry_run:
        _show(as_json, _estimate_geo(project, split, _options(**options)))
        return
    finish(context, as_json, [geo(project, split, _options(**options))])


@precompute_command.command("stats")
@project_option
@_run_options
@click.pass_context
def stats_command(context, project: Project, dry_run: bool, as_json: bool, **options) -> None:
    """Limb lengths, joint angles and visibility of the stats_splits of data.py: skeleton_stats.json."""
    if dry_run:
        _show(as_json, _estimate_stats(project, _options(**options)))
        return
    finish(context, as_json, [stats(project, _options(**options))])


@precompute_command.command("all")
@project_option
@click.option("--split", "splits", multiple=True, help="Only this one (can be repeated), and statistics.")
@_run_options
@_engine_options
@click.pass_context
def all_command(
    context, project: Project, splits: tuple[str, ...], dry_run: bool, as_json: bool, **options
) -> None:
    """Everything that the project's recipes need: boxes, geometry of labeled and unlabeled, statistics."""
    names = list(splits) or project.precomputed_splits()
    if dry_run:
        _show(as_json, *_estimate_all(project, names, _options(**options)))
        return
    _require_all(project, names, options)
    reports = []
    for name in names:
        reports += _detect_and_geo(project, name, options)
    reports.append(stats(project, _options(force=options["force"])))
    finish(context, as_json, reports)


def _require_all(project: Project, splits: list[str], options: dict) -> None:
    """Files of every split, and results that each step can go on with: told before the first one computes."""
    from sagecache.cli.jobs import require_fresh_steps

    for name in dict.fromkeys([*splits, *project.data.stats_splits]):
        files, *_ = needs = project.split_requirements(name)
        ensure(project, [files] if name not in splits or project.split(name).boxes == "detect" else needs)
    if not options["force"]:
        require_fresh_steps(project, splits if options["limit"] is None else [])  # a trial has its own place


def _options(**options) -> RunOptions:
    from sagecache.precompute.engines import get_engine
    from sagecache.precompute.jobs import RunOptions

    options = {name: value for name, value in options.items() if value is not None}
    get_engine(options.get("engine", "local"))  # a wrong name is told before anything is read
    return RunOptions(**options)


def _detect_and_geo(project: Project, split: str, options: dict) -> list[StepReport]:
    """Boxes where the split wants them, then targets; after a limited detect, of all boxes that it found."""
    if project.split(split).boxes != "detect":
        return [geo(project, split, _options(**options))]
    boxes = detect(project, split, _options(**options))
    if boxes.path == project.detections(split):
        return [boxes, geo(project, split, _options(**options))]
    return [boxes, geo(project, split, _options(**options | dict(limit=None)), boxes.path)]


def _estimate_all(project: Project, splits: list[str], options: RunOptions) -> list[dict]:
    rows = []
    for split in splits:
        boxes = None
        if project.split(split).boxes == "detect":
            rows.append(_estimate_detect(project, split, options))
            boxes = Path(rows[-1]["result"])
        rows.append(_estimate_geo(project, split, options, boxes))
    return [*rows, _estimate_stats(project, replace(options, limit=None))]


def _estimate_stats(project: Project, options: RunOptions) -> dict:
    from sagecache.cli.jobs import stats_job
    from sagecache.precompute.estimates import estimate_stats
    from sagecache.precompute.plan import limited

    splits = project.data.stats_splits
    if first := _first([project.split_requirements(name)[0] for name in splits]):
        return _estimate_row("stats", ", ".join(splits), None, project.stats_file, first)
    job = stats_job(project)
    result, _ = limited(project.stats_file, job.instances, options.limit)
    return _estimate_row("stats", ", ".join(splits), estimate_stats(job, options), result)


def _estimate_detect(project: Project, split: str, options: RunOptions) -> dict:
    from sagecache.cli.jobs import detect_job
    from sagecache.precompute.estimates import estimate_detect
    from sagecache.precompute.plan import limited
    from sagecache.teachers.registry import build_detector

    result = project.split_folder(split) / "detections.json"
    if first := _first(project.split_requirements(split)[:1]):
        return _estimate_row("detect", split, None, result, first)
    job = detect_job(project, split)
    guess = estimate_detect(job, build_detector(project.data.detector), options)
    return _estimate_row("detect", split, guess, limited(job.result, job.images, options.limit)[0])


def _estimate_geo(project: Project, split: str, options: RunOptions, boxes: Path | None = None) -> dict:
    """boxes: the detection file that would come first; None for the split's own boxes."""
    from sagecache.cli.jobs import geo_job
    from sagecache.precompute.estimates import estimate_geo
    from sagecache.precompute.plan import limited
    from sagecache.teachers.registry import build_teacher

    trial = boxes is not None and boxes != project.detections(split)
    first = _first(project.split_requirements(split)[: 1 if trial else None])
    if trial and not boxes.is_file():
        first = first or project.command(
            f"sagecache precompute detect --split {split} --limit {options.limit}"
        )
    if first:
        return _estimate_row("geo", split, None, project.geometry_store(split), first)
    job = geo_job(project, split, boxes if trial else None)
    options = replace(options, limit=None) if trial else options
    guess = estimate_geo(job, build_teacher(project.data.teacher), options)
    return _estimate_row("geo", split, guess, limited(job.root, job.instances, options.limit)[0])


def _first(needs: list[Requirement]) -> str:
    """The command that must run before anything can be counted; '' where all is there."""
    return next((need.command for need in needs if not need.present()), "")


def _estimate_row(step: str, split: str, guess: Estimate | None, result: Path, first: str = "") -> dict:
    """total: images for detect, instances for geo. Without a guess, the command that must run first."""
    return dict(
        step=step,
        split=split,
        total=guess and guess.total,
        missing=guess and guess.missing,
        megabytes=guess and round(guess.bytes / 1e6, 2),
        seconds=guess and round(guess.seconds, 1),
        result=str(result),
        run_first=first,
    )


def _show(as_json: bool, *rows: dict) -> None:
    if as_json:
        emit_json(list(rows))
        return
    columns = [name for name in rows[0] if name != "run_first"] if rows else []
    shown = [["-" if row[name] is None else row[name] for name in columns] for row in rows]
    emit_table("dry run", columns, shown)
    for row in rows:
        if row["run_first"]:
            note(f"{row['step']} {row['split']}: known after: {row['run_first']}")


def finish(
    context: click.Context, as_json: bool, reports: list[StepReport], title: str = "precompute"
) -> None:
    """Print what was done and what has no result; exit 1 when there is something to mend among it."""
    failed = [(report.step, item) for report in reports for item in report.failed]
    if as_json:
        emit_json([_as_dict(report) for report in reports])
    else:
        _print_reports(title, reports)
        if failed:
            shown = [
                (step, item.image_id, "-" if item.instance is None else item.instance, item.reason, item.path)
                for step, item in failed[:20]
            ]
            emit_table(
                f"without a result ({len(failed)}; all with --json)",
                ("step", "image", "instance", "why", "file"),
                shown,
            )
    for report in reports:
        if report.missing:
            note(f"{report.step}: {report.missing} are left to the other ranks; the last one finishes")
    context.exit(1 if any(not item.nobody for _, item in failed) else 0)


def _print_reports(title: str, reports: list[StepReport]) -> None:
    """The table of what was done; with a column of persons where something was looked for in images."""
    columns = ["step", "total", "computed", "failed", "MB", "seconds", "result"]
    rows = [
        [r.step, r.total, r.computed, len(r.failed), f"{r.bytes / 1e6:.1f}", f"{r.seconds:.1f}", r.path]
        for r in reports
    ]
    if any(r.persons is not None for r in reports):
        columns.insert(2, "persons")
        for row, report in zip(rows, reports, strict=True):
            row.insert(2, "-" if report.persons is None else report.persons)
    emit_table(title, columns, rows)


def _as_dict(report: StepReport) -> dict:
    failed = [
        dict(image_id=item.image_id, instance=item.instance, reason=item.reason, file=str(item.path))
        for item in report.failed
    ]
    return dict(
        step=report.step,
        path=str(report.path),
        total=report.total,
        persons=report.persons,
        computed=report.computed,
        failed=failed,
        missing=report.missing,
        bytes=report.bytes,
        seconds=round(report.seconds, 3),
        teacher_seconds=round(report.teacher_seconds, 3),
    )
