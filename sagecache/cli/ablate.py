"""``sagecache ablate``: train the arms of an ablation page with several seeds, and compare them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import emit_json, emit_table, note
from sagecache.errors import SagecacheError, counted, nearest

if TYPE_CHECKING:
    from sagecache.project import Project
    from sagecache.project.ablation import Ablation


@dataclass(frozen=True)
class Options:
    """What the command line says. arms: None for all; labels: see `Project.redrawn`."""

    seeds: int = 3
    arms: str | None = None
    split: str = "test"
    processes: int | None = None
    max_iters: int | None = None
    labels: int | None = None
    amp: bool = False
    plots: Path | None = None


@click.command("ablate", short_help="Train arms with several seeds and compare them.")
@click.argument("name")
@project_option
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many.")
@click.option("--arms", metavar="A,B", help="Train these alone; the table has others that stand already.")
@click.option("--split", default="test", show_default=True, help="Where all arms are measured.")
@click.option("--processes", type=click.IntRange(1), help="Side by side. Default: GPUs, else physical cores.")
@click.option("--max-iters", type=click.IntRange(1), help="A trial of the arms, kept apart from whole runs.")
@click.option("--labels", type=click.IntRange(1), help="Labeled images of a draw. Default: as data.py says.")
@click.option("--amp", is_flag=True, help="Train the arms with bfloat16 autocast, apart from those without.")
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    help="Draw the page's evidence plots here; some judge networks anew, on disturbed crops.",
)
@click.option(
    "--table",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Markdown page in which the table is remade, between its markers.",
)
@json_option
@click.pass_context
def ablate_command(
    context: click.Context, name: str, project: Project, table: Path | None, as_json: bool, **options
) -> None:
    """Train each arm of the page ablations/NAME.py with several seeds, and compare them.

    Seed n is draw n of the project, with labels, start weights and batches of its own. What is trained is
    kept and what was cut off goes on, so the same command goes on after Ctrl-C, or with more seeds. After a
    change of code delete the runs.
    """
    if table is not None:
        from sagecache.cli.ablate_table import check_page, markdown, write_table

        check_page(table, name)
    content = run(project, name, Options(**options))
    if as_json:
        emit_json(content)
    else:
        show(content)
    if table is not None:
        write_table(table, name, markdown(content))
        note(f"table: {table}")
    if content["missing"]:
        context.exit(1)


def run(project: Project, name: str, options: Options) -> dict[str, Any]:
    """Train and score what is missing, then compare. Returns the summary."""
    from sagecache.cli.ablate_jobs import make_all
    from sagecache.cli.ablate_plots import Evidence, check_plots, draw_evidence, standing_runs
    from sagecache.cli.ablate_runs import Repetitions, Training, report_of
    from sagecache.cli.ablate_table import Found, summary
    from sagecache.cli.actions import ensure
    from sagecache.project.ablation import read_ablation

    if project.draw.text:
        raise SagecacheError("an ablation draws itself", file="--draw", fix="Leave it out; give --seeds.")
    ablation = read_ablation(project, name)
    check_plots(ablation.evidence)
    chosen = _chosen(ablation, options.arms)
    ensure(project, project.split_requirements(options.split))
    repetitions = Repetitions.of(project, options.labels)
    projects = {draw: repetitions.project(draw) for draw in range(options.seeds)}
    everywhere = {"amp": True} if options.amp else {}
    every = {
        (arm, draw): Training(one.recipe, draw, one.overrides | everywhere, options.max_iters)
        for draw in projects  # draw by draw: what a stopped command leaves can be compared
        for arm, one in ablation.arms.items()
    }
    planned = {label(*key): training for key, training in every.items() if key[0] in chosen}
    failed = make_all(name, repetitions, projects, planned, options.split, options.processes)
    reports: dict[str, dict[int, Any]] = {arm: {} for arm in ablation.arms}
    missing = {}
    for key, training in every.items():
        report = report_of(projects[training.draw], training, options.split)
        if report is not None:
            reports[key[0]][key[1]] = report
        elif label(*key) in planned:
            missing[label(*key)] = failed.get(label(*key), "not made")
    found = Found(
        name=name,
        command=command(project, name, options),
        ablation=ablation,
        split=options.split,
        draws=range(options.seeds),
        labels=options.labels,
        reports=reports,
        missing=missing,
    )
    if options.plots is not None:
        plots = Evidence(standing_runs(projects, every), options.split, options.plots)
        for file in draw_evidence(name, plots, ablation.evidence, repetitions, options.processes):
            note(f"plot: {file}")
    return summary(found) | dict(max_iters=options.max_iters)


def _chosen(ablation: Ablation, text: str | None) -> list[str]:
    names = list(ablation.arms) if text is None else [word.strip() for word in text.split(",")]
    for name in names:
        if name not in ablation.arms:
            raise SagecacheError(f"no arm '{name}'", file="--arms", fix=nearest(name, ablation.arms))
    return names


def label(arm: str, draw: int) -> str:
    return f"{arm}, seed {draw}"


def command(project: Project, name: str, options: Options) -> str:
    """What remakes the table."""
    words = [f"sagecache ablate {name} --seeds {options.seeds}"]
    words += [f"--arms {shlex.quote(options.arms)}"] if options.arms else []
    words += [f"--split {options.split}"] if options.split != Options.split else []
    words += [f"--max-iters {options.max_iters}"] if options.max_iters else []
    words += [f"--labels {options.labels}"] if options.labels else []
    words += ["--amp"] if options.amp else []
    return project.command(" ".join(words))


def show(content: Mapping[str, Any]) -> None:
    """Tables of arms and of questions, and what must be known of them."""
    from sagecache.cli.ablate_table import arm_table, footnotes, group_table

    columns, rows = arm_table(content)
    shown = [i for i, column in enumerate(columns) if column != "what it asks"]  # too wide for a console
    trials = f", trials of {counted(content['max_iters'], 'iteration')}" if content.get("max_iters") else ""
    title = f"ablation {content['name']}{trials}"
    emit_table(title, [columns[i] for i in shown], [[row[i] for i in shown] for row in rows])
    columns, rows = group_table(content)
    if rows:
        emit_table("", columns, rows)
    for line in footnotes(content):
        click.echo(line)
