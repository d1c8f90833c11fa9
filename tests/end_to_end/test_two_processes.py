"""Training under torchrun: two processes on CPU (gloo), one of which speaks and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tiny import write_tiny_project

from sagecache.cli.main import cli
from sagecache.models.weights import read_weights, weights_path

pytest.importorskip("embreex", reason="renders infants")

RECIPE = """
_base_ = "stage0.py"
data = dict(val="labeled")
batch = dict(labeled=3, workers=0)
train_cfg = dict(log_interval=1, val_interval=2)
"""


def test_two_processes_share_one_training(tmp_path, caplog):
    project = write_tiny_project(tmp_path)
    (project / "pair.py").write_text(RECIPE)
    words = ["--project", str(project), "data", "synth", "--split", "labeled", "--workers", "1"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "sagecache", "--project", str(project), "train", "pair", "--max-iters", "2"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train pair: 2/2") == 1
    trained = torch.load(project / "work_dirs" / "pair" / "iter_2.pth", weights_only=False)["state_dict"]
    start = read_weights(weights_path("student"))
    for network in ("student", "ema_teacher"):
        moved = [not torch.equal(trained[f"{network}.{key}"], value) for key, value in start.items()]
        assert any(moved)
    assert all(value.isfinite().all() for value in trained.values())
    assert_validated_as_eval_does(project)
    assert_one_process_goes_on(project, caplog)


def assert_validated_as_eval_does(project: Path) -> None:
    """Each process predicts its share of the persons, and every person counts once."""
    (log,) = (project / "work_dirs" / "pair").glob("2*/vis_data/scalars.json")
    validated = [json.loads(line) for line in log.read_text().splitlines() if "PCK" in line]
    words = ["--project", str(project), "eval", "--split", "labeled", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert len(validated) == 1 and validated[0]["step"] == 2
    for name in ("AP", "PCK@0.05", "PCK@0.1"):
        assert abs(validated[0][f"keypoints/{name}"] - figures[name]) < 1e-3, name
    assert not list(project.rglob(".validation")) and not Path(".dist_test").exists()


def assert_one_process_goes_on(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the optimiser and the EMA of the two, at the step at which they stopped."""
    words = ["--project", str(project), "train", "pair", "--resume", "--max-iters", "3"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "began with 2 processes and goes on with 1" in caplog.text
    two, one = (
        torch.load(project / "work_dirs" / "pair" / f"iter_{step}.pth", weights_only=False) for step in (2, 3)
    )
    first = next(iter(one["optimizer"]["state"].values()))
    assert one["meta"]["iter"] == first["step"] == 3 and two["meta"]["seed"] == one["meta"]["seed"]
    for name, value in one["state_dict"].items():
        if name.startswith("ema_teacher.") and value.is_floating_point():
            student = one["state_dict"][name.replace("ema_teacher", "student")]
            third = (2 * two["state_dict"][name] + student) / 3  # of three students the mean so far
            torch.testing.assert_close(value, third, atol=1e-5, rtol=1e-5, msg=name)
