"""Training under torchrun: two processes on CPU (gloo), one of which speaks and writes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from tiny import write_tiny_project

from sagecache.cli.main import cli
from sagecache.models.weights import read_weights, weights_path

pytest.importorskip("embreex", reason="renders infants")

RECIPE = """
_base_ = "stage0.py"
data = dict(val=None)
batch = dict(labeled=3, workers=0)
train_cfg = dict(log_interval=1)
"""


def test_two_processes_share_one_training(tmp_path):
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
