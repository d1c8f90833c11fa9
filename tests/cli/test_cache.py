"""sagecache cache ls, verify, repair, gc, du: against the files, zarr, and stores spoilt on purpose."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from bucket import bucket
from dots import write_dots_project
from toy_store import tree
from typed import sagecache

from sagecache.cli import cache
from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.store.files import open_root, sizes
from sagecache.store.lock import FolderLock


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Stores of unlabeled (two shards) and val, a trial, and a val store set aside."""
    folder = write_dots_project(tmp_path_factory.mktemp("made") / "mine")
    sagecache(folder, "precompute", "geo", "--split", "unlabeled")
    sagecache(folder, "precompute", "geo", "--split", "unlabeled", "--limit", "2")
    sagecache(folder, "precompute", "geo", "--split", "val")
    sagecache(folder, "precompute", "geo", "--split", "val", "--force")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "mine"))


def answer(folder, *words: str, code: int = 0):
    return json.loads(sagecache(folder, "cache", *words, "--json", code=code).stdout)


def flip(path: Path, position: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.write_bytes(data)


# ---------------------------------------------------------------------------------------------------- ls
def test_every_store_is_listed_with_what_zarr_finds_in_it(made):
    rows = {(row["split"], row["kind"]): row for row in answer(made, "ls")}
    assert set(rows) == {
        ("unlabeled", "current"),
        ("unlabeled", "trial"),
        ("val", "current"),
        ("val", "set aside"),
    }
    for row in rows.values():
        group = zarr.open_group(f"{row['path']}/targets.zarr", mode="r")
        status = np.asarray(group["status"])
        assert (row["instances"], row["done"]) == (len(status), int((status == 1).sum()))
        assert row["failed"] == int((status > 1).sum()) and row["missing"] == 0
        assert row["map_size"] == list(group["mask"].shape[:0:-1]) and set(row["fields"]) <= set(group)
        assert row["fingerprint"] == group.attrs["sagecache"]["fingerprint"]
        files = (path for path in Path(row["path"]).rglob("*") if path.is_file())
        assert row["bytes"] == sum(path.stat().st_size for path in files)
        assert row["complete"] and row["stale"] == row["problem"] == ""
    assert rows["unlabeled", "trial"]["name"] == "geo-first2"


def test_what_data_py_no_longer_fits_is_stale_and_says_why(folder):
    page = folder / "data.py"
    page.write_text(page.read_text() + "crop = dict(padding=1.5)\n")
    assert {row["stale"] for row in answer(folder, "ls", "--split", "val")} == {"crop.padding: 1.25 -> 1.5"}
    page.write_text(page.read_text().replace('type="demo", flip', 'type="demmo", flip'))
    assert {row["stale"][:35] for row in answer(folder, "ls")} == {"can't tell: unknown teacher 'demmo'"}


def test_a_split_that_has_grown_lacks_its_new_instances(folder):
    annotations = folder / "data" / "unlabeled" / "annotations.json"
    content = json.loads(annotations.read_text())
    first = content["annotations"][0]
    content["annotations"] += [{**first, "id": 9001}, {**first, "id": 9002, "image_id": 202}]
    annotations.write_text(json.dumps(content))
    rows = {row["name"]: row for row in answer(folder, "ls", "--split", "unlabeled")}
    row, trial = rows["geo"], rows["geo-first2"]
    assert (row["missing"], row["grown"], row["complete"], row["stale"]) == (2, 2, False, "")
    assert (row["instances"], row["done"]) == (6, 6), "what the store itself holds"
    assert (trial["missing"], trial["complete"]) == (0, True)
    assert "grown: 2 to be made" in sagecache(folder, "cache", "ls", "--split", "unlabeled").stdout
    sagecache(folder, "precompute", "geo", "--split", "unlabeled")
    (row,) = [row for row in answer(folder, "ls", "--split", "unlabeled") if row["name"] == "geo"]
    assert (row["done"], row["missing"], row["complete"], row["stale"]) == (8, 0, True, "")


def test_other_boxes_are_told_of_as_precompute_tells_of_them(folder):
    annotations = folder / "data" / "val" / "annotations.json"
    content = json.loads(annotations.read_text())
    for one in content["annotations"][:2]:
        one["bbox"][2] -= 5
    annotations.write_text(json.dumps(content))
    rows = {row["kind"]: row for row in answer(folder, "ls", "--split", "val")}
    assert rows["current"]["stale"] == "2 instances have another box than when the store was made"
    assert rows["set aside"]["stale"] == "" and rows["current"]["missing"] == 0
    with pytest.raises(SagecacheError, match=rows["current"]["stale"]):
        sagecache(folder, "precompute", "geo", "--split", "val")


def test_a_damaged_a_newer_and_an_unfinished_store_are_rows_that_say_so(folder):
    aside = next((folder / "cache" / "val").glob("geo.replaced-*"))
    (aside / "manifest.json").write_text("{")
    newer = folder / "cache/unlabeled/geo-first2/manifest.json"
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "format": 99}))
    unfinished = folder / "cache/unlabeled/geo"
    for name in ("complete.json", "targets.zarr/depth/c/1/0/0"):
        (unfinished / name).unlink()
    rows = {row["name"]: row for row in answer(folder, "ls") if row["split"] == "unlabeled" or row["problem"]}
    assert "manifest is damaged" in rows[aside.name]["problem"]
    assert "format 99" in rows["geo-first2"]["problem"]
    assert (rows["geo"]["done"], rows["geo"]["missing"], rows["geo"]["complete"]) == (4, 2, False)
    text = sagecache(folder, "cache", "ls").stdout
    assert "format 99" in text and "not complete" in text and "set aside" not in rows["geo"]["problem"]


def test_without_stores_it_names_the_command(tmp_path):
    folder = write_dots_project(tmp_path / "mine")
    assert answer(folder, "ls") == []
    done = sagecache(folder, "cache", "ls")
    assert f"sagecache --project {folder} precompute geo" in done.stderr
    with pytest.raises(SagecacheError, match="no split 'vall'.*did you mean 'val'"):
        sagecache(folder, "cache", "ls", "--split", "vall")
    for command in ("verify", "repair"):
        with pytest.raises(SagecacheError, match="there are no target stores"):
            sagecache(folder, "cache", command)
        with pytest.raises(SagecacheError, match="val/geo: there is no target store.*geo --split val"):
            sagecache(folder, "cache", command, "--split", "val")


# ------------------------------------------------------------------------------------------------ verify
def test_sound_stores_pass_and_damage_is_told_with_shard_and_instances(folder):
    assert answer(folder, "verify")["problems"] == 0
    flip(folder / "cache/unlabeled/geo/targets.zarr/normal/c/1/0/0/0")
    report = answer(folder, "verify", code=1)
    assert report["problems"] == 1 and [len(one["problems"]) for one in report["stores"]] == [1, 0]
    (problem,) = report["stores"][0]["problems"]
    assert (problem["file"], problem["shard"]) == ("targets.zarr/normal/c/1/0/0/0", 1)
    assert problem["ids"] == [[203, 1], [204, 0]] and problem["instances"] == 2
    assert answer(folder, "verify", "--split", "val")["problems"] == 0
    done = sagecache(folder, "cache", "verify", code=1)
    assert "203/1, 204/0" in done.stdout and "sha256 differs" in done.stdout
    assert f"sagecache --project {folder} cache repair" in done.stderr


def test_stores_at_any_path_can_be_verified(folder, tmp_path):
    trial = folder / "cache/unlabeled/geo-first2"
    moved = trial.rename(tmp_path / "elsewhere")
    report = answer(folder, "verify", str(moved))
    assert [one["path"] for one in report["stores"]] == [str(moved)] and report["problems"] == 0
    (moved / "manifest.json").write_text("{")
    (problem,) = answer(folder, "verify", str(moved), code=1)["stores"][0]["problems"]
    assert problem["file"] == "manifest.json" and "damaged" in problem["message"]
    with pytest.raises(SagecacheError, match="cache: there is no target store"):
        answer(folder, "verify", str(folder / "cache"))


# ------------------------------------------------------------------------------------------------ repair
def truncate_last_line(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


@pytest.mark.parametrize(
    "name, spoil, anew",
    [
        ("targets.zarr/depth/c/1/0/0", flip, 2),
        ("targets.zarr/mask/c/0/0/0", Path.unlink, 4),
        ("targets.zarr/normal/c/0/0/0/0", lambda path: os.truncate(path, 99), 4),
        ("targets.zarr/status/c/1", flip, 2),
        ("targets.zarr/depth_range/c/0/0", flip, 4),
        ("journal.jsonl", truncate_last_line, 2),
        ("journal.jsonl", flip, 6),
        ("journal.jsonl", lambda path: flip(path, 3), 6),
        ("journal.jsonl", lambda path: flip(path, path.stat().st_size - 30), 2),
        ("journal.jsonl", Path.unlink, 6),
        ("index.npy", flip, 0),
        ("index.npy", Path.unlink, 0),
        ("complete.json", flip, 0),
        ("complete.json", Path.unlink, 0),
        ("targets.zarr/zarr.json", flip, 0),
        ("targets.zarr/depth/zarr.json", Path.unlink, 0),
        ("targets.zarr/ids/c/0/0", flip, 0),
        ("targets.zarr/target_from_image/c/0/0/0", Path.unlink, 0),
    ],
)
def test_what_is_damaged_is_made_anew_and_nothing_else(folder, name, spoil, anew):
    root = folder / "cache/unlabeled/geo"
    before = tree(folder / "cache")
    spoil(root / name)
    assert tree(folder / "cache") != before
    assert answer(folder, "verify", "--split", "unlabeled", code=1)["problems"] > 0
    (row,) = answer(folder, "repair", "--split", "unlabeled")
    assert row["before"] and row["computed"] == anew and row["after"] == []
    assert tree(folder / "cache") == before


def test_a_sound_store_is_left_alone_and_an_unfinished_one_is_finished(folder):
    before = tree(folder)
    rows = answer(folder, "repair")
    assert [(row["split"], row["before"], row["computed"]) for row in rows] == [
        ("unlabeled", [], 0),
        ("val", [], 0),
    ]
    assert tree(folder) == before
    for name in ("complete.json", "index.npy", "targets.zarr/mask/c/0/0/0"):
        (folder / "cache/val/geo" / name).unlink()
    text = sagecache(folder, "cache", "repair").stdout
    assert "none" in text and tree(folder) == before


def test_a_damaged_manifest_can_not_be_remade_and_says_what_can_be_done(folder):
    flip(folder / "cache/val/geo/manifest.json", 0)
    anew = "precompute geo --split val --force"
    with pytest.raises(SagecacheError, match=f"manifest.json: the manifest is damaged.*{anew}"):
        sagecache(folder, "cache", "repair", "--split", "val")
    told = sagecache(folder, "cache", "verify", code=1).stderr
    assert f"sagecache --project {folder} {anew}" in told and "cache repair" not in told
    flip(folder / "cache/unlabeled/geo/targets.zarr/depth/c/0/0/0")
    told = sagecache(folder, "cache", "verify", code=1).stderr
    assert anew in told and "cache repair" in told


# ---------------------------------------------------------------------------------------------------- gc
def test_gc_touches_nothing_until_told_and_then_what_it_listed(folder):
    before = tree(folder)
    aside = next((folder / "cache" / "val").glob("geo.replaced-*"))
    report = answer(folder, "gc")
    assert {Path(row["path"]) for row in report["leftovers"]} == {
        aside,
        folder / "cache/unlabeled/geo-first2",
    }
    assert not report["deleted"] and not any(row["deleted"] for row in report["leftovers"])
    text = sagecache(folder, "cache", "gc").stdout
    assert "may be deleted" in text and "--yes" in text and tree(folder) == before
    done = answer(folder, "gc", "--yes")
    assert all(row["deleted"] for row in done["leftovers"]) and done["bytes"] == report["bytes"] > 0
    gone = ("cache/unlabeled/geo-first2/", f"cache/val/{aside.name}/")
    assert tree(folder) == {name: file for name, file in before.items() if not name.startswith(gone)}
    assert answer(folder, "gc")["leftovers"] == []
    assert sagecache(folder, "cache", "gc").stdout == "nothing to delete\n"


def test_what_a_writer_holds_stays_and_exits_1(folder):
    trial = folder / "cache/unlabeled/geo-first2"
    lock = FolderLock(trial, shared=False)
    rows = {row["path"]: row for row in answer(folder, "gc", "--yes", code=1)["leftovers"]}
    assert rows[str(trial)]["held"] == "a writer is at work" and not rows[str(trial)]["deleted"]
    assert (trial / "complete.json").is_file()
    lock.release()
    assert answer(folder, "gc", "--yes")["leftovers"][0]["deleted"] and not trial.exists()


def test_boxes_that_a_page_names_are_never_listed(folder):
    boxes = folder / "cache" / "val" / "detections-first2.json"
    boxes.write_text("[]")
    assert str(boxes) in {row["path"] for row in answer(folder, "gc")["leftovers"]}
    page = folder / "data.py"
    page.write_text(page.read_text().replace("val=dict(", f'val=dict(boxes="{boxes}", '))
    assert str(boxes) not in {row["path"] for row in answer(folder, "gc")["leftovers"]}


# ---------------------------------------------------------------------------------------------------- du
def test_du_adds_up_to_the_files(folder):
    for name, size in (
        ("val/detections.json", 70),
        ("val/detections.meta.json", 7),
        ("skeleton_stats.json", 9),
    ):
        (folder / "cache" / name).write_bytes(b"x" * size)
    (folder / "cache/shards/0123456789abcdef").mkdir(parents=True)
    (folder / "cache/shards/0123456789abcdef/depth").write_bytes(b"x" * 5)
    report = answer(folder, "du")
    everything = (path for path in (folder / "cache").rglob("*") if path.is_file())
    assert report["total"] == sum(path.stat().st_size for path in everything)
    assert (report["detections"]["val"], report["statistics"], report["kept_shards"]) == (77, 9, 5)
    for row in report["stores"]:
        assert row["bytes"] == sum(row["arrays"].values())
        assert row["bytes_an_instance"] == pytest.approx(row["bytes"] / row["instances"], abs=1)
        for name in ("depth", "normal", "mask"):
            files = (Path(row["path"]) / "targets.zarr" / name / "c").rglob("*")
            assert row["arrays"][name] == sum(path.stat().st_size for path in files if path.is_file())
    assert report["splits"]["val"] == sum(row["bytes"] for row in report["stores"] if row["split"] == "val")
    text = sagecache(folder, "cache", "du", "--split", "val").stdout
    assert "detections of val" in text and "unlabeled" not in text


# ---------------------------------------------------------------------------------------------- a bucket
def test_stores_in_a_bucket_are_treated_alike(tmp_path):
    folder = write_dots_project(tmp_path / "mine")
    with bucket() as url:
        page = folder / "data.py"
        page.write_text(page.read_text() + f'store_root = "{url}/targets"\n')
        sagecache(folder, "precompute", "geo", "--split", "val")
        store = open_root(f"{url}/targets/val/geo")
        for name in sizes(store):  # as good as a trial's, and sooner there
            (store.with_name("geo-first1") / name).write_bytes((store / name).read_bytes())
        rows = {row["name"]: row for row in answer(folder, "ls")}
        assert rows["geo"]["path"] == f"{url}/targets/val/geo" and rows["geo"]["complete"]
        assert (rows["geo"]["done"], rows["geo-first1"]["kind"]) == (3, "trial")
        assert answer(folder, "verify")["problems"] == 0
        reader = Project.open(folder).targets("val")
        reader.read(301, 0)
        reader._state.pool._cache.wait()
        far = reader.root / "targets.zarr/mask/c/0/0/0"
        far.write_bytes(b"\0" + far.read_bytes()[1:])
        assert answer(folder, "verify", code=1)["problems"] == 1
        (row,) = answer(folder, "repair")
        assert row["computed"] == 3 and row["after"] == []
        report = answer(folder, "du")
        assert (
            report["kept_shards"] > 0
            and report["splits"]["val"] == rows["geo"]["bytes"] + rows["geo-first1"]["bytes"]
        )
        reasons = {row["path"]: row["reason"] for row in answer(folder, "gc", "--yes")["leftovers"]}
        assert reasons.pop(f"{url}/targets/val/geo-first1").startswith("a trial")
        assert [reason[:4] for reason in reasons.values()] == ["kept"]
        assert [row["name"] for row in answer(folder, "ls")] == ["geo"]


def test_figures_of_bytes_are_megabytes():
    assert [cache._megabytes(size) for size in (0, 12_345, 123_456, 7_654_321)] == [
        "0.000",
        "0.012",
        "0.123",
        "7.7",
    ]
