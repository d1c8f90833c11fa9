"""Runs that were cut off, go on, or must not: by checkpoints, markers and what they were started as."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from dots_network import bright_project, train

from sagecache.errors import SagecacheError
from sagecache.mm import run
from sagecache.mm.metrics import KeypointMetric
from sagecache.project import Project
from sagecache.store.lock import FolderLock


@pytest.fixture
def project(tmp_path) -> Project:
    return bright_project(tmp_path / "dots")


def test_a_cut_checkpoint_resumes_from_the_one_before(project, caplog):
    """With the seed of the run, and up to the same end."""
    words = {"train_cfg.checkpoint_interval": 1, "data.val": None}
    first = run.TrainOptions(overrides=words, seed=7)
    last = train(project, "stage0", first, lambda *words: None)
    whole = torch.load(last, weights_only=True)["state_dict"]
    last.write_bytes(last.read_bytes()[:500])
    again = train(project, "stage0", run.TrainOptions(overrides=words, resume=True), lambda *words: None)
    assert again == last and "iter_4.pth can't be read" in caplog.text
    resumed = torch.load(last, weights_only=True)["state_dict"]
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)
    assert "nothing left to do" not in caplog.text
    train(project, "stage0", run.TrainOptions(overrides=words, resume=True), lambda *words: None)
    assert "nothing left to do" in caplog.text and "at iteration 4 of 4" in caplog.text


def test_where_there_is_nothing_to_resume_it_says_so_and_starts_anew(project, caplog):
    options = run.TrainOptions(overrides={"data.val": None}, resume=True)
    assert train(project, "stage0", options, lambda *words: None).name == "iter_4.pth"
    assert "nothing to resume" in caplog.text


def test_a_fresh_run_that_fails_at_once_leaves_the_run_before_where_it_was(project):
    first = train(project, "stage0", run.TrainOptions(overrides={"data.val": None}), lambda *words: None)

    def fails(*words):
        raise SagecacheError("loss is nan")

    with pytest.raises(SagecacheError, match="nan"):
        train(project, "stage0", run.TrainOptions(overrides={"train_cfg.log_interval": 1}), fails)
    assert project.checkpoint("stage0") == first and first.is_file()
    assert not (first.parent / "previous-1").exists()


def test_a_copied_work_dir_is_resumed_from_its_own_files_and_the_original_keeps_its_best(project, tmp_path):
    """mmengine keeps absolute paths, and deletes the former best checkpoint for a better one."""
    words = {"train_cfg.checkpoint_interval": 2, "train_cfg.val_interval": 2}
    first = train(project, "stage0", run.TrainOptions(overrides=words, max_iters=2), lambda *words: None)
    assert first.name.startswith("best_")
    copy = tmp_path / "copied" / "stage0"
    shutil.copytree(first.parent, copy)
    state = torch.load(copy / "iter_2.pth", weights_only=True)
    state["message_hub"]["runtime_info"]["best_score"] = -1.0  # whatever comes next is better
    torch.save(state, copy / "iter_2.pth")
    before = {path.name for path in first.parent.glob("*.pth")}
    words["train_cfg.val_interval"] = 4  # the resumed one does not validate its second step again
    options = run.TrainOptions(overrides=words, work_dir=copy, resume=True, max_iters=4)
    second = train(project, "stage0", options, lambda *words: None)
    assert second.parent == copy and second.is_file() and second.name != first.name
    assert {path.name for path in first.parent.glob("*.pth")} == before
    assert not (copy / first.name).exists()  # the copy's own former best


def test_a_run_of_another_recipe_is_not_gone_on_with(project):
    """mmengine would take the learning rate from the file, and the page would be certified."""
    trained = train(project, "stage0", run.TrainOptions(overrides={"data.val": None}), lambda *words: None)
    before = {path: path.stat().st_mtime_ns for path in trained.parent.glob("*.*")}
    other = {"data.val": None, "optim_wrapper.optimizer.lr": 1e-9, "model.head.in_channels": 5}
    with pytest.raises(SagecacheError, match=r"of another recipe \(model.head.in_channels: .* -> 5; .*lr: "):
        train(project, "stage0", run.TrainOptions(overrides=other, resume=True), lambda *words: None)
    assert {path: path.stat().st_mtime_ns for path in trained.parent.glob("*.*")} == before
    with pytest.raises(SagecacheError, match=r"train_cfg.max_iters: 4 -> 9"):  # the schedule would be another
        words = {"data.val": None, "train_cfg.max_iters": 9}
        train(project, "stage0", run.TrainOptions(overrides=words, resume=True), lambda *words: None)
    words = {"data.val": None, "train_cfg.log_interval": 1, "batch.workers": 0}
    options = run.TrainOptions(overrides=words, resume=True, max_iters=5)
    assert train(project, "stage0", options, lambda *words: None).name == "iter_5.pth"


def test_an_infinite_number_in_a_recipe_hinders_no_resume(project):
    words = {"data.val": None, "optim_wrapper.clip_grad": {"max_norm": math.inf}}
    train(project, "stage0", run.TrainOptions(overrides=words, max_iters=1), lambda *words: None)
    options = run.TrainOptions(overrides=words, max_iters=2, resume=True)
    assert train(project, "stage0", options, lambda *words: None).name == "iter_2.pth"


def test_two_trainings_never_share_a_folder(project):
    project.work_dir("stage0").mkdir(parents=True)
    lock = FolderLock(project.work_dir("stage0"), shared=False)
    try:
        with pytest.raises(SagecacheError, match="another process is writing here"):
            train(project, "stage0", run.TrainOptions(), lambda *words: None)
    finally:
        lock.release()
    train(project, "stage0", run.TrainOptions(max_iters=1), lambda *words: None)
    assert not (project.work_dir("stage0") / ".lock").exists()


@pytest.mark.parametrize(
    "steps, scores, best",
    [
        (4, [0.5, KeyboardInterrupt(), 0.5, 0.3], 2),  # killed in the first of two validations
        (3, [0.2, 0.2, KeyboardInterrupt(), 0.5], 3),  # in the one at the end, which is at no interval
    ],
)
def test_a_run_killed_in_a_validation_makes_up_for_it(project, monkeypatch, steps, scores, best):
    """A checkpoint is written before its validation: the resumed run chooses as the undisturbed one."""
    words = {"train_cfg.checkpoint_interval": 1 if steps == 3 else 2, "train_cfg.val_interval": 2}
    scores = iter(scores)

    def measured(metric, results):
        score = next(scores)
        if isinstance(score, BaseException):
            raise score
        return {"PCK@0.05": score}

    monkeypatch.setattr(KeypointMetric, "compute_metrics", measured)
    train(project, "stage0", run.TrainOptions(overrides=words, max_iters=2), lambda *words: None)
    options = dict(overrides=words, max_iters=steps)
    with pytest.raises(KeyboardInterrupt):
        train(project, "stage0", run.TrainOptions(**options), lambda *words: None)
    again = train(project, "stage0", run.TrainOptions(**options, resume=True), lambda *words: None)
    assert again.name == f"best_keypoints_PCK@0.05_iter_{best}.pth" and next(scores, None) is None


def test_a_fresh_run_that_is_killed_early_is_never_resumed_from_the_run_before(project):
    words = {"train_cfg.checkpoint_interval": 2, "data.val": None}

    def again_with(report=lambda *words: None, **options):
        return train(project, "stage0", run.TrainOptions(overrides=words, **options), report)

    def killed(*words):
        raise KeyboardInterrupt

    first = again_with(seed=7)
    with pytest.raises(KeyboardInterrupt):
        again_with(killed, seed=8)
    kept = {path.name for path in (first.parent / "previous-1").iterdir() if path.name[0] != "2"}
    assert kept == {"iter_2.pth", "iter_4.pth", "last_checkpoint", "finished.json", "recipe.json"}
    logs = [
        {path.name for path in folder.glob("2*")} for folder in (first.parent, first.parent / "previous-1")
    ]
    assert all(logs) and not logs[0] & logs[1]  # each run has its own
    assert run.newest_readable(first.parent) is None and project.checkpoint("stage0") is None
    steps = []
    again = again_with(lambda done, total, message="": steps.append(done), seed=8, resume=True)
    assert steps[:2] == [0, 1] and again == first
    assert torch.load(again, weights_only=True)["meta"]["seed"] == 8
    assert not list((first.parent / "previous-2").glob("*.pth"))  # the killed run's log alone


def test_a_run_that_accumulates_is_cut_between_its_steps_alone(project, tmp_path, caplog):
    """No checkpoint keeps half a gradient: intervals grow to whole steps; then equal bits."""
    words = {
        "optim_wrapper.accumulative_counts": 2,
        "optim_wrapper.optimizer.lr": 100.0,
        "train_cfg.checkpoint_interval": 1,
        "train_cfg.log_interval": 1,
        "train_cfg.max_iters": 6,
        "data.val": None,
    }

    def weights(**options) -> dict:
        options = run.TrainOptions(overrides=words, **options)
        return torch.load(train(project, "stage0", options, killed), weights_only=True)["state_dict"]

    def killed(done, *words):
        if done == kill_at:
            raise KeyboardInterrupt

    kill_at = None
    expected = weights(work_dir=tmp_path / "whole")
    assert caplog.text.count("checkpoint_interval 1 becomes 2") == 1 and "val_interval" not in caplog.text
    assert {path.name for path in (tmp_path / "whole").glob("*.pth")} == {"iter_4.pth", "iter_6.pth"}
    kill_at = 4  # before its checkpoint is written
    with pytest.raises(KeyboardInterrupt):
        weights()
    kill_at = None
    found = weights(resume=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "within an optimiser step" not in caplog.text


def test_going_on_within_an_accumulated_step_is_told(project, caplog):
    words = {"optim_wrapper.accumulative_counts": 2, "data.val": None}
    for length, resume in ((3, False), (3, True), (4, True)):
        assert "within an optimiser step" not in caplog.text
        options = run.TrainOptions(overrides=words, max_iters=length, resume=resume)
        train(project, "stage0", options, lambda *words: None)
    assert "iteration 3 ends within an optimiser step of 2" in caplog.text
