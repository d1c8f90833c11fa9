"""Judging on disturbed crops happens once for a checkpoint, its split and its strengths."""

from __future__ import annotations

import pytest
from dots import write_dots_project
from dots_network import save_checkpoint

from sagecache.cli import ablate_disturbed
from sagecache.cli.ablate_disturbed import STRENGTHS, disturb, judge_all, was_disturbed
from sagecache.cli.ablate_runs import Repetitions, Training
from sagecache.mm.robustness import KINDS, Disturbed
from sagecache.project import Project
from sagecache.project.runs import FinishedRun, mark_finished, note_start

TRAINING = Training("stage0", 0)


@pytest.fixture
def project(tmp_path) -> Project:
    project = Project.open(write_dots_project(tmp_path / "mine"))
    work_dir = project.work_dir("stage0")
    save_checkpoint(project, work_dir / "iter_4.pth")
    note_start(work_dir, *project.recipe("stage0"))
    mark_finished(work_dir, FinishedRun(4, "iter_4.pth"))
    return project


def test_every_strength_is_judged_and_kept_until_something_changes(project, monkeypatch):
    assert STRENGTHS.keys() == KINDS.keys()
    said = []
    disturb(Repetitions.of(project, None), TRAINING, "test", "hidden", lambda *told: said.append(told))
    assert said == [(1, 3, "hidden"), (2, 3, "hidden"), (3, 3, "hidden")]
    found = [Disturbed.from_dict(one) for one in was_disturbed(project, TRAINING, "test", "hidden")]
    assert [one.strength for one in found] == [0.1, 0.2, 0.3]
    assert found[0].counted.sum() >= 3 and found[2].counted.sum() > found[0].counted.sum()
    assert was_disturbed(project, TRAINING, "val", "hidden") is None
    monkeypatch.setattr(ablate_disturbed, "MOST_PERSONS", 2)
    assert was_disturbed(project, TRAINING, "test", "hidden") is None
    monkeypatch.undo()
    save_checkpoint(project, project.work_dir("stage0") / "iter_4.pth", ema_teacher=(1.0, 0.0))
    assert was_disturbed(project, TRAINING, "test", "hidden") is None


def test_only_what_is_not_judged_yet_is_begun(project, monkeypatch):
    begun = []
    monkeypatch.setattr(
        ablate_disturbed,
        "run_side_by_side",
        lambda title, jobs, _: begun.append([job.name for job in jobs]) or {},
    )
    monkeypatch.setattr(ablate_disturbed, "was_disturbed", lambda *a: [] if a[3] == "strong" else None)
    runs = {"a": {0: (project, TRAINING)}}
    wanted = [("a", "strong"), ("a", "hidden"), ("a", "hidden"), ("absent", "hidden")]
    assert judge_all("x", Repetitions.of(project, None), runs, wanted, "test", 1) == {}
    assert begun == [["a, seed 0, hidden"]]
