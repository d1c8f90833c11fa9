"""A short run: it learns, logs, validates, and tells in one line what it can't do."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch
from dots_network import bright_project, train

from sagecache.errors import SagecacheError
from sagecache.mm import run
from sagecache.project import Project


@pytest.fixture
def project(tmp_path) -> Project:
    return bright_project(tmp_path / "dots")


def test_training_learns_logs_validates_and_returns_the_best_checkpoint(project):
    """All there is to learn is where the peaks are: the shift must go to zero."""
    seen = []
    options = run.TrainOptions(overrides={"optim_wrapper.optimizer.lr": 400.0, "ema_decay": 0.5})
    best = train(project, "stage0", options, lambda done, total, message="": seen.append((done, total)))
    assert best.parent == project.folder / "work_dirs" / "stage0" and best.name.startswith("best_")
    assert seen[-1] == (4, 4)
    state = torch.load(best, weights_only=True)["state_dict"]
    assert state["student.head.shift"].norm() < 0.5 * 2**0.5
    (log,) = best.parent.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    (validated,) = [row for row in rows if "keypoints/AP" in row]
    assert validated["keypoints/PCK@0.1"] == 1.0
    assert project.checkpoint("stage0") == best


def test_a_recipe_without_train_cfg_says_so(project):
    page = project.folder / "bare.py"
    page.write_text('optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01))\n')
    with pytest.raises(SagecacheError, match="recipe bare: the recipe has no train_cfg"):
        train(project, "bare", run.TrainOptions(), lambda *words: None)


def test_a_seed_too_large_for_the_generator_is_refused(project):
    words = {"data.val": None, "seed": 10**9 + 1}
    with pytest.raises(SagecacheError, match=r"seed is 1000000001, it must be in \[0, 1000000000\]"):
        train(project, "stage0", run.TrainOptions(overrides=words), lambda *words: None)
    options = run.TrainOptions(overrides=words | {"seed": 10**9}, max_iters=1)  # the largest works
    assert train(project, "stage0", options, lambda *words: None).name == "iter_1.pth"


def test_a_random_start_is_told_of_and_a_resumed_run_has_none(project, caplog):
    words = {"data.val": None, "train_cfg.checkpoint_interval": 1}
    for resume, length, told in ((False, 1, 1), (True, 2, 1), (False, 1, 2)):
        options = run.TrainOptions(overrides=words, max_iters=length, resume=resume)
        train(project, "stage0", options, lambda *words: None)
        assert caplog.text.count("starts from random weights") == told


def test_an_accumulated_gradient_is_no_wrong_order_of_calls(project):
    """Warnings are errors here: mmengine's would be one."""
    words = {"data.val": None, "optim_wrapper.accumulative_counts": 2}
    words["param_scheduler"] = [dict(type="LinearLR", start_factor=0.1, end=2)]
    trained = train(project, "stage0", run.TrainOptions(overrides=words, max_iters=2), lambda *words: None)
    assert trained.name == "iter_2.pth"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"default_hooks.mine": 1}, "'default_hooks.mine' should be a dict, got 1"),
        ({"custom_hooks": 3}, "'custom_hooks' should be a list, got 3"),
        ({"custom_hooks": [{"type": "NoSuchHook"}]}, "stage0: mmengine refuses it: .*NoSuchHook"),
        ({"vis_backends": [{"type": "NoSuchBackend"}]}, "stage0: mmengine refuses it: .*NoSuchBackend"),
    ],
)
def test_what_mmengine_cannot_build_is_one_clear_error(project, words, told):
    with pytest.raises(SagecacheError, match=told):
        train(project, "stage0", run.TrainOptions(overrides=words), lambda *words: None)


def test_validations_are_logged_at_their_step(project):
    words = {"train_cfg.val_interval": 2}
    trained = train(project, "stage0", run.TrainOptions(overrides=words), lambda *words: None)
    (log,) = trained.parent.glob("2*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "keypoints/AP" in row] == [2, 4]


def test_two_trainings_of_one_second_do_not_share_their_names(tmp_path, monkeypatch):
    """mmengine keeps loggers and message hubs by a run's name and second, and warns where one comes again."""
    clock = SimpleNamespace(**{**vars(time), "time": lambda: 1_700_000_000.0})
    monkeypatch.setattr("mmengine.runner.runner.time", clock)
    for folder in ("one", "two"):
        project = bright_project(tmp_path / folder)
        options = run.TrainOptions(overrides={"data.val": None}, max_iters=1)
        assert run.train(project, "stage0", options, lambda *words: None).is_file()
