"""What is made before trainings begin, and in which order trainings may begin."""

from __future__ import annotations

import pytest
from dots import write_dots_project

from sagecache.cli import ablate_jobs
from sagecache.cli.ablate_jobs import check, make_all, plan_jobs, prepare
from sagecache.cli.ablate_runs import Repetitions, Training
from sagecache.errors import SagecacheError
from sagecache.project import Project


@pytest.fixture
def project(tmp_path) -> Project:
    return Project.open(write_dots_project(tmp_path / "mine"))


def plan(project: Project, monkeypatch, stands=(), draws=(0, 1), **arms) -> dict[str, str | None]:
    """name -> what it waits for."""
    monkeypatch.setattr(
        ablate_jobs, "state", lambda _, one: "stands" if (one.recipe, one.draw) in stands else "none"
    )
    projects = {draw: project.redrawn(draw) for draw in draws}
    planned = {f"{arm} {draw}": Training(*what, draw=draw) if isinstance(what, tuple) else what(draw)
               for draw in draws for arm, what in arms.items()}  # fmt: skip
    jobs = plan_jobs(Repetitions(project.folder), projects, planned, planned, "test")
    return {job.name: job.after for job in jobs}


def test_arms_wait_for_the_one_training_that_they_start_from(project, monkeypatch):
    found = plan(
        project, monkeypatch, stands=[("stage0", 0)],
        plain=lambda draw: Training("stage1-full", draw),
        wide=lambda draw: Training("stage1-full", draw, {"views.num_strong": 2}),
    )  # fmt: skip
    start = "stage0 that draw 1 starts from"
    assert found == {"plain 0": None, "wide 0": None, start: None, "plain 1": start, "wide 1": start}
    assert list(found).index(start) < list(found).index("plain 1")


def test_an_arm_that_others_start_from_is_trained_once(project, monkeypatch):
    found = plan(
        project, monkeypatch, draws=(0,),
        plain=lambda draw: Training("stage1-full", draw), start=lambda draw: Training("stage0", draw),
    )  # fmt: skip
    assert found == {"start 0": None, "plain 0": "start 0"}


def test_what_draws_share_must_be_there_and_what_is_a_draw_s_own_is_made(project, monkeypatch):
    made = []
    monkeypatch.setattr(ablate_jobs, "make", lambda own, need: made.append((own.draw.text, need.kind)))
    fresh = []
    monkeypatch.setattr("sagecache.cli.jobs.require_fresh", lambda own, recipe: fresh.append(own.draw.text))
    training = Training("stage1-full", 0)
    with pytest.raises(SagecacheError, match="missing: stats of labeled.*precompute stats$"):
        prepare(project, project, training)
    drawn = Repetitions(project.folder, 2).project(1)
    prepare(project, drawn, Training("stage1-full", 1))
    assert made == [("1:2", "stats")] and fresh == ["1:2"]  # judged once all is there
    made.clear()
    (project.folder / "data/unlabeled/annotations.json").unlink()
    with pytest.raises(SagecacheError, match="split of unlabeled"):
        prepare(project, drawn, Training("stage1-full", 1))


def test_a_slip_in_a_section_is_told_before_anything_begins(project, monkeypatch):
    monkeypatch.setattr(ablate_jobs, "run_jobs", lambda *_: pytest.fail("began"))
    slip = Training("stage1-full", 0, {"semi.pseudo_labels.treshold": 0.4})
    with pytest.raises(SagecacheError, match="treshold"):
        check(project, slip)
    with pytest.raises(SagecacheError, match="treshold"):
        make_all(
            "x", Repetitions(project.folder), {0: project}, {"a": Training("stage0", 0), "b": slip}, "test", 1
        )
