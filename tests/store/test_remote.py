"""Stores in a bucket: against those on a disk, byte for byte, through an S3 server that runs here."""

import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from bucket import bucket
from toy_store import make_content, read_sum, same, tree

from sagecache.errors import SagecacheError
from sagecache.store import StoreReader, pending, set_aside
from sagecache.store.files import open_root, sizes
from sagecache.store.reader import Kept
from sagecache.store.remote import ShardCache
from sagecache.store.verification import verify


@pytest.fixture(scope="module")
def place():
    with bucket() as url:
        yield url


@pytest.fixture
def url(place, request) -> str:
    """A place of its own for each test."""
    return f"{place}/{request.node.name.replace('[', '-').replace(']', '')}/geo"


@pytest.fixture
def remote(url, content) -> str:
    content.write(url)
    return url


def fetched(url: str) -> dict[str, bytes]:
    root = open_root(url)
    return {name: (root / name).read_bytes() for name in sizes(root)}


def good_keys(content) -> list[tuple[int, int]]:
    return [tuple(pair) for row, pair in enumerate(content.plan.ids.tolist()) if row not in content.failed]


def test_the_objects_are_the_files_of_a_local_store(remote, store):
    here = {name: (store / name).read_bytes() for name in tree(store)}
    assert fetched(remote) == here


def test_a_batch_is_read_alike_and_its_ranges_are_asked_for_together(remote, store, content, monkeypatch):
    keys = good_keys(content)
    wanted = StoreReader(store).read_many(keys)
    reader = StoreReader(remote)
    reader.read(*keys[0])  # opened
    calls, files = [], reader._state.pool._files
    real = files.cat_ranges
    monkeypatch.setattr(
        files, "cat_ranges", lambda paths, *a, **k: calls.append(len(paths)) or real(paths, *a, **k)
    )
    found = reader.read_many(keys)
    assert all(same(found[name], wanted[name]) for name in wanted) and found.keys() == wanted.keys()
    assert calls.count(2 * len(keys)) == 1 and len(calls) <= 3  # the mask follows from depth; columns once


def test_zarr_reads_the_bucket_through_its_own_store(remote, content):
    group = zarr.open_group(zarr.storage.FsspecStore.from_url(f"{remote}/targets.zarr"), mode="r")
    reader = StoreReader(remote)
    keys = good_keys(content)
    rows = [row for row in range(len(content.plan)) if row not in content.failed]
    found = reader.read_many(keys)
    for name in ("depth", "normal", "mask"):
        assert np.array_equal(group[name][:][rows], found[name])


def test_an_unfinished_store_goes_on_and_ends_the_same(url, store, content):
    with content.open(url) as writer:
        content.commit(writer, 1)
    assert StoreReader(url, partial=True).status.tolist() == [0] * 4 + [1, 3, 1, 1] + [0] * 2
    arguments = ({"teacher": {"name": "toy", "weights": "aa"}, "padding": 1.25}, content.shard_size)
    assert pending(url, content.plan, content.fields, *arguments) == 6
    content.write(url)
    assert fetched(url) == {name: (store / name).read_bytes() for name in tree(store)}


def test_a_store_in_a_bucket_grows(url, content, tmp_path):
    content.only(range(6)).write(url)
    content.write(url)
    content.only(range(6)).write(tmp_path / "geo")
    here = content.write(tmp_path / "geo")
    assert fetched(url) == {name: (here / name).read_bytes() for name in tree(here)}


def test_two_writers_of_the_same_shards_end_with_one_sound_store(url, store, content):
    with content.open(url) as first, content.open(url) as second:
        for shard in (0, 1, 2):
            content.commit(first, shard)
            content.commit(second, shard)
        first.finish()
        second.finish()
    assert fetched(url) == {name: (store / name).read_bytes() for name in tree(store)}
    assert verify(open_root(url)) == []


def test_damage_in_a_bucket_is_found_and_told(remote, content):
    shard = open_root(remote) / "targets.zarr/depth/c/1/0/0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(bytes(data))
    key = tuple(content.plan.ids[4].tolist())
    with pytest.raises(SagecacheError, match=f"{shard}, image_id {key[0]}, instance {key[1]}: the bytes are"):
        StoreReader(remote).read(*key)
    assert [problem.file for problem in verify(open_root(remote))] == ["targets.zarr/depth/c/1/0/0"]
    shard.unlink()
    with pytest.raises(SagecacheError, match="the shard's file is missing. Run"):
        StoreReader(remote).read(*key)


def test_setting_aside_keeps_every_object(remote):
    before = fetched(remote)
    moved = set_aside(remote)
    assert str(moved).startswith(f"{remote}.replaced-") and fetched(str(moved)) == before
    assert fetched(remote) == {}


def test_shards_are_kept_here_within_the_bound_and_serve_the_next_reads(remote, content, tmp_path):
    keys, kept = good_keys(content), Kept(tmp_path / "kept", 10**6)
    wanted = StoreReader(remote).read_many(keys)
    reader = StoreReader(remote, kept=kept)
    reader.read_many(keys)
    reader._state.pool._cache.wait()
    here = {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert here >= {*(f"depth-c-{k}-0-0" for k in range(3)), *(f"normal-c-{k}-0-0-0" for k in range(3))}
    for shard in ("depth/c/0/0/0", "normal/c/1/0/0/0"):
        (open_root(remote) / "targets.zarr" / shard).unlink()  # no longer needed
    found = reader.read_many(keys)
    assert all(same(found[name], wanted[name]) for name in wanted)


def test_nothing_is_kept_beyond_the_bound(remote, content, tmp_path):
    keys = good_keys(content)
    size = max(sizes(open_root(remote) / "targets.zarr" / "normal").values())
    reader = StoreReader(remote, kept=Kept(tmp_path / "kept", 2 * size))
    for _ in range(3):
        reader.read_many(keys)
        reader._state.pool._cache.wait()
    total = sum(p.stat().st_size for p in (tmp_path / "kept").rglob("*") if p.is_file())
    assert 0 < total <= 2 * size


def test_a_kept_shard_that_is_damaged_is_fetched_anew(remote, content, tmp_path):
    keys = good_keys(content)
    reader = StoreReader(remote, kept=Kept(tmp_path / "kept", 10**6))
    wanted = reader.read_many(keys)
    reader._state.pool._cache.wait()
    for path in (tmp_path / "kept").rglob("*"):
        if path.is_file():
            path.write_bytes(b"x" * path.stat().st_size)
    found = StoreReader(remote, kept=Kept(tmp_path / "kept", 10**6)).read_many(keys)
    assert all(same(found[name], wanted[name]) for name in wanted)


class Clock:
    """The time of a cache, moved by hand; the files' own times are the system's."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def kept_shards(tmp_path):
    """make(state) -> a cache of one store's shards, and the clock; what it fetches are files of 10 bytes."""
    clock = Clock()
    (tmp_path / "far.zarr").mkdir()
    for name in "abc":
        (tmp_path / "far.zarr" / name).write_bytes(name.encode() * 10)

    def make(state: str, limit: int = 30) -> ShardCache:
        return ShardCache(fsspec.filesystem("file"), tmp_path / "kept", state, limit, clock)

    return make, clock, lambda name: str(tmp_path / "far.zarr" / name)


def fetch(cache: ShardCache, path: str) -> bytes | None:
    cache.read(path, 10, 0)
    cache.wait()
    return cache.read(path, 10, 0)


def grow_old(folder: Path, seconds: float = 5000) -> None:
    past = time.time() - seconds
    os.utime(folder, (past, past))


def test_a_store_that_is_read_for_hours_is_not_the_one_that_makes_room(kept_shards, tmp_path):
    make, clock, far = kept_shards
    read, unused = make("read"), make("unused")
    assert fetch(read, far("a")) == fetch(unused, far("a")) == b"a" * 10
    clock.ahead = 61
    for cache in (read, unused):
        grow_old(tmp_path / "kept" / cache._folder.name)
    assert read.read(far("a"), 10, 0) == b"a" * 10
    assert time.time() - (tmp_path / "kept" / "read").stat().st_mtime < 60
    grow_old(tmp_path / "kept" / "read", 30)
    before = (tmp_path / "kept" / "read").stat().st_mtime
    assert read.read(far("a"), 10, 0) and (tmp_path / "kept" / "read").stat().st_mtime == before  # too soon
    assert fetch(make("third", 25), far("b")) == b"b" * 10
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["read", "third"]


@pytest.mark.parametrize("made_by_another", [False, True])
def test_a_folder_that_vanished_is_made_and_filled_again(kept_shards, tmp_path, made_by_another):
    make, clock, far = kept_shards
    cache, folder = make("one", 25), tmp_path / "kept" / "one"
    assert [fetch(cache, far(name)) for name in "abc"] == [b"a" * 10, b"b" * 10, None]  # c does not fit
    shutil.rmtree(folder)
    if made_by_another:
        make("one")
        cache._pool.release()  # as it may do at any time
    else:
        clock.ahead = 61
    assert fetch(cache, far("b")) == b"b" * 10
    assert [path.name for path in folder.iterdir()] == ["b"]
    if not made_by_another:
        assert fetch(cache, far("c")) == b"c" * 10  # there is room now


def test_a_store_made_anew_is_not_read_from_what_was_kept_of_the_old_one(url, tmp_path):
    kept = Kept(tmp_path / "kept", 10**6)
    for seed in (0, 1):
        content = make_content(seed=seed)
        content.write(url)
        reader = StoreReader(url, kept=kept)
        for _ in range(2):
            found = reader.read(*content.plan.ids[3].tolist())
            reader._state.pool._cache.wait()
        assert np.array_equal(found["target_from_image"], content.plan.target_from_image[3])
        assert found["mask"].tolist() == content.maps[3]["mask"][0].tolist()
        set_aside(url)


def read_sum_there(environment, *arguments):
    os.environ.update(environment)  # a fork server may be older than our bucket
    read_sum(*arguments)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_used_reader_works_in_other_processes(remote, content, method, tmp_path):
    keys = good_keys(content)
    reader = StoreReader(remote, kept=Kept(tmp_path / "kept", 10**6))
    here = sum(int(reader.read(*key)["depth"].astype(int).sum()) for key in keys)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=read_sum_there, args=(dict(os.environ), reader, keys, queue))
    process.start()
    assert queue.get(timeout=60) == here
    process.join()
    assert str(pickle.loads(pickle.dumps(reader)).root) == remote


def test_a_place_that_no_package_knows_is_told(tmp_path):
    with pytest.raises(SagecacheError, match="can't reach 'nowhere://'.*pip install"):
        StoreReader("nowhere://x/geo")
    assert open_root(str(tmp_path)) == Path(tmp_path) and not os.path.exists("nowhere:")
