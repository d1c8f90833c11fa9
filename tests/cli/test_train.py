"""sagecache train and export as typed: options reach the run, and what is missing stops it first."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
import torch
from dots import write_dots_project
from dots_network import bright_project, save_checkpoint
from typed import sagecache

from sagecache.cli import actions
from sagecache.cli.main import main
from sagecache.cli.train import newest_checkpoint
from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.project.runs import FinishedRun, mark_finished


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "mine")


def test_options_reach_the_run(folder, tmp_path):
    """A learnable layer is all that the dots' network lacks: the demo's own backbone has one."""
    page = folder / "model.py"
    head = 'head=dict(type="SoftmaxHeatmapHead", in_channels=8, out_channels=17, deconv_out_channels=None,'
    loss = ' loss=dict(type="SpatialCrossEntropyLoss"), decoder=codec)'
    text = page.read_text().replace('head=dict(type="DotsHead", decoder=codec)', head + loss)
    page.write_text(text.replace('dict(type="DotsBackbone")', 'dict(type="PoseNet", width=8)'))
    work = tmp_path / "here"
    words = ("--max-iters", "2", "--work-dir", str(work), "--seed", "3", "--cfg-options", "batch.labeled=3")
    done = sagecache(folder, "train", "stage0", *words, "data.val=None", "optim_wrapper.optimizer.lr=0.125")
    assert done.stderr.splitlines()[-1] == f"stage0: {work / 'iter_2.pth'}" and "2/2" in done.stderr
    assert torch.load(work / "iter_2.pth", weights_only=False)["meta"]["seed"] == 3
    (log,) = work.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and {row["lr"] for row in rows} == {0.125}
    (config,) = work.glob("*/vis_data/config.py")
    assert "labeled=3" in config.read_text()
    assert not (folder / "work_dirs").exists()


@pytest.mark.parametrize(
    "words, told",
    [
        (("stage9",), "no recipe 'stage9'. did you mean 'stage0'"),
        (("stage0", "max_iters"), "'max_iters' is no KEY=VALUE"),
        (("stage0", "train_cfg={}"), "'train_cfg' is set to a dict"),
        (("stage0", "batchs.labeled=3"), "did you mean 'batch'"),
        (
            ("stage1-full",),
            "missing: stats of labeled, recipe of stage0.*precompute stats && .* train stage0$",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(folder, words, told):
    with pytest.raises(SagecacheError, match=told):
        sagecache(folder, "train", *words)
    assert not (folder / "work_dirs").exists()


@pytest.mark.parametrize(
    "words, saved_s_ago, told",
    [
        ((), None, "starts the training anew"),
        ((), 3600, "starts the training anew"),  # another run's
        ((), -1, "add --resume to the same command"),
        (("--resume",), 3600, "run the same command again to go on"),
        (("--resume",), None, "starts the training anew"),
    ],
)
def test_ctrl_c_says_whether_resume_goes_on(folder, monkeypatch, capsys, words, saved_s_ago, told):
    def stopped(project, recipe, **options):
        if saved_s_ago is not None:
            path = save_checkpoint(project, project.work_dir(recipe) / "iter_4.pth")
            os.utime(path, (time.time() - saved_s_ago,) * 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(actions, "train", stopped)
    monkeypatch.setattr(sys, "argv", ["sagecache", "--project", str(folder), "train", "stage0", *words])
    with pytest.raises(SystemExit, match="130"):
        main()
    assert told in capsys.readouterr().err


def test_a_negative_seed_is_refused(folder):
    refused = sagecache(folder, "train", "stage0", "--seed=-1", code=2)
    assert "-1 is not in the range" in refused.output


def test_statistics_of_other_labels_stop_a_semi_supervised_run(folder):
    work_dir = folder / "work_dirs" / "stage0"
    save_checkpoint(Project.open(folder), work_dir / "iter_4.pth")
    mark_finished(work_dir, FinishedRun(4, "iter_4.pth"))
    sagecache(folder, "precompute", "stats")
    labels = folder / "data" / "labeled" / "annotations.json"
    content = json.loads(labels.read_text())
    content["annotations"].pop()
    labels.write_text(json.dumps(content))
    with pytest.raises(SagecacheError, match="skeleton_stats.json: .*made from other labels.*--force"):
        sagecache(folder, "train", "stage1-full", "--max-iters", "1")


def test_the_given_checkpoint_counts_else_the_newest(folder):
    project = Project.open(folder)
    with pytest.raises(SagecacheError, match="no checkpoint yet"):
        newest_checkpoint(project, None)
    for age, name in enumerate(("stage0", "stage1_full")):
        path = save_checkpoint(project, folder / "work_dirs" / name / "iter_4.pth")
        os.utime(path, (1000 - age, 1000 - age))
    assert newest_checkpoint(project, None).parent.name == "stage0"
    assert newest_checkpoint(project, path) == path


@pytest.mark.parametrize("network, shift", [("ema_teacher", 1.0), ("student", 2.0)])
def test_export_writes_one_network_without_prefix(folder, tmp_path, network, shift):
    project = Project.open(folder)
    save_checkpoint(
        project, folder / "work_dirs" / "stage0" / "iter_4.pth", student=(2.0, 2.0), ema_teacher=(1.0, 1.0)
    )
    out = tmp_path / "plain.pth"
    told = sagecache(folder, "export", str(out), "--network", network).stdout
    assert told.splitlines()[0] == f"{folder / 'work_dirs' / 'stage0' / 'iter_4.pth'} ({network})"
    assert told.splitlines()[1].startswith(f"{out}: plain mmpose checkpoint")
    content = torch.load(out, weights_only=True)
    assert list(content) == ["state_dict"] and content["state_dict"]["head.shift"].tolist() == [shift, shift]
    assert {key.split(".")[0] for key in content["state_dict"]} == {"head"}
    assert not list(tmp_path.glob(".*.tmp"))
    sagecache(folder, "export", str(tmp_path / "not" / "there" / "plain.pth"), "--network", network)
    assert (tmp_path / "not" / "there" / "plain.pth").is_file()


def test_amp_is_part_of_the_recipe_that_a_run_notes(tmp_path):
    folder = bright_project(tmp_path / "mine").folder
    sagecache(folder, "train", "stage0", "--amp", "--max-iters", "2")
    noted = json.loads((folder / "work_dirs/stage0/recipe.json").read_text())
    assert noted["recipe"]["amp"] is True
    with pytest.raises(SagecacheError, match="another recipe .*amp"):
        sagecache(folder, "train", "stage0", "--resume")


@pytest.mark.parametrize("words", [("--max-iters", "3"), ("--resume",), ("--work-dir", "x")])
def test_the_prior_refuses_options_that_it_does_not_follow(folder, words):
    (folder / "ddp_prior.py").write_text('kind = "prior"')
    with pytest.raises(SagecacheError, match=f"knows no {words[0]}.*prior.steps"):
        sagecache(folder, "train", "ddp-prior", *words)
    with pytest.raises(SagecacheError, match="'amp' has no effect on a recipe of kind 'prior'"):
        sagecache(folder, "train", "ddp-prior", "--amp")


def test_wandb_that_is_not_installed_stops_it_before_anything_is_made(folder, monkeypatch):
    from sagecache.mm import tracking

    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(SagecacheError, match="--wandb needs the package wandb.*pip install"):
        sagecache(folder, "train", "stage1-full", "--wandb")
    assert not (folder / "work_dirs").exists()
    monkeypatch.undo()
    told = []
    monkeypatch.setattr(tracking, "require_wandb", lambda: None)
    monkeypatch.setattr(actions, "train", lambda project, recipe, **options: told.append(options["wandb"]))
    sagecache(folder, "train", "stage0", "--wandb")
    sagecache(folder, "train", "stage0")
    assert told == [True, False]
