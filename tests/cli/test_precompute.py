"""precompute as typed: results, failures and their exit code, resuming, --limit, --force and --dry-run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from dots import change_labels, write_dots_project
from typed import sagecache

from sagecache.cli.main import cli
from sagecache.errors import SagecacheError
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


def test_a_detector_that_finds_nobody_is_told_by_detect_and_by_geo(folder):
    (row,) = answer(folder, "detect", "--split", "val")
    assert row["persons"] == len(json.loads((folder / "cache/val/detections.json").read_text()))
    page = folder / "data.py"
    text = page.read_text().replace("val=dict(", 'val=dict(boxes="detect", ')
    page.write_text(text.replace('detector = dict(type="demo")', 'detector = dict(type="demo", score=0.99)'))
    done = sagecache(folder, "precompute", "detect", "--split", "val", "--force")
    assert "detect: 2 images, 0 persons in" in done.stderr and "persons" in done.stdout
    assert answer(folder, "detect", "--split", "val")[0]["persons"] == 0
    with pytest.raises(SagecacheError, match="detections.json, split val: holds no person with score >= min"):
        sagecache(folder, "precompute", "geo", "--split", "val")
    assert answer(folder, "geo", "--split", "labeled")[0]["persons"] is None


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
    assert "without a result (1; all with --json)" in text and "302" in text


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


@pytest.mark.parametrize("step", ["detect", "geo", "stats", "all"])
def test_a_dry_run_counts_and_writes_nothing(folder, step):
    before = sorted(folder.rglob("*"))
    words = ["--split", "val"] if step in ("detect", "geo") else []
    rows = answer(folder, step, *words, "--dry-run")
    assert [row["total"] for row in rows] == {"detect": [2], "geo": [3], "stats": [5], "all": [5, 6, 5]}[step]
    assert all(row["missing"] == row["total"] and row["seconds"] >= 0 for row in rows)
    assert sorted(folder.rglob("*")) == before
    assert "dry run" in sagecache(folder, "precompute", step, *words, "--dry-run").stdout


def test_stale_statistics_are_refused_by_a_dry_run_too_with_the_one_step_that_mends_them(folder):
    sagecache(folder, "precompute", "stats")
    assert answer(folder, "stats", "--dry-run")[0]["missing"] == 0
    change_labels(folder)
    for words in (["stats"], ["stats", "--dry-run"], ["all", "--dry-run"]):
        with pytest.raises(
            SagecacheError, match="made from other labels.*sagecache .*precompute stats --force"
        ):
            sagecache(folder, "precompute", *words)
    assert answer(folder, "stats", "--dry-run", "--force")[0]["missing"] == 5
    answer(folder, "stats", "--limit", "1")
    change_labels(folder)
    with pytest.raises(SagecacheError, match="precompute stats --limit 1 --force"):
        sagecache(folder, "precompute", "stats", "--limit", "1")


def detect_unlabeled(folder) -> None:
    """A detector that is sure of nothing and gives its best box all the same: there are no persons here."""
    text = (folder / "data.py").read_text()
    text = text.replace("unlabeled=dict(", 'unlabeled=dict(boxes="detect", min_score=0.0, ')
    text = text.replace('detector = dict(type="demo")', 'detector = dict(type="demo", score=0.0, limit=1)')
    (folder / "data.py").write_text(text)


def test_a_dry_run_of_the_empty_demo_makes_nothing_and_names_what_comes_first(tmp_path, monkeypatch):
    monkeypatch.delenv("SAGECACHE_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    for step in ("detect", "geo", "all"):
        words = ["precompute", step, "--dry-run"]
        done = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
        rows = json.loads(done.stdout)
        assert done.exit_code == 0 and {row["total"] for row in rows} == {None}
        needed = "labeled" if step == "all" else "unlabeled"
        assert rows[-1]["run_first"] == f"sagecache data synth --split {needed}"
        assert [row["step"] for row in rows] == (
            ["geo", "detect", "geo", "stats"] if step == "all" else [step]
        )
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert f"{rows[0]['step']} {rows[0]['split']}: known after: sagecache data synth" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_which_boxes_it_waits_for(folder):
    detect_unlabeled(folder)
    before = sorted(folder.rglob("*"))
    rows = answer(folder, "all", "--dry-run", "--limit", "2")
    assert [row["total"] for row in rows] == [2, 2, None, 5]
    assert rows[1]["result"].endswith("unlabeled/detections-first2.json")
    assert rows[2]["run_first"].endswith("precompute detect --split unlabeled --limit 2")
    assert answer(folder, "all", "--dry-run")[2]["run_first"].endswith("detect --split unlabeled")
    assert sorted(folder.rglob("*")) == before


def test_all_with_a_limit_is_a_trial_of_each_step_beside_the_real_places(folder):
    detect_unlabeled(folder)
    rows = answer(folder, "all", "--limit", "2")
    assert not (folder / "cache" / "skeleton_stats-first2.json").exists()  # statistics cost nothing: of all
    names = [Path(row["path"]).name for row in rows]
    assert names == [
        "geo-first2",
        "detections-first2.json",
        "geo-of-detections-first2",
        "skeleton_stats.json",
    ]
    assert [row["total"] for row in rows[:3]] == [2, 2, 2]
    assert [row["total"] for row in answer(folder, "all", "--limit", "2", "--dry-run")] == [2, 2, 2, 5]
    cache = folder / "cache"
    assert not (cache / "unlabeled" / "geo").exists() and not (cache / "unlabeled/detections.json").exists()
    assert [row["total"] for row in answer(folder, "all", "--limit", "99")[1:3]] == [4, 4]
    assert (cache / "unlabeled" / "geo" / "complete.json").is_file()


def test_all_tells_before_it_computes_what_a_later_step_would_refuse(folder):
    detect_unlabeled(folder)
    sagecache(folder, "precompute", "detect", "--split", "unlabeled")
    page = (folder / "data.py").read_text()
    (folder / "data.py").write_text(page.replace("score=0.0, limit=1", "score=0.0, limit=2"))
    with pytest.raises(SagecacheError, match="limit: 1 -> 2.*precompute detect --split unlabeled --force"):
        sagecache(folder, "precompute", "all")
    labels = folder / "data" / "unlabeled" / "annotations.json"
    labels.rename(labels.with_suffix(".away"))
    with pytest.raises(SagecacheError, match="missing: split of unlabeled"):
        sagecache(folder, "precompute", "all")
    labels.with_suffix(".away").rename(labels)
    (folder / "data.py").write_text(page)
    sagecache(folder, "precompute", "stats")
    change_labels(folder)
    with pytest.raises(SagecacheError, match="made from other labels.*precompute stats --force"):
        sagecache(folder, "precompute", "all", "--limit", "2")
    assert not (folder / "cache" / "labeled").exists()  # in none of these was anything computed
    sagecache(folder, "precompute", "stats", "--force")
    assert [row["step"] for row in answer(folder, "all")] == ["geo", "detect", "geo", "stats"]


def test_all_goes_over_the_splits_that_recipes_name(folder):
    text = (folder / "data.py").read_text().replace("    labeled=dict(", "    infants=dict(")
    (folder / "data.py").write_text(text + 'stats_splits = ("infants",)\n')
    page = folder / "stage0.py"
    page.write_text(page.read_text() + 'data = dict(labeled=("infants",))\n')
    rows = answer(folder, "all")
    assert [(row["step"], row["total"]) for row in rows] == [("geo", 5), ("geo", 6), ("stats", 5)]
    assert Path(rows[0]["path"]).parent.name == "infants"
    rows = answer(folder, "all", "--split", "unlabeled", "--split", "val", "--dry-run")
    assert [row["split"] for row in rows] == ["unlabeled", "val", "infants"]


def test_all_makes_whatever_the_recipes_need(folder):
    detect_unlabeled(folder)
    rows = answer(folder, "all")
    assert [row["step"] for row in rows] == ["geo", "detect", "geo", "stats"]
    project = Project.open(folder)
    recipe, _ = project.recipe("stage1-full", {"semi.terms.cmgc_depth.weight": 0.1})
    missing = [(need.kind, need.what) for need in project.requirements(recipe) if not need.present()]
    assert missing == [("recipe", "stage0")]
