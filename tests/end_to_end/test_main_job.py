"""The main job as typed, on a project of some dozen infants: every command, its files and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from bucket import bucket
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import COUNTS, write_tiny_project
from typed import sagecache

from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.store import StoreReader

pytest.importorskip("embreex", reason="renders infants")

FEW = ("batch.workers=0", f"batch.unlabeled={COUNTS['unlabeled']}", "train_cfg.log_interval=1")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Rendered, precomputed and trained once; the tests below look at what came out."""
    folder = write_tiny_project(tmp_path_factory.mktemp("tiny") / "project")
    with pytest.raises(SagecacheError, match="data synth --split labeled"):
        sagecache(folder, "train", "stage0")
    sagecache(folder, "data", "synth", "--workers", "1")
    with pytest.raises(SagecacheError, match="precompute detect --split unlabeled.*precompute geo"):
        sagecache(folder, "train", "stage1-full")
    sagecache(folder, "precompute", "all")
    sagecache(folder, "train", "stage0", "--max-iters", "2", "batch.workers=0")
    sagecache(folder, "train", "ddp-prior", "prior.steps=100")
    sagecache(folder, "train", "stage1-full", "--max-iters", "4", *FEW)
    return folder


def scalars(work_dir) -> list[dict]:
    """What training logged, oldest first."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def test_precompute_wrote_boxes_targets_and_statistics(project):
    cache = project / "cache"
    boxes = json.loads((cache / "unlabeled" / "detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= boxes[0].keys()
    opened = Project.open(project)
    for split in ("labeled", "unlabeled"):
        reader = StoreReader(cache / split / "geo")
        assert [tuple(key) for key in reader.ids.tolist()] == [one.key for one in opened.instances(split)]
    assert (cache / "skeleton_stats.json").is_file()
    again = sagecache(project, "precompute", "geo", "--json")
    assert json.loads(again.stdout)[0]["computed"] == 0


def test_every_loss_and_both_gate_counts_are_logged_and_finite(project):
    rows = [row for row in scalars(project / "work_dirs" / "stage1_full") if "loss" in row]
    for name in (
        "loss_kpt",
        "loss_consistency",
        "loss_diffusion",
        "loss_cmgc_depth",
        "loss_cmgc_normal",
        "num_use_teacherA",
        "num_use_teacherB",
        "num_unused",
    ):
        assert all(np.isfinite(row[name]) for row in rows) and rows, name
    counts = ("num_use_teacherA", "num_use_teacherB", "num_unused")
    assert all(sum(row[name] for name in counts) == pytest.approx(COUNTS["unlabeled"]) for row in rows)
    for term in ("cmgc_depth", "cmgc_normal"):  # they had something to measure: a loss of 0 is finite too
        assert max(row[f"{term}_limbs"] for row in rows) > 0, term
        assert max(row[f"loss_{term}"] for row in rows) > 0, term


def test_eval_agrees_with_pycocotools_on_its_own_results_file(project):
    result = sagecache(project, "eval", "--split", "val", "--json")
    summary = json.loads(result.stdout)
    truth = COCO()
    truth.dataset = json.loads((project / "data" / "val" / "annotations.json").read_text())
    for annotation in truth.dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["area"] = 0.53 * width * height
    truth.createIndex()
    judge = COCOeval(truth, truth.loadRes(summary["predictions"]), "keypoints")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert summary["AP"] == pytest.approx(judge.stats[0], abs=1e-9)
    assert summary["AR"] == pytest.approx(judge.stats[5], abs=1e-9)
    assert "stage1_full" in summary["checkpoint"]
    table = sagecache(project, "eval", "--boxes", "detections", "--split", "unlabeled")
    assert "left_wrist" in table.stdout and ".53" in table.stdout


def test_inspect_shows_bytes_and_the_gate_and_names_neighbours(project):
    checkpoint = Project.open(project).checkpoint("stage1-full")
    result = sagecache(project, "inspect", "3", "--checkpoint", str(checkpoint), "--json")
    summary = json.loads(result.stdout)
    assert summary["store"]["stale"] == "no"
    row = summary["instances"][0]
    assert row["gate"] in ("A, the EMA teacher", "B, corrected by the prior")
    assert row["bytes of depth"].startswith("targets.zarr/depth/")
    with open(summary["picture"], "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(SagecacheError, match=f"no image 999.*Nearest ids: {COUNTS['unlabeled']}"):
        sagecache(project, "inspect", "999")


def test_a_changed_setting_makes_the_store_stale_and_says_which(project, monkeypatch):
    page = project / "data.py"
    before = page.read_text()
    try:
        page.write_text(before + "\ncrop = dict(padding=1.5)\n")
        with pytest.raises(SagecacheError, match=r"crop.padding: 1.25 -> 1.5"):
            sagecache(project, "train", "stage1-full", "--max-iters", "1")
        shown = json.loads(sagecache(project, "inspect", "3", "--json").stdout)
        assert "crop.padding" in shown["store"]["stale"]
    finally:
        page.write_text(before)


def test_resume_goes_on_where_the_run_stopped(project, tmp_path):
    """With the seed of the run that stopped, although the second command does not name it; with a term that
    learns a layer of its own.
    """
    words = (*FEW, "data.val=None", "semi.terms.geometry.weight=0.5")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sagecache(
        project, "train", "stage1-full", "--max-iters", "4", "--seed", "3", "--work-dir", str(whole), *words
    )
    sagecache(
        project, "train", "stage1-full", "--max-iters", "2", "--seed", "3", "--work-dir", str(cut), *words
    )
    sagecache(project, "train", "stage1-full", "--max-iters", "4", "--resume", "--work-dir", str(cut), *words)
    expected = [row["loss"] for row in scalars(whole) if "loss" in row]
    assert len(expected) == 4
    assert [row["loss"] for row in scalars(cut) if "loss" in row] == expected
    one, other = (torch.load(run / "iter_4.pth", weights_only=True)["state_dict"] for run in (whole, cut))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert one["terms.geometry.layer.weight"].any()  # it starts from zero


TOLD_BY_EACH = """
import hashlib, os, pathlib
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from sagecache.cli.main import cli

@HOOKS.register_module()
class TellNetwork(Hook):
    def after_train(self, runner):
        every = [one.detach().numpy().tobytes() for one in runner.model.parameters()]
        told = hashlib.sha256(b"".join(every)).hexdigest()
        pathlib.Path(__file__).with_name("rank" + os.environ["RANK"]).write_text(told)

cli()
"""


def test_two_processes_with_every_term_and_accumulated_steps_have_one_network(project, tmp_path):
    """An unlabeled batch of 5 divides neither the 12 persons nor the shares of two processes."""
    (tmp_path / "told.py").write_text(TOLD_BY_EACH)
    words = ["train", "stage1-full", "--max-iters", "4", "--work-dir", tmp_path / "run", "batch.workers=0"]
    words += ["batch.labeled=3", "batch.unlabeled=5", "data.val=None", "semi.terms.geometry.weight=0.5"]
    words += ["optim_wrapper.accumulative_counts=2", "custom_hooks=[{'type':'TellNetwork'}]"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "told.py"), "--project", str(project), *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"rank{rank}").read_text() for rank in range(2))
    assert first == second  # of the student, its EMA, the prior and the layer of the geometry term
    trained = torch.load(tmp_path / "run" / "iter_4.pth", weights_only=True)
    assert {int(one["step"]) for one in trained["optimizer"]["state"].values()} == {2}
    assert trained["state_dict"]["terms.geometry.layer.weight"].any()  # it starts from zero
    networks = ("student.", "ema_teacher.", "terms.geometry.")  # CMGC's references have NaN for a limb unseen
    for name, value in trained["state_dict"].items():
        assert not name.startswith(networks) or value.isfinite().all(), name


def test_teachers_are_measured_against_the_rendered_truth(project):
    sagecache(project, "precompute", "geo", "--split", "val")
    summary = json.loads(sagecache(project, "teachers", "--split", "val", "--json").stdout)
    assert 1 <= summary["instances"] <= COUNTS["val"]  # those with pixels enough, 128 across
    teacher, constant = summary["geometry"]["teacher"], summary["geometry"]["constant"]
    assert teacher["normal_mean"] < 50, "another sign of an axis would give far more"
    assert teacher["depth_correlation"] > 0.3, "and would turn the depth round"
    assert constant.keys() == {"normal_mean", "normal_median", "depth_rmse"} < teacher.keys()
    assert 0.5 < teacher["mask_iou"] <= 1 and 0 <= summary["detector_ap50"] <= 1
    text = sagecache(project, "teachers", "--split", "val").stdout
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert len(rows["teacher"]) == len(rows["constant"]) == len(teacher) and "-" in rows["constant"]


def test_export_is_a_plain_mmpose_checkpoint(project, tmp_path):
    import torch

    out = tmp_path / "student.pth"
    sagecache(project, "export", str(out), "--network", "student")
    keys = torch.load(out, weights_only=True)["state_dict"].keys()
    assert {key.split(".")[0] for key in keys} == {"backbone", "head"}


def test_check_finds_nothing_wrong(project):
    result = sagecache(project, "data", "check", "--json")
    assert json.loads(result.stdout)["errors"] == 0


def test_dry_run_counts_what_is_not_there_yet_without_writing(project, tmp_path):
    assert not (project / "cache" / "test" / "geo").exists()
    before = sorted((project / "cache").rglob("*"))
    rows = json.loads(
        sagecache(project, "precompute", "geo", "--split", "test", "--dry-run", "--json").stdout
    )
    assert rows[0]["total"] >= COUNTS["test"] and rows[0]["megabytes"] > 0
    assert sorted((project / "cache").rglob("*")) == before
    empty = write_tiny_project(tmp_path / "empty")
    before = sorted(empty.rglob("*"))
    rows = json.loads(sagecache(empty, "precompute", "all", "--dry-run", "--json").stdout)
    assert all(row["total"] is None and "data synth --split" in row["run_first"] for row in rows)
    assert len(rows) == 4 and sorted(empty.rglob("*")) == before


def test_unknown_names_suggest_the_nearest(project):
    with pytest.raises(SagecacheError, match="did you mean 'stage1-full'"):
        sagecache(project, "train", "stage1-fulll")
    with pytest.raises(SagecacheError, match="[Dd]id you mean 'max_iters'"):
        sagecache(project, "train", "stage0", "train_cfg.max_iter=3")
    with pytest.raises(SagecacheError, match="[Dd]id you mean 'consistency'"):
        sagecache(project, "train", "stage1-full", "semi.terms.consistancy.weight=1", "batch.workers=0")


def test_stores_in_a_bucket_are_made_by_ray_and_trained_from(project, tmp_path):
    """The same pages with one more line: the same targets, elsewhere."""
    pytest.importorskip("ray", reason="the engine 'ray' needs the package ray")
    folder = shutil.copytree(project, tmp_path / "project")
    with bucket() as url:
        with (folder / "data.py").open("a") as page:
            page.write(f'store_root = "{url}/targets"\n')
        with pytest.raises(SagecacheError, match="precompute geo --split labeled"):
            sagecache(folder, "train", "stage1-full", "--max-iters", "1", *FEW)
        for split in ("labeled", "unlabeled"):
            made = sagecache(folder, "precompute", "geo", "--split", split, "--engine", "ray", "--json")
            assert json.loads(made.stdout)[0]["path"] == f"{url}/targets/{split}/geo"
            here = StoreReader(project / "cache" / split / "geo")
            there = StoreReader(f"{url}/targets/{split}/geo")
            keys = here.ids[here.status == 1]
            wanted, found = here.read_many(keys), there.read_many(keys)
            assert np.array_equal(wanted["mask"], found["mask"]) and there.verify() == []
        sagecache(folder, "train", "stage1-full", "--max-iters", "2", *FEW)
        assert (folder / "cache" / "shards").is_dir()  # what was read is kept here
        shown = sagecache(folder, "inspect", str(int(keys[0][0])), "--json")
        assert "targets.zarr/depth/c/" in shown.stdout
