"""sagecache cache export and import, as typed: against a plane, numpy, and what training asks for."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from dots import SIZE, write_dots_project
from dots_network import bright_project
from toy_store import tree
from typed import sagecache

from sagecache.cli.jobs import require_fresh_store, teacher_of
from sagecache.errors import SagecacheError
from sagecache.project import Project


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_dots_project(tmp_path / "mine")


def answer(folder, *words: str, code: int = 0):
    return json.loads(sagecache(folder, "cache", *words, "--json", code=code).stdout)


def write_maps(folder: Path, split: str) -> list[str]:
    """Depth, normals and masks as Sapiens' scripts name and shape them; returns what imports them."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float32)
    maps = {
        "depth": 0.5 + 0.001 * x - 0.002 * y,
        "normal": np.broadcast_to(np.float32([0.6, 0, 0.8]), (SIZE[1], SIZE[0], 3)),
        "mask": (y > 40) & (y < 160),
    }
    words = ["import", "--split", split]
    for name, values in maps.items():
        place = folder / "maps" / split / name
        place.mkdir(parents=True)
        for image in sorted((folder / "data" / split / "images").iterdir()):
            np.save(place / f"{image.stem}.npy", values)
        words += [f"--{name}", str(place)]
    return words


def test_maps_go_in_and_come_out_as_they_were(folder, tmp_path):
    words = write_maps(folder, "val")
    (row,) = answer(folder, *words)
    assert (row["step"], row["total"], row["computed"], row["failed"]) == ("import", 3, 3, [])
    (store,) = answer(folder, "ls")
    assert store["complete"] and store["imported"] and store["stale"] == ""
    assert set(store["fields"]) == {"depth", "normal", "mask"}
    assert answer(folder, "verify")["problems"] == 0
    report = answer(folder, "export", "--split", "val", "--to", str(tmp_path / "out"))
    assert (report["instances"], report["without_targets"]) == (3, 0)
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    for path in (tmp_path / "out").iterdir():
        with np.load(path) as found:
            back, (height, width) = np.linalg.inv(found["target_from_image"]), found["mask"].shape
            y, x = np.mgrid[:height, :width]
            x, y = back[0, 0] * x + back[0, 2], back[1, 1] * y + back[1, 2]
            deep = (y > 46) & (y < 154) & (x > 5) & (x < SIZE[0] - 6)
            assert found["mask"][deep].all() and not found["mask"][(y < 36) | (y > 164)].any()
            assert np.abs(found["depth"] - (0.5 + 0.001 * x - 0.002 * y))[deep].max() < 1e-4
            cosine = np.tensordot([0.6, 0, -0.8], found["normal"], 1)[deep]  # y and z point the other way
            assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 1


def test_targets_are_cut_as_the_teacher_s_or_to_a_size_of_their_own(folder):
    words = write_maps(folder, "val")
    sagecache(folder, "precompute", "geo", "--split", "val")
    group = zarr.open_group(folder / "cache/val/geo/targets.zarr", mode="r")
    affines, size = np.asarray(group["target_from_image"]), group.attrs["sagecache"]["size"]
    with pytest.raises(SagecacheError, match="made from something else.*teacher.*--force"):
        answer(folder, *words)
    answer(folder, *words, "--force")
    group = zarr.open_group(folder / "cache/val/geo/targets.zarr", mode="r")
    assert np.array_equal(group["target_from_image"], affines)
    assert group.attrs["sagecache"]["size"] == size and group["depth"].attrs["kind"] == "affine"
    answer(folder, *words, "--force", "--map-size", "30", "40", "--depth-kind", "metric")
    group = zarr.open_group(folder / "cache/val/geo/targets.zarr", mode="r")
    assert group.attrs["sagecache"]["size"] == [30, 40]
    assert (group["depth"].attrs["kind"], group["depth"].attrs["unit"]) == ("metric", "m")


def test_a_missing_map_exits_1_and_the_same_words_mend_a_damaged_store(folder):
    words = write_maps(folder, "unlabeled")
    (folder / "maps/unlabeled/normal/000000000203.npy").unlink()
    (row,) = answer(folder, *words, code=1)
    assert [(one["image_id"], one["instance"]) for one in row["failed"]] == [(203, 0), (203, 1)]
    assert row["failed"][0]["file"].endswith("normal/000000000203.npy")
    seen = json.loads(sagecache(folder, "inspect", "203", "--json").stdout)["instances"]
    assert all("the image or its map could not be read" in one["status"] for one in seen)
    before = tree(folder / "cache")
    shard = folder / "cache/unlabeled/geo/targets.zarr/depth/c/1/0/0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SagecacheError, match="were imported.*cache import --split unlabeled --depth"):
        sagecache(folder, "cache", "repair")
    (row,) = answer(folder, *words, code=1)
    assert row["computed"] == 2 and tree(folder / "cache") == before


def test_training_on_imported_targets_asks_for_no_teacher_and_for_the_same_crops(folder):
    for split in ("labeled", "unlabeled"):
        sagecache(folder, "cache", *write_maps(folder, split), "--map-size", "48", "64")
    page = folder / "data.py"
    gone = '(type="torchscript", files=dict(depth="gone.pt2"))'
    page.write_text(page.read_text().replace('(type="demo", flip_test=False)', gone))
    project = Project.open(folder)
    assert teacher_of(project, ["labeled", "unlabeled"]) is None
    for split in ("labeled", "unlabeled"):
        require_fresh_store(project, split, None)
    assert {row["stale"] for row in answer(folder, "ls")} == {""}
    summary = json.loads(sagecache(folder, "inspect", "201", "--json").stdout)
    assert (summary["store"]["teacher"], summary["store"]["stale"]) == ("imported", "no")
    page.write_text(page.read_text() + "crop = dict(padding=1.5)\n")
    told = "crop.padding: 1.25 -> 1.5.*cache import --split labeled --depth … --normal … --force"
    with pytest.raises(SagecacheError, match=told):
        require_fresh_store(Project.open(folder), "labeled", None)
    with pytest.raises(SagecacheError, match="not found.*--map-size"):
        sagecache(folder, "cache", *write_maps(folder, "val"))


def let_bodies_agree(path: Path) -> None:
    """All in the pose of the first: terms of geometry compare limbs with those of labeled bodies."""
    content = json.loads(path.read_text())
    first = np.reshape(content["annotations"][0]["keypoints"], (17, 3))
    for one in content["annotations"]:
        shift = one["bbox"][0] - content["annotations"][0]["bbox"][0]
        one["keypoints"] = (first + [shift, 0, 0]).ravel().tolist()
    path.write_text(json.dumps(content))


def test_training_runs_on_an_imported_store_and_measures_against_it(folder):
    project = bright_project(folder / "bright")
    folder, quick = project.folder, ("data.val=None", "train_cfg.max_iters=1")
    let_bodies_agree(folder / "data" / "labeled" / "annotations.json")
    sagecache(folder, "train", "stage0", *quick)
    sagecache(folder, "precompute", "stats")
    for split in ("labeled", "unlabeled"):
        sagecache(folder, "cache", *write_maps(folder, split), "--map-size", "48", "64")
    page = folder / "data.py"
    page.write_text(page.read_text().replace("flip_test=False", "no_such_option=1"))  # nobody asks for it
    time.sleep(1 - time.time() % 1)  # mmengine names a run by its second
    sagecache(folder, "train", "stage1-full", *quick, "semi.terms.cmgc_depth.weight=0.1")
    (log,) = (folder / "work_dirs/stage1_full").glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    (row,) = [row for row in rows if "loss" in row]  # beside that of the joints
    assert np.isfinite(row["loss_cmgc_depth"]) and row["step"] == 1


def test_export_of_some_images_and_its_errors(folder, tmp_path):
    sagecache(folder, "precompute", "geo", "--split", "unlabeled")
    words = ["export", "--split", "unlabeled", "--format", "images", "--to"]
    report = answer(folder, *words, str(tmp_path / "some"), "--id", "201", "--id", "204")
    assert report["instances"] == 3 and len(list((tmp_path / "some").glob("*.json"))) == 3
    assert {path.name.split("_")[0] for path in (tmp_path / "some").iterdir()} == {"201", "204"}
    assert answer(folder, *words, str(tmp_path / "first"), "--limit", "2")["instances"] == 2
    with pytest.raises(SagecacheError, match="not empty.*--force"):
        sagecache(folder, "cache", *words, str(tmp_path / "some"))
    done = sagecache(folder, "cache", *words, str(tmp_path / "some"), "--force")
    assert (tmp_path / "some.replaced").is_dir() and "some.replaced" in done.stderr and "6" in done.stdout
    with pytest.raises(SagecacheError, match="no image 240 in the store. Nearest ids: 204, 203"):
        sagecache(folder, "cache", *words, str(tmp_path / "none"), "--id", "240")
    with pytest.raises(SagecacheError, match="there is no target store.*precompute geo --split val"):
        sagecache(folder, "cache", "export", "--split", "val", "--to", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
