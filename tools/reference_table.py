#!/usr/bin/env python
"""Train every arm of the demo project with several seeds and write the reference table.

    python tools/reference_table.py

Needs two hours on two cores. Arms that are trained already are kept, so a killed run goes on; after a change
of networks or code delete --runs. Writes docs/results.md and configs/demo/reference.json (which `sagecache
demo` prints); with other options than the defaults it prints the table instead. Run it where the demo ran
(rendered splits and stores are taken from cache/demo), or let it make them.

A seed draws the batches and the views, and each seed has its own stage 0; the labeled images stay the same.
The supervised arm is stage 0 plus as many supervised steps as stage 1 takes, with the same augmentation.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sagecache.cli.actions import ensure, train  # noqa: E402
from sagecache.evaluation.bootstrap import paired_bootstrap  # noqa: E402
from sagecache.evaluation.keypoints import KeypointReport  # noqa: E402
from sagecache.mm.evaluate import score  # noqa: E402
from sagecache.project import Project  # noqa: E402
from sagecache.project.runs import finished_run, shortfall  # noqa: E402

ARMS = {
    "stage0": "200 steps on the labels",
    "stage1-supervised": "stage 0, then labels alone",
    "stage1-baseline": "consistency with the EMA teacher",
    "stage1-ddp": "consistency, diffusion prior",
    "stage1-cmgc": "consistency, depth and normals",
    "stage1-ddp-cmgc": "consistency, prior, depth and normals",
    "stage1-full": "all of these, hybrid gate",
    "oracle": "true labels of every unlabeled image",
}
CONTROL = "stage1-supervised"
SEEDS = 3
METRICS = ("AP", "AP50", "PCK@0.05", "PCK@0.1")
COMMAND = "python tools/reference_table.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 0")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--split", default="test")
    parser.add_argument("--runs", type=Path, default=Path("work_dirs/reference"), help="where runs are kept")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--reference", type=Path, default=ROOT / "configs" / "demo" / "reference.json")
    options = parser.parse_args()

    project = Project.demo()
    ensure(project, project.split_requirements(options.split))
    reports: dict[str, list[KeypointReport]] = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):  # seed by seed: what a stopped run leaves can be compared
        for arm in options.arms:
            checkpoint = trained(project, arm, seed, options.runs)
            report, _ = score(project, checkpoint, options.split)
            reports[arm].append(report)
            figures = {name: round(100 * report.as_dict()[name], 1) for name in METRICS}
            print(arm, seed, json.dumps(figures), flush=True)
    table = make_table(reports, options)
    print("\n".join(table))
    if (options.seeds, options.arms, options.split) == (SEEDS, list(ARMS), "test"):
        write_table(table, options.table)
        write_reference(reports, options)


def trained(project: Project, arm: str, seed: int, runs: Path) -> Path:
    """The arm's checkpoint that did best on val; trained now unless a run of today's pages is complete."""
    folder = runs / f"seed{seed}" / arm
    overrides = {"seed": seed}
    if arm != "stage0":
        overrides["load_from"] = str(trained(project, "stage0", seed, runs).resolve())
    finished = finished_run(folder)
    if finished is not None and not shortfall(finished, *project.recipe(arm, overrides)):
        return folder / finished.checkpoint
    return train(project, arm, overrides, seed=seed, work_dir=folder)


def write_reference(reports: dict[str, list[KeypointReport]], options: argparse.Namespace) -> None:
    arms = {arm: means(seeds) for arm, seeds in reports.items()}
    content = dict(seeds=options.seeds, command=COMMAND, arms=arms)
    options.reference.write_text(json.dumps(content, indent=2) + "\n")


def means(seeds: list[KeypointReport]) -> dict[str, float]:
    return {name: float(np.mean([report.as_dict()[name] for report in seeds])) for name in METRICS}


def make_table(reports: dict[str, list[KeypointReport]], options: argparse.Namespace) -> list[str]:
    """Lines of Markdown: a row an arm, and what was measured."""
    header = ["arm", "what it learns from", *METRICS, f"PCK@0.05 by seed, less {CONTROL}", "95% interval"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for arm, seeds in reports.items():
        mean = means(seeds)
        row = [arm, ARMS[arm], *(f"{100 * mean[name]:.1f}" for name in METRICS)]
        if arm != CONTROL and CONTROL in reports:
            control = [report.as_dict()["PCK@0.05"] for report in reports[CONTROL]]
            each = [100 * (r.as_dict()["PCK@0.05"] - c) for r, c in zip(seeds, control, strict=True)]
            difference, low, high = (100 * v for v in paired_bootstrap(seeds, reports[CONTROL]))
            row += [", ".join(f"{d:+.1f}" for d in each), f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"]
        else:
            row += ["", ""]
        lines.append("| " + " | ".join(row) + " |")
    first = next(iter(reports.values()))[0]
    lines += [
        "",
        f"Split `{options.split}`: {len(first.image_ids)} images, {first.persons} persons; mean of "
        f"{options.seeds} seeds; percent. OKS area {first.area_rule}; PCK of {first.normaliser}. "
        f"Remade by `{COMMAND}`.",
    ]
    return lines


def write_table(lines: list[str], path: Path) -> None:
    """Replace what stands between the markers of the page; the words around it are written by hand."""
    begin, end = "<!-- table: begin -->", "<!-- table: end -->"
    page = path.read_text() if path.is_file() else f"# Results\n\n{begin}\n{end}\n"
    before, after = page.split(begin)[0], page.split(end)[1]
    path.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")


if __name__ == "__main__":
    main()
