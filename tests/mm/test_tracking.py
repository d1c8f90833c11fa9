"""Where scalars go: the writers of a run, and --wandb with a stand-in that writes down what it is told."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
from dots_network import bright_project, train

from sagecache.errors import SagecacheError
from sagecache.mm import run, tracking


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.started, self.logged, self.metrics, self.uploaded, self.finished = [], [], [], [], 0
        self.config = SimpleNamespace(update=lambda values, **_: setattr(self, "values", values))
        self.run = SimpleNamespace(log_code=self.uploaded.append)

    def init(self, **options):
        # what the real one reads by itself
        self.started.append(dict(options, mode=os.environ.get("WANDB_MODE", "online")))

    def define_metric(self, **options):
        self.metrics.append(options)

    def log(self, values, commit=None):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_tells_of_itself_and_every_scalar_with_its_iteration(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    project = bright_project(tmp_path / "dots")
    best = train(project, "stage0", run.TrainOptions(wandb=True), lambda *words: None)
    (started,) = wandb.started
    assert (started["project"], started["name"], started["mode"]) == ("dots", "stage0", "offline")
    assert started["dir"].startswith(str(best.parent))
    losses = {row["iteration"]: row["loss"] for row in wandb.logged if "loss" in row}
    assert sorted(losses) == [1, 2, 3, 4]
    (validated,) = [row for row in wandb.logged if "keypoints/AP" in row]
    assert validated["iteration"] == 4
    assert wandb.metrics == [dict(name="*", step_metric="iteration")]
    assert wandb.values["recipe"]["train_cfg"]["max_iters"] == 4
    assert wandb.uploaded == [] and wandb.finished == 1  # the code below the current folder stays here


def test_without_the_word_wandb_hears_nothing(tmp_path, wandb):
    train(bright_project(tmp_path / "dots"), "stage0", run.TrainOptions(max_iters=1), lambda *words: None)
    assert wandb.started == []


def test_its_own_environment_variables_win(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "infants")
    monkeypatch.setenv("WANDB_NAME", "third")
    project = bright_project(tmp_path / "dots")
    writers = tracking.log_writers(project, "stage0", project.recipe("stage0")[0], wandb=True)
    assert writers[-1]["init_kwargs"] == dict(project="infants", name="third")


def test_a_refused_login_is_one_line(tmp_path, wandb, monkeypatch):
    def refuse(**_options):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    project = bright_project(tmp_path / "dots")
    with pytest.raises(SagecacheError, match="W&B can't start: No API key.*WANDB_MODE=offline") as caught:
        train(project, "stage0", run.TrainOptions(wandb=True), lambda *words: None)
    assert "\n" not in str(caught.value)


def test_without_the_package_its_install_command_is_named(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(SagecacheError, match=r'pip install "sagecache\[wandb\]"'):
        tracking.require_wandb()


def test_log_writers_are_fresh_for_each_run(tmp_path):
    """mmengine writes the run's folder into the dicts that it gets."""
    project = bright_project(tmp_path / "dots")
    page = project.recipe("stage0")[0]
    recipe = replace(page, vis_backends=[dict(type="LocalVisBackend")])
    first = tracking.log_writers(project, "stage0", recipe, wandb=False)
    first[0]["save_dir"] = "elsewhere"
    again = tracking.log_writers(project, "stage0", recipe, wandb=False)
    assert again == recipe.vis_backends == [dict(type="LocalVisBackend")]
    plain = [tracking.log_writers(project, "stage0", page, wandb=False) for _ in range(2)]
    assert plain[0] and plain[0] == plain[1] and plain[0] is not plain[1]


def test_without_tensorboard_there_are_no_curves_and_training_goes_on(tmp_path, monkeypatch):
    project = bright_project(tmp_path / "dots")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    train(project, "stage0", run.TrainOptions(max_iters=1), lambda *words: None)
    assert not list(project.work_dir("stage0").rglob("events.out*"))
