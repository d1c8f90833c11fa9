"""Make what an ablation still lacks: first what its trainings read, once, then the trainings side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sagecache.cli.ablate_runs import Repetitions, Training, scored, starts, state, train_and_score
from sagecache.cli.actions import ensure, make
from sagecache.cli.output import note
from sagecache.cli.processes import Job, Machine, run_jobs
from sagecache.errors import counted

if TYPE_CHECKING:
    from pathlib import Path

    from sagecache.project import Project


def make_all(
    title: str,
    repetitions: Repetitions,
    projects: Mapping[int, Project],
    planned: Mapping[str, Training],
    split: str,
    processes: int | None,
) -> dict[str, str]:
    """Train and score all that is planned, by name. Returns why trainings have no result, by name.

    projects: by draw. Nothing is begun where all stand. Raises SagecacheError for what must be there and is
    not, before any training begins.
    """
    for training in planned.values():
        check(projects[training.draw], training)
    lacking = {
        name: training
        for name, training in planned.items()
        if not _has_result(projects[training.draw], training, split)
    }
    for training in lacking.values():
        prepare(projects[0], projects[training.draw], training)
    jobs = plan_jobs(repetitions, projects, planned, lacking, split)
    failed = {name: why for name, why in run_side_by_side(title, jobs, processes).items() if name in planned}
    for name in failed:
        note(f"{name}, alone: {planned[name].command(projects[planned[name].draw])}")
    return failed


def run_side_by_side(title: str, jobs: Sequence[Job], processes: int | None) -> dict[str, str]:
    """Returns what failed, by name; each is told on stderr too."""
    if not jobs:
        return {}
    machine = Machine.whole(processes, _devices())
    note(
        f"{title}: {counted(len(jobs), 'run')} to make or score, {machine.processes} at a time, "
        f"{counted(machine.threads, 'thread')} each"
    )
    return run_jobs(title, jobs, machine)


def check(project: Project, training: Training) -> None:
    """Names and types of all sections: a slip in the last arm is told before the first is trained."""
    from sagecache.cli.jobs import check_recipe

    check_recipe(project.recipe(training.recipe, training.overrides)[0], project.skeleton)


def _has_result(project: Project, training: Training, split: str) -> bool:
    return state(project, training) == "stands" and scored(project, training, split) is not None


def prepare(whole: Project, own: Project, training: Training) -> None:
    """Make what a training reads but runs. It happens before any training, so none makes it beside another.

    In a project of one's own what all draws share must be there; what is the draw's alone is made. Raises
    SagecacheError too for what is there and was made of other labels or with other settings.
    """
    from sagecache.cli.jobs import require_fresh

    ensure_shared = []
    for one in (*starts(own, training), training):
        recipe, _ = own.recipe(one.recipe, one.overrides)
        for need in own.requirements(recipe):
            if need.present() or (need.kind == "recipe" and need.what == recipe.load_from):
                continue
            if need.what in own.draw.splits or (own.draw.splits and need.kind in ("stats", "recipe")):
                ensure(whole, ensure_shared)
                note(f"draw {own.draw.text}: {need.kind} of {need.what}")
                make(own, need)
            else:
                ensure_shared.append(need)
    ensure(whole, ensure_shared)
    require_fresh(own, own.recipe(training.recipe, training.overrides)[0])


def plan_jobs(
    repetitions: Repetitions,
    projects: Mapping[int, Project],
    planned: Mapping[str, Training],
    lacking: Mapping[str, Training],
    split: str,
) -> list[Job]:
    """A job for each training that lacks something, after that of the training it starts from.

    What several start from is one job, and an arm that others start from is that job.
    """
    arms = {training.work_dir(projects[training.draw]): name for name, training in planned.items()}
    jobs: dict[Path, Job] = {}
    for training in lacking.values():
        own, after = projects[training.draw], None
        for one in (*starts(own, training), training):
            folder = one.work_dir(own)
            if folder not in jobs and (one is training or state(own, one) != "stands"):
                name = arms.get(folder, f"{one.recipe} that draw {one.draw} starts from")
                arguments = (repetitions, one, split if folder in arms else None)
                jobs[folder] = Job(name, train_and_score, arguments, folder / "console.log", after)
            after = jobs[folder].name if folder in jobs else None
    return list(jobs.values())


def _devices() -> list[str]:
    import torch

    return [str(number) for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
