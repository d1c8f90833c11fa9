"""sagecache inspect: what it says of an instance against the files themselves."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr
from dots import true_joints, write_dots_project
from dots_network import save_checkpoint
from typed import sagecache

from sagecache.cli import inspect as command
from sagecache.cli.inspect import _with_annotation
from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.project.runs import note_start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_dots_project(tmp_path_factory.mktemp("dots"), hidden=8)
    sagecache(folder, "precompute", "geo", "--split", "unlabeled")
    sagecache(folder, "precompute", "stats")
    return folder


def inspect(folder, *words: str) -> dict:
    return json.loads(sagecache(folder, "inspect", *words, "--json").stdout)


def test_bytes_are_where_it_says(folder):
    summary = inspect(folder, "201")
    root = folder / "cache" / "unlabeled" / "geo"
    assert summary["store"]["path"] == str(root) and summary["store"]["stale"] == "no"
    assert [row["instance"] for row in summary["instances"]] == [0, 1]
    masks = zarr.open_group(root / "targets.zarr", mode="r")["mask"]
    for row in summary["instances"]:
        path, place = row["bytes of depth"].split(" ")
        start, end = map(int, place.strip("[]").split(":"))
        assert 0 <= start < end <= (root / path).stat().st_size
        share = 100 * np.asarray(masks[row["instance"]]).astype(bool).mean()
        assert float(row["mask"].split()[0]) == pytest.approx(share, abs=0.06)


def test_targets_of_a_picture_that_was_replaced_since_are_told_of(tmp_path):
    folder = write_dots_project(tmp_path / "dots", hidden=8)
    sagecache(folder, "precompute", "geo", "--split", "unlabeled")
    summary = inspect(folder, "201")
    assert {row["status"] for row in summary["instances"]} == {"ok"}
    path = Path(summary["file"])
    path.write_bytes(path.read_bytes() + b"one byte more")
    assert {row["status"] for row in inspect(folder, "201")["instances"]} == {
        "the image file was replaced since: precompute geo again, with --force"
    }


def test_the_file_is_told_without_the_way_there_and_the_depth_with_its_rule(folder, tmp_path):
    summary = inspect(folder, "201")
    assert "(the picture: 2nd to 98th percentile)" in summary["instances"][0]["depth"]
    plain = Path(summary["file"])
    assert command._shortened(plain.parent / ".." / plain.parent.name / plain.name) == plain
    (tmp_path / "else").symlink_to(plain.parent)  # behind a link '..' is another folder
    winding = tmp_path / "else" / ".." / plain.parent.name / plain.name
    assert command._shortened(winding) == winding and winding.samefile(plain)


def test_the_picture_is_written_where_asked_one_panel_an_instance(folder, tmp_path):
    both, one = tmp_path / "both.png", tmp_path / "deep" / "one.png"
    assert inspect(folder, "201", "--out", str(both))["picture"] == str(both)
    summary = inspect(folder, "201", "--instance", "1", "--out", str(one))
    assert [row["instance"] for row in summary["instances"]] == [1]
    assert cv2.imread(str(both)).shape[0] == 2 * cv2.imread(str(one)).shape[0]
    with pytest.raises(SagecacheError, match="png"):
        inspect(folder, "201", "--out", str(tmp_path / "x.unknown"))


def test_without_a_store_it_shows_the_instance_and_the_command(folder):
    summary = inspect(folder, "301", "--split", "val")
    assert f"sagecache --project {folder} precompute geo --split val" in summary["store"]["status"]
    assert {row["status"] for row in summary["instances"]} == {"no store"}
    assert summary["instances"][0]["bbox"] == "10.0 30.0 120.0 146.0" and summary["size"] == "320 x 200"


def test_a_checkpoint_adds_confidence_and_the_gate(folder):
    path = save_checkpoint(Project.open(folder), folder / "dots.pth")
    rows = inspect(folder, "201", "--checkpoint", str(path))["instances"]
    truth = true_joints(folder, "unlabeled")
    for row in rows:
        seen = int((truth[2010 + row["instance"]][:, 2] > 0).sum())
        assert row["kept_joints"] == f"{seen if seen == 17 else 0} of 17"
        assert row["gate"] == ("A, the EMA teacher" if seen == 17 else "nobody: refused")
    assert [row["gate"] for row in rows] == ["A, the EMA teacher", "nobody: refused"]


def test_a_checkpoint_is_judged_by_its_own_run_as_it_was_trained(folder):
    """The page says otherwise by now; another recipe is asked for by name."""
    project = Project.open(folder)
    trained = project.recipe("stage1-full", {"semi.pseudo_labels.threshold": 1.0})
    for name, recipe in (("stage1-full", trained), ("stage0", project.recipe("stage0"))):
        path = save_checkpoint(project, project.work_dir(name) / "iter_4.pth")
        note_start(path.parent, *recipe)
        words = ("201", "--instance", "0", "--checkpoint", str(path))
        summary = inspect(folder, *words)
        assert summary["recipe"] == name
        (row,) = summary["instances"]
        assert row.get("kept_joints") == (None if name == "stage0" else "0 of 17")
        summary = inspect(folder, *words, "--recipe", "stage1-full")
        assert summary["instances"][0]["kept_joints"] == "17 of 17"


def test_targets_are_made_for_a_checkpoint_whose_recipe_reads_them_only(tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def ensure(_, needs):
        raise Asked(*(need.kind for need in needs))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "ensure", ensure)
    demo = Project.demo()
    for name, kinds in (("stage1-full", ("split", "boxes", "geo")), ("stage1-baseline", ("split", "boxes"))):
        folder = demo.work_dir(name)
        folder.mkdir(parents=True)
        note_start(folder, *demo.recipe(name))
        with pytest.raises(Asked) as asked:
            command.inspect(demo, 1500, checkpoint=folder / "iter_1.pth")
        assert asked.value.args == kinds
    with pytest.raises(Asked) as asked:
        command.inspect(demo, 1500)
    assert asked.value.args[-1] == "geo"


def test_without_a_recipe_that_has_a_gate_the_poses_are_shown_alone(tmp_path):
    folder = write_dots_project(tmp_path / "dots")
    for page in folder.glob("stage1*.py"):
        page.unlink()
    checkpoint = folder / "work_dirs" / "stage0" / "iter_4.pth"
    save_checkpoint(Project.open(folder), checkpoint)
    rows = inspect(folder, "301", "--split", "val", "--checkpoint", str(checkpoint))["instances"]
    assert {row["gate"] for row in rows} == {"none: the recipe learns from labels alone"}
    assert not any("kept_joints" in row for row in rows)


def test_a_page_that_has_changed_makes_the_store_stale(folder):
    page = folder / "data.py"
    before = page.read_text()
    try:
        page.write_text(before + "crop = dict(padding=1.5)\n")
        assert "crop.padding: 1.25 -> 1.5" in inspect(folder, "201")["store"]["stale"]
    finally:
        page.write_text(before)


def test_another_detector_makes_the_store_of_its_boxes_stale(tmp_path):
    folder = write_dots_project(tmp_path / "mine")
    page = folder / "data.py"
    text = page.read_text().replace("val=dict(", 'val=dict(boxes="detect", min_score=0.0, ')
    page.write_text(text.replace('(type="demo")', '(type="demo", score=0.0, limit=1)'))
    sagecache(folder, "precompute", "detect", "--split", "val")
    sagecache(folder, "precompute", "geo", "--split", "val")
    assert inspect(folder, "301", "--split", "val")["store"]["stale"] == "no"
    page.write_text(page.read_text().replace("limit=1", "limit=2"))
    assert inspect(folder, "301", "--split", "val")["store"]["stale"] == "detector.rule.limit: 1 -> 2"


def test_an_image_that_is_not_there_names_its_neighbours(folder):
    with pytest.raises(SagecacheError, match="no image 240. Nearest ids: 204, 203, 202, 201"):
        inspect(folder, "240")
    with pytest.raises(SagecacheError, match="no image 202, instance 1. Nearest ids: 202, "):
        inspect(folder, "202", "--instance", "1")


def test_an_image_without_boxes_and_one_that_cannot_be_read_are_told_so(tmp_path):
    folder = write_dots_project(tmp_path / "mine")
    annotations = folder / "data" / "labeled" / "annotations.json"
    content = json.loads(annotations.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 102]
    annotations.write_text(json.dumps(content))
    words = ("102", "--split", "labeled")
    with pytest.raises(SagecacheError, match="image 102 is in split 'labeled' and has no person's box"):
        inspect(folder, *words)
    (folder / "data/labeled/images/000000000102.png").write_bytes(b"junk")
    with pytest.raises(SagecacheError, match="image 102 of split 'labeled' can't be read: holds no image"):
        inspect(folder, *words)


def test_a_bad_chunk_is_told_with_file_instance_and_command_and_exits_1(tmp_path):
    folder = write_dots_project(tmp_path / "mine")
    sagecache(folder, "precompute", "geo", "--split", "unlabeled")
    depth = inspect(folder, "201", "--instance", "0")["instances"][0]["bytes of depth"]
    file, place = depth.split(" ")
    path = folder / "cache/unlabeled/geo" / file
    data = bytearray(path.read_bytes())
    data[int(place.strip("[]").split(":")[0])] ^= 1
    path.write_bytes(data)
    done = sagecache(folder, "inspect", "201", "--json", code=1)
    bad, sound = json.loads(done.stdout)["instances"]
    assert bad["damaged"] and not sound["damaged"] and sound["status"] == "ok"
    for told in (str(path), "image_id 201, instance 0", f"sagecache --project {folder} precompute geo"):
        assert told in bad["status"]


def test_the_table_has_a_row_for_each_field(folder):
    text = sagecache(folder, "inspect", "202").stdout
    words = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert {"store.stale", "store.teacher", "bbox", "status", "mask"} <= words
    assert text.splitlines()[-1].endswith("unlabeled_202.png")


def test_a_detected_box_shows_the_annotation_that_it_covers(folder):
    from dataclasses import replace

    project = Project.open(folder)
    first, second = [one for one in project.instances("unlabeled") if one.image_id == 201]
    detected = replace(first, keypoints=None, bbox=(170.0, 35.0, 110.0, 140.0))
    np.testing.assert_array_equal(
        _with_annotation(project, "unlabeled", detected).keypoints, second.keypoints
    )
    nowhere = replace(detected, bbox=(130.0, 0.0, 40.0, 30.0))
    assert _with_annotation(project, "unlabeled", nowhere).keypoints is None
