"""The index of all shards: what it says, and that a wrong one never gives a wrong value."""

import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import make_content, memory_folder, same, tree

from sagecache.store.chunk_index import map_index
from sagecache.store.reader import StoreReader
from sagecache.store.verification import verify

KEYS = [(5, 0), (8, 0), (8, 1), (11, 0), (14, 0)]


def test_the_index_is_what_stands_at_the_ends_of_the_shards(store):
    index = np.load(store / "index.npy")
    assert index.shape == (3, 3 * 4 + 3, 2) and index.dtype == "<i8"
    for place, (name, axes) in enumerate((("depth", 2), ("mask", 2), ("normal", 3))):
        for row in range(10):
            path = store / "targets.zarr" / name / "c" / str(row // 4) / "/".join("0" * axes)
            table = path.read_bytes()[-(16 * 4 + 4) :]
            assert index[place, row].tolist() == list(struct.unpack_from("<QQ", table, 16 * (row % 4)))


def read(root):
    reader = StoreReader(root)
    return reader.read_many(KEYS), reader


def assert_same(found, wanted):
    assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)


def test_the_index_is_mapped_and_spares_the_shards_own(store):
    wanted, reader = read(store)
    assert all(isinstance(array._index.base, np.memmap) for array in reader._state.arrays.values())
    for path in (store / "targets.zarr/mask/c").rglob("0"):
        if path.is_file():  # the shard's own index is gone, its chunks are not
            path.write_bytes(path.read_bytes()[: -(16 * 4 + 4)])
    assert_same(read(store)[0], wanted)


garbage = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-5, 300))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 2), st.integers(0, 1), garbage), min_size=1))
def test_a_wrong_index_never_gives_a_wrong_value(changes):
    with memory_folder() as folder:
        root = make_content().write(Path(folder) / "geo")
        wanted = read(root)[0]
        index = np.load(root / "index.npy")
        for row, place, which, value in changes:
            index[place, row, which] = value
        before = tree(root / "targets.zarr")
        np.save(root / "index.npy", index)
        assert_same(read(root)[0], wanted)
        reader = StoreReader(root)
        for image_id, instance in KEYS:
            one = reader.read(image_id, instance)
            assert_same(one, {k: v[KEYS.index((image_id, instance))] for k, v in wanted.items()})
        assert tree(root / "targets.zarr") == before


@pytest.mark.parametrize("spoil", ["missing", "cut", "text", "rows", "object"])
def test_without_a_usable_index_the_shards_are_asked(store, content, spoil):
    wanted, path = read(store)[0], store / "index.npy"
    sound = path.read_bytes()
    spoilers = {
        "missing": path.unlink,
        "cut": lambda: path.write_bytes(sound[:200]),
        "text": lambda: path.write_bytes(b"no numpy file"),
        "rows": lambda: np.save(path, np.zeros((3, 9, 2), np.int64)),
        "object": lambda: np.save(path, np.array([{}], object), allow_pickle=True),
    }
    spoilers[spoil]()
    assert_same(read(store)[0], wanted)
    assert [problem.file for problem in verify(store)] == ["index.npy"]
    with content.open(store) as writer:
        writer.finish()
    assert path.read_bytes() == sound and verify(store) == []


def test_an_index_cut_or_flipped_anywhere_in_its_header_is_no_index(store):
    wanted, path = read(store)[0], store / "index.npy"
    sound = path.read_bytes()
    header = len(sound) - np.load(path).nbytes
    flips = [
        sound[:k] + bytes([sound[k] ^ 1 << bit]) + sound[k + 1 :] for k in range(header) for bit in range(8)
    ]
    for data in (b"", sound[:5], sound[:header], *flips):
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers that Python 2 would have written
            map_index(store, ("depth", "normal", "mask"))
    for data in (b"", sound[:5], *flips[::37]):
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(read(store)[0], wanted)


def test_index_and_seal_go_before_a_shard_changes(store, content, tmp_path):
    whole = tree(store)
    shutil.rmtree(store / "targets.zarr/mask/c/1")
    with content.open(store) as writer:
        assert (store / "index.npy").exists()
        content.commit(writer, 1)
        assert not (store / "index.npy").exists() and not (store / "complete.json").exists()
        writer.finish()
    assert tree(store) == whole
