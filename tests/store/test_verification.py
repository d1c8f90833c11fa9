import os

import pytest
from toy_store import make_content

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
    for path in sorted(p for p in store.rglob("*") if p.is_file() and p.name != "manifest.json"):
        sound = path.read_bytes()
        flip(path, len(sound) // 2)
        found = {problem.file for problem in verify(store)}
        name = str(path.relative_to(store))
        # A journal line that is not believed takes its shards away; a wrong seal points at what it seals.
        assert found & {name, "journal.jsonl", "targets.zarr"}, name
        path.write_bytes(sound)
    assert verify(store) == []


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
