"""Trainings of an ablation judged on disturbed crops: side by side, once, kept beside each run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagecache.cli.ablate_jobs import run_side_by_side
from sagecache.cli.ablate_runs import (
    BOXES,
    Repetitions,
    Training,
    as_trained,
    checkpoint_of,
    read_json,
    score_made_from,
    write_json,
)
from sagecache.cli.processes import Job

if TYPE_CHECKING:
    from sagecache.project import Project

# What a network is judged on: kind of `mm.robustness` -> strengths.
STRENGTHS = {
    "strong": (0.0, 0.5, 1.0, 1.5, 2.0),
    "hidden": (0.1, 0.2, 0.3),
    "camera": (0.0, 0.5, 1.0, 1.5, 2.0),
}
MOST_PERSONS = 300  # of the split, evenly spaced: enough for curves

Runs = Mapping[str, Mapping[int, tuple["Project", Training]]]  # arm -> draw -> project of the draw, training


def judge_all(
    title: str,
    repetitions: Repetitions,
    runs: Runs,
    wanted: Iterable[tuple[str, str]],
    split: str,
    processes: int | None,
) -> dict[str, str]:
    """Judge what is not judged yet. wanted: (arm, kind). Returns what failed, by name."""
    jobs: dict[str, Job] = {}
    for arm, kind in wanted:
        for draw, (project, training) in runs.get(arm, {}).items():
            if was_disturbed(project, training, split, kind) is None:
                name = f"{arm}, seed {draw}, {kind}"
                log = training.work_dir(project) / "console.log"
                jobs[name] = Job(name, disturb, (repetitions, training, split, kind), log)
    return run_side_by_side(title, list(jobs.values()), processes)


def disturb(
    repetitions: Repetitions, training: Training, split: str, kind: str, report: Callable[..., None]
) -> None:
    """Judge a training on disturbed crops, and keep the figures beside it."""
    from sagecache.mm.robustness import disturbed

    project = repetitions.project(training.draw)
    instances = [one for one in project.instances(split, BOXES) if one.keypoints is not None]
    instances = instances[:: -(-len(instances) // MOST_PERSONS)]
    found = disturbed(
        as_trained(project, training),
        checkpoint_of(project, training),
        instances,
        kind,
        STRENGTHS[kind],
        report,
    )
    content = dict(made_from=_disturbed_made_from(project, training, split, kind))
    write_json(
        _disturbed_file(project, training, split, kind),
        content | dict(found=[one.as_dict() for one in found]),
    )


def was_disturbed(project: Project, training: Training, split: str, kind: str) -> list[dict] | None:
    content = read_json(_disturbed_file(project, training, split, kind))
    made_from = _disturbed_made_from(project, training, split, kind)
    return content["found"] if content is not None and content.get("made_from") == made_from else None


def _disturbed_file(project: Project, training: Training, split: str, kind: str) -> Path:
    return training.work_dir(project) / f"disturbed_{kind}_{split}.json"


def _disturbed_made_from(project: Project, training: Training, split: str, kind: str) -> dict[str, Any]:
    from sagecache.mm.robustness import KINDS

    own = dict(keys=dict(KINDS[kind]), strengths=list(STRENGTHS[kind]), persons=MOST_PERSONS)
    return score_made_from(project, training, split) | own
