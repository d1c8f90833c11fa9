"""precompute as typed: results, failures and their exit code, resuming, --limit, --force and --dry-run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from dots import write_dots_project
from typed import sagecache

from sagecache.project import Project
from sagecache.skeleton.definition import COCO17


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "mine")


def answer(folder, *words: str, code: int = 0) -> list[dict]:
    return json.loads(sagecache(folder, "precompute", *words, "--json", code=code).stdout)


def test_detections_are_a_coco_results_file_of_persons(folder):
    (row,) = answer(folder, "detect", "--split", "val")
    boxes = json.loads((folder / "cache" / "val" / "detections.json").read_text())
    assert (row["step"], row["total"], row["computed"], row["failed"]) == ("detect", 2, 2, [])
    assert row["path"].endswith("val/detections.json")
    for box in boxes:
        assert box["image_id"] in (301, 302) and box["category_id"] == 1 and 0 <= box["score"] <= 1
        assert len(box["bbox"]) == 4 and min(box["bbox"][2:]) > 0


def test_targets_are_written_once_and_read_by_zarr_alone(folder):
    (row,) = answer(folder, "geo", "--split", "val")
    assert (row["total"], row["computed"], row["failed"]) == (3, 3, [])
    group = zarr.open_group(folder / "cache" / "val" / "geo" / "targets.zarr", mode="r")
    depth = group["depth"]
    assert depth.shape[0] >= 3 and all(np.asarray(depth[i]).any() for i in range(3))
    (again,) = answer(folder, "geo", "--split", "val")
    assert (again["total"], again["computed"]) == (3, 0)


def test_an_image_that_cannot_be_read_is_listed_and_exits_1(folder):
    gone = folder / "data" / "val" / "images" / "000000000302.png"
    gone.unlink()
    (row,) = answer(folder, "geo", "--split", "val", code=1)
    assert [(one["image_id"], one["instance"], one["file"]) for one in row["failed"]] == [(302, 0, str(gone))]
    text = sagecache(folder, "precompute", "geo", "--split", "val", "--force", code=1).stdout
    assert "failed (1; all with --json)" in text and "302" in text


def test_a_limit_goes_into_a_place_of_its_own(folder):
    (row,) = answer(folder, "geo", "--split", "val", "--limit", "1")
    assert row["total"] == 1 and row["path"] != str(folder / "cache" / "val" / "geo")
    assert not (folder / "cache" / "val" / "geo").exists()


def test_force_keeps_the_former_result_aside(folder):
    sagecache(folder, "precompute", "stats")
    path = folder / "cache" / "skeleton_stats.json"
    path.write_text(path.read_text() + "\n")
    before = path.read_bytes()
    done = sagecache(folder, "precompute", "stats", "--force")
    (kept,) = [
        line.rpartition(" ")[2] for line in done.stderr.splitlines() if "former result is kept" in line
    ]
    assert (Path(kept) / path.name).read_bytes() == before != path.read_bytes()


def test_statistics_count_the_labeled_persons(folder):
    (row,) = answer(folder, "stats")
    content = json.loads((folder / "cache" / "skeleton_stats.json").read_text())
    assert content["counts"]["instances"] == 5 and set(content["visibility"]) == set(COCO17.names)
    assert (row["step"], row["computed"]) == ("stats", 5)
    assert answer(folder, "stats")[0]["computed"] == 0


@pytest.mark.parametrize("step", ["detect", "geo", "all"])
def test_a_dry_run_counts_and_writes_nothing(folder, step):
    before = sorted(folder.rglob("*"))
    words = [] if step == "all" else ["--split", "val"]
    rows = answer(folder, step, *words, "--dry-run")
    assert [row["total"] for row in rows] == {"detect": [2], "geo": [3], "all": [5, 6]}[step]
    assert all(row["missing"] == row["total"] and row["seconds"] >= 0 for row in rows)
    assert sorted(folder.rglob("*")) == before
    assert "dry run" in sagecache(folder, "precompute", step, *words, "--dry-run").stdout


def test_all_makes_whatever_the_recipes_need(folder):
    """A detector that is sure of nothing and gives its best box all the same: there are no persons here."""
    text = (folder / "data.py").read_text()
    text = text.replace("unlabeled=dict(", 'unlabeled=dict(boxes="detect", min_score=0.0, ')
    text = text.replace('detector = dict(type="demo")', 'detector = dict(type="demo", score=0.0, limit=1)')
    (folder / "data.py").write_text(text)
    rows = answer(folder, "all")
    assert [row["step"] for row in rows] == ["geo", "detect", "geo", "stats"]
    project = Project.open(folder)
    recipe, _ = project.recipe("stage1-full", {"semi.terms.cmgc_depth.weight": 0.1})
    missing = [(need.kind, need.what) for need in project.requirements(recipe) if not need.present()]
    assert missing == [("recipe", "stage0")]
