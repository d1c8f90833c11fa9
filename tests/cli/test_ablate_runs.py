"""When a training of an ablation stands, when it goes on, when it is made anew; and its scores."""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import replace

import pytest
from dots_network import bright_project

from sagecache.cli.ablate_runs import (
    Repetitions,
    Training,
    report_of,
    score_file,
    scored,
    starts,
    state,
    train_and_score,
)
from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.store.lock import FolderLock

START, ARM = Training("stage0", 0), Training("stage1-full", 0, {"views.num_strong": 2})


@pytest.fixture
def project(tmp_path) -> Project:
    return bright_project(tmp_path / "mine")


def fake_run(project: Project, training: Training, recorded: bool = True) -> None:
    """What a run leaves, without training."""
    import torch

    from sagecache.mm.inputs import inputs_of
    from sagecache.mm.registry import build_student
    from sagecache.project.runs import FinishedRun, mark_finished, note_start

    recipe, model = project.recipe(training.recipe, training.overrides)
    work_dir = training.work_dir(project)
    work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    own = build_student(model).state_dict()
    torch.save(
        {"state_dict": {f"ema_teacher.{name}": value for name, value in own.items()}}, work_dir / "iter_4.pth"
    )
    note_start(work_dir, recipe, model, inputs_of(project, recipe) if recorded else None)
    iterations = training.max_iters or recipe.train_cfg.max_iters
    mark_finished(work_dir, FinishedRun(iterations, "iter_4.pth"))


def test_folders_tell_trainings_apart(project):
    root = project.work_root
    assert START.work_dir(project) == root / "stage0"
    other = Training("stage1-full", 0, {"views.num_strong": 3})
    folders = [one.work_dir(project) for one in (ARM, other, Training("stage1-full", 0))]
    assert len(set(folders)) == 3 and folders[0].parent == root / "ablations"
    assert folders[2] == root / "stage1_full"
    trial = Training("stage1-full", 0, max_iters=2).work_dir(project)
    assert trial == root / "ablations/trial_2/stage1_full"
    drawn = project.redrawn(2)
    assert ARM.work_dir(drawn) == root / "draw2/ablations" / folders[0].name
    assert [one.recipe for one in starts(project, ARM)] == ["stage0"] and not list(starts(project, START))
    assert f"train stage1-full --work-dir {folders[0]} views.num_strong=2" in ARM.command(project)


def test_a_run_stands_until_its_page_its_images_or_its_start_change(project):
    assert state(project, START) == "none"
    fake_run(project, START)
    assert state(project, START) == "stands" and state(project, ARM) == "none"
    fake_run(project, ARM)
    assert state(project, ARM) == "stands"

    page = project.folder / "stage1_full.py"
    page.write_text(page.read_text() + "seed = 3\n")
    assert state(project, ARM) == "none" and state(project, START) == "stands"
    page.write_text(page.read_text().replace("seed = 3\n", ""))
    assert state(project, ARM) == "stands"

    images = project.folder / "data/unlabeled/annotations.json"
    before = images.read_text()
    images.write_text(before.replace("201", "209"))
    assert state(project, ARM) == "none" and state(project, START) == "stands"
    images.write_text(before)
    assert state(project, ARM) == "stands"

    start = START.work_dir(project) / "iter_4.pth"
    import torch

    content = torch.load(start, weights_only=True)
    content["message"] = "written on another day"
    torch.save(content, start)
    assert state(project, ARM) == "stands"  # the same weights
    for value in content["state_dict"].values():
        value += 1
    torch.save(content, start)
    assert state(project, ARM) == "none"
    os.unlink(START.work_dir(project) / "finished.json")
    assert state(project, START) == "cut" and state(project, ARM) == "none"


def test_a_run_that_did_not_note_what_it_read_is_taken_at_its_word(project):
    fake_run(project, START, recorded=False)
    assert state(project, START) == "stands"


def test_a_trial_is_no_whole_run_and_a_whole_run_serves_a_longer_trial(project):
    fake_run(project, START)
    trial = Training("stage1-full", 0, max_iters=2)
    fake_run(project, trial)
    assert state(project, trial) == "stands" and state(project, Training("stage1-full", 0)) == "none"


def test_training_is_cut_goes_on_and_is_scored_once(project, monkeypatch):
    """Everything in this process; the trained layer is BrightDotsHead's shift."""
    repetitions, said = Repetitions.of(project, None), []
    options = {"train_cfg.checkpoint_interval": 2, "train_cfg.val_interval": 4}
    training = Training("stage0", 0, options)

    def stop_at_three(done, total, message=""):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_score(repetitions, training, "test", stop_at_three)
    assert state(project, training) == "cut"
    time.sleep(1 - time.time() % 1)  # mmengine names a run by its second, and warns of a second one
    train_and_score(repetitions, training, "test", lambda *told: said.append(told))
    assert [told[0] for told in said[:2]] == [2, 3]  # it went on after the second
    assert state(project, training) == "stands"
    assert said[-1][2] == "score"

    found = report_of(project, training, "test")
    kept = json.loads(score_file(project, training, "test").read_text())["predictions"]
    assert found.persons == len(kept) == 3 and 0 < found.pck[0.1] <= 1
    said.clear()
    train_and_score(repetitions, training, "test", lambda *told: said.append(told))
    assert said == []

    (project.folder / "data.py").write_text(
        (project.folder / "data.py").read_text() + "evaluation = dict(padding=1.5)\n"
    )
    other = Project.open(project.folder)
    assert scored(project, training, "test") is not None and scored(other, training, "test") is None
    rules = replace(project.data.evaluation, sampling="mmpose")
    sampled = Project.open(project.folder)
    sampled.data = replace(project.data, evaluation=rules)
    assert scored(sampled, training, "test") is None
    assert report_of(other, training, "test") is None
    with pytest.raises(SagecacheError, match="can't draw 7 of 3"):
        Repetitions(project.folder, 7).project(1)


def test_what_a_child_is_given_can_be_sent(project):
    repetitions = Repetitions.of(project, 2)
    assert pickle.loads(pickle.dumps((train_and_score, repetitions, ARM)))[1:] == (repetitions, ARM)
    drawn = pickle.loads(pickle.dumps(repetitions)).project(1)
    assert drawn.draw.text == "1:2" and len({one.image_id for one in drawn.instances("labeled")}) == 2
    assert Repetitions.of(Project.demo(), None).project(0).embedded


def test_a_training_that_fails_leaves_the_run_before_it_as_it_was(project, monkeypatch):
    """What a run was made from is noted by the run itself, so nobody else's failure can renew it."""
    fake_run(project, START)
    images = project.folder / "data/labeled/annotations.json"
    images.write_text(images.read_text() + " ")
    assert state(project, START) == "none"
    lock = FolderLock(START.work_dir(project), shared=False)
    with pytest.raises(SagecacheError, match="another"):
        train_and_score(Repetitions.of(project, None), START, None, lambda *told: None)
    lock.release()
    assert state(project, START) == "none"
