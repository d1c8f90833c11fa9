import copy
import json
import os
from functools import reduce
from pathlib import Path

import pytest
from toy_store import make_content, memory_folder

from sagecache.errors import SagecacheError
from sagecache.store.reader import StoreReader
from sagecache.store.verification import verify


def flip(path, position=3):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_sound_store_has_no_problems(store):
    assert verify(store) == StoreReader(store).verify() == []


def test_it_says_how_far_it_is_shard_by_shard(store):
    seen = []
    verify(store, lambda *state: seen.append(state))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_each_damaged_file_is_found_whatever_it_is(store):
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        sound = path.read_bytes()
        flip(path, len(sound) // 2)
        name, found = str(path.relative_to(store)), damaged_files(store)
        # A journal line that is not believed takes its shards away; a wrong seal points at what it seals.
        assert found & {name, "journal.jsonl", "manifest.json", "targets.zarr"}, name
        path.write_bytes(sound)
    assert verify(store) == []


def damaged_files(root):
    try:
        return {problem.file for problem in verify(root)}
    except SagecacheError as error:
        return {str(error.file).removeprefix(f"{root}/")}


def flipped(data):
    """data with each byte changed in one bit, every bit in turn, and in all."""
    for position, byte in enumerate(data):
        for mask in (1 << position % 8, 1 << (position + 3) % 8, 255):
            yield data[:position] + bytes([byte ^ mask]) + data[position + 1 :]


def parsed(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


@pytest.mark.parametrize("name", ["manifest.json", "complete.json"])
def test_every_flip_in_the_records_is_found(name):
    with memory_folder() as folder:
        root = make_content(2, size=(2, 2), outputs=("mask",)).write(Path(folder) / "geo")
        sound = (root / name).read_bytes()
        for data in flipped(sound):
            (root / name).write_bytes(data)
            # Of complete.json, which nothing vouches for, white space may change.
            same = name == "complete.json" and parsed(data) == json.loads(sound)
            assert bool(damaged_files(root) & {"manifest.json", "complete.json", "journal.jsonl"}) != same, (
                data
            )


@pytest.mark.parametrize("finished", [True, False])
def test_without_a_hash_of_the_manifest_what_it_says_is_held_against_the_files(store, finished):
    """A store that was finished before complete.json had it, and one that is not finished."""
    path, manifest = store / "complete.json", json.loads((store / "manifest.json").read_bytes())
    seal = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "manifest_sha256"}
    path.write_text(json.dumps(seal)) if finished else path.unlink()
    assert verify(store) == []
    for keys, value in {
        ("fingerprint_sha256",): "0" * 64,
        ("attributes", "split"): "y",
        ("identity", "fingerprint", "padding"): 1.5,
        ("identity", "plan", "bbox"): "0" * 64,
        ("identity", "plan", "instances"): 11,
        ("identity", "plan", "size"): [8, 6],
        ("identity", "fields", "depth", "encoding"): "float32",
        ("identity", "shard_size"): 5,
    }.items():
        changed = copy.deepcopy(manifest)
        inner = reduce(dict.__getitem__, keys[:-1], changed)
        inner[keys[-1]] = value
        (store / "manifest.json").write_text(json.dumps(changed))
        assert {problem.file for problem in verify(store)} == {"manifest.json"}, keys


@pytest.mark.parametrize("key, value", [("shards", 4), ("instances", 9), ("journal_sha256", 7), ("more", 1)])
def test_a_seal_that_says_something_else_is_told(store, key, value):
    path = store / "complete.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), key: value}))
    expected = "journal.jsonl" if key == "journal_sha256" else "complete.json"
    assert [problem.file for problem in verify(store)] == [expected]
    path.write_text("[]")
    assert [problem.file for problem in verify(store)] == ["complete.json"]


def test_a_problem_names_shard_and_ids(store, content):
    flip(store / "targets.zarr/normal/c/1/0/0/0")
    os.truncate(store / "targets.zarr/mask/c/2/0/0", 9)
    (store / "targets.zarr/status/c/0").unlink()
    problems = verify(store)
    assert [(p.file, p.shard) for p in problems] == [
        ("targets.zarr/status/c/0", 0),
        ("targets.zarr/normal/c/1/0/0/0", 1),
        ("targets.zarr/mask/c/2/0/0", 2),
    ]
    assert [p.message.split(",")[0] for p in problems] == [
        "missing",
        "sha256 differs from the record",
        "9 bytes",
    ]
    assert problems[2].ids == tuple(map(tuple, content.plan.ids[8:].tolist()))


def test_damaged_metadata_is_told_before_all_else(store):
    flip(store / "targets.zarr/depth/zarr.json")
    flip(store / "targets.zarr/depth/c/0/0/0")
    assert [p.file for p in verify(store)] == ["targets.zarr/depth/zarr.json"]


def test_shards_not_computed_are_told(content, tmp_path):
    with content.open(tmp_path / "geo") as writer:
        content.commit(writer, 0)
    assert [(p.message, p.shard) for p in verify(tmp_path / "geo")] == [
        ("not computed", 1),
        ("not computed", 2),
    ]


def test_no_store_is_an_error(tmp_path):
    with pytest.raises(SagecacheError, match="no target store"):
        verify(tmp_path)


def test_a_sound_file_of_another_store_is_found_out(store, tmp_path):
    """Same sizes, every checksum right: only the content can tell."""
    other = make_content(failed=(5,), seed=1).write(tmp_path / "other")
    moved = ["depth_range/c/0/0", "bbox/c/0/0", "depth/c/1/0/0"]
    for name in moved:
        source, target = other / "targets.zarr" / name, store / "targets.zarr" / name
        sound = target.read_bytes()
        target.write_bytes(source.read_bytes())
        assert len(sound) == len(source.read_bytes())
        assert [problem.file for problem in verify(store)] == [f"targets.zarr/{name}"]
        target.write_bytes(sound)
    assert verify(store) == []
