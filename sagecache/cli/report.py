"""``sagecache report``: one HTML page about a run, to look at instead of its logs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagecache.cli.actions import ensure
from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import emit_json, emit_table, progress
from sagecache.errors import SagecacheError
from sagecache.store.files import write_whole

if TYPE_CHECKING:
    from sagecache.mm.gallery import Gallery
    from sagecache.project import Project
    from sagecache.project.trained import TrainedRun

FILE = "report.html"


@click.command("report", short_help="A page about a run: curves, joints, pseudo-labels.")
@click.argument("recipe", required=False)
@project_option
@click.option(
    "--work-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The run's folder. Default: the recipe's, else the newest.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Default: report.html in the run's folder.",
)
@click.option(
    "--count",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="Unlabeled persons to judge, evenly over the split; the best and worst are shown. 0: none.",
)
@click.option("--open", "opened", is_flag=True, help="Show it in the browser.")
@json_option
def report_command(project: Project, as_json: bool, opened: bool, **options) -> None:
    """Write one HTML file about the run of RECIPE, or about the newest run.

    It holds its pictures and asks no network for anything: curves, a table of joints, and the best and worst
    pseudo-labels with every view and what each filter did.
    """
    summary = report(project, **options)
    if as_json:
        emit_json(summary)
    else:
        rows = [
            (key, _text(key, value)) for key, value in summary.items() if key != "page" and value is not None
        ]
        emit_table("", ("", ""), rows)
        click.echo(summary["page"])
    if opened:
        click.launch(summary["page"])


def report(
    project: Project,
    recipe: str | None = None,
    work_dir: Path | None = None,
    output: Path | None = None,
    count: int = 256,
) -> dict[str, Any]:
    """Write the page, return what there is to say of it. Raises SagecacheError where nothing was trained."""
    from sagecache.project.run_log import read_run_log
    from sagecache.project.trained import trained_run

    if work_dir is not None and recipe is None:
        _require_run(project, work_dir)
    run = trained_run(project, recipe, work_dir)
    log = read_run_log(run.work_dir)
    if run.checkpoint is None and not log.curves:
        raise SagecacheError(
            "neither a checkpoint nor a log of a training",
            file=run.work_dir,
            fix="Run: " + project.train_command(run.name),
        )
    gallery = _gallery(project, run, count)

    from sagecache.cli.report_page import figures, page_of, steps_of
    from sagecache.visualization.page import render

    page = page_of(project, run, log, gallery)
    output = output or run.work_dir / FILE
    content = render(page).encode()
    write_whole(output, content)
    return dict(
        recipe=run.name,
        checkpoint=None if run.checkpoint is None else str(run.checkpoint),
        steps=steps_of(run, log),
        **figures(run, log),
        charts=len(page.charts) + len(page.more_charts),
        judged=0 if gallery is None else len(gallery.judged),
        shown=sum(len(section.cards) for section in page.sections),
        bytes=len(content),
        page=str(output),
    )


def _require_run(project: Project, folder: Path) -> None:
    """A folder whose name is no recipe's would else be told so, which says nothing of what is wrong."""
    from sagecache.project.run_log import read_run_log
    from sagecache.project.runs import noted_start, standing_checkpoint

    if not (noted_start(folder) or standing_checkpoint(folder) or read_run_log(folder).curves):
        raise SagecacheError(
            "the folder holds no run: neither a checkpoint nor a log of a training",
            file=folder,
            fix=f"Give the folder of a run; those of this project lie in {project.work_root}.",
        )


def _gallery(project: Project, run: TrainedRun, count: int) -> Gallery | None:
    """None for a run that has no pseudo-labels to show. Makes what the filters need, as `inspect` does."""
    if not count or run.checkpoint is None or not run.recipe.uses_unlabeled:
        return None
    split = run.recipe.data.unlabeled
    needs = project.requirements(run.recipe)
    wanted = [one for one in needs if one.kind in ("split", "boxes") and one.what == split]
    ensure(project, wanted + [one for one in needs if one.kind == "stats" or one.what == "ddp-prior"])
    from sagecache.mm.gallery import look

    with progress("report") as told:
        return look(project, run, count, told)


def _text(key: str, value: object) -> str:
    """AP and PCK in percent, as everywhere; JSON has fractions."""
    if not isinstance(value, float):
        return str(value)
    return f"{100 * value:.1f}" if key.startswith(("AP", "PCK")) else f"{value:.3f}"
