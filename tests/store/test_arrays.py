import json
from pathlib import Path

import numpy as np
import pytest
from toy_store import memory_folder

from sagecache.errors import SagecacheError
from sagecache.store.arrays import Column, DamagedChunk, Field
from sagecache.store.codec import unpack_into
from sagecache.store.pools import FilePool

SMALL = ("ids", "bbox", "image_sha256", "target_from_image", "status", "depth_range")


def array(store, name, limit=4):
    return (Column if name in SMALL else Field)(store / "targets.zarr" / name, FilePool(limit))


def read(reader, row):
    """One row of either kind of array."""
    if isinstance(reader, Column):
        return reader.take(np.array([row]))[0]
    out = np.empty(reader.shape[1:], reader.dtype)
    reader.read_into(row, out)
    return out


def test_small_arrays_come_back_whole_and_by_row(store, content):
    for name in ("ids", "bbox", "image_sha256", "target_from_image"):
        found, wanted = array(store, name).read_all(), getattr(content.plan, name)
        assert np.array_equal(found, wanted) and found.dtype == wanted.dtype
        rows = np.array([9, 0, 4, 4])
        assert np.array_equal(array(store, name).take(rows), wanted[rows])
    status = array(store, "status").read_all()
    assert status.tolist() == [3 if row == 5 else 1 for row in range(10)]


def test_a_slot_that_was_never_written_raises_instead_of_reading_as_zeros(store):
    depth = array(store, "depth")
    with pytest.raises(SagecacheError, match="slot 2 was never written"):
        read(depth, 10)  # the tail shard has two rows and four slots
    with pytest.raises(DamagedChunk, match="slot 2 was never written") as error:
        depth.read_many_into(np.array([1, 10]), np.empty((2, *depth.shape[1:]), depth.dtype))
    assert error.value.rows == range(10, 11)


def test_many_rows_are_those_read_one_by_one(store):
    depth, rows = array(store, "depth"), np.array([9, 0, 4, 0])
    out = np.empty((4, *depth.shape[1:]), depth.dtype)
    depth.read_many_into(rows, out)
    assert np.array_equal(out, np.stack([read(array(store, "depth"), row) for row in rows.tolist()]))


def test_a_location_holds_the_chunk_and_is_told_like_a_read(store):
    reader = array(store, "depth")
    path, offset, length = reader.location(6)
    out = np.empty(reader.shape[1:], reader.dtype)
    unpack_into(Path(path).read_bytes()[offset : offset + length], out)
    assert np.array_equal(out, read(reader, 6))
    with pytest.raises(SagecacheError, match="slot 3 was never written"):
        reader.location(11)


def test_a_lost_file_is_named(store):
    path = store / "targets.zarr/mask/c/1/0/0"
    path.unlink()
    with pytest.raises(SagecacheError, match="file is missing") as error:
        read(array(store, "mask"), 5)
    assert error.value.file == str(path)


@pytest.mark.parametrize("name", ["depth", "status", "depth_range", "target_from_image"])
def test_every_flipped_byte_is_found_wherever_it_lies(store, name):
    reader = array(store, name)
    path = Path(reader._paths[0])
    sound, rows = path.read_bytes(), range(min(reader.file_rows, reader.shape[0]))
    for position in range(0, len(sound), max(1, len(sound) // 97)):
        damaged = bytearray(sound)
        damaged[position] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(SagecacheError, match="damaged"):
            fresh = array(store, name)
            for row in rows:
                read(fresh, row)


@pytest.mark.parametrize("name", ["depth", "status"])
def test_a_file_cut_anywhere_is_found(store, name):
    path = Path(array(store, name)._paths[1])
    sound = path.read_bytes()
    for length in range(0, len(sound), max(1, len(sound) // 50)):
        path.write_bytes(sound[:length])
        with pytest.raises(SagecacheError, match="damaged"):
            reader = array(store, name)
            read(reader, reader.file_rows)


def test_foreign_metadata_is_refused(store):
    path = store / "targets.zarr/depth/zarr.json"
    metadata = json.loads(path.read_bytes())
    metadata["codecs"][0]["configuration"]["codecs"][1]["name"] = "zstd"
    path.write_text(json.dumps(metadata))
    with pytest.raises(SagecacheError, match="no direct reading of the codecs"):
        array(store, "depth")
    path.write_text("{")
    with pytest.raises(SagecacheError, match="damaged"):
        array(store, "depth")
    path.write_text(json.dumps({"zarr_format": 2}))
    with pytest.raises(SagecacheError, match="not the metadata of a Zarr v3 array"):
        array(store, "depth")
    path.unlink()
    with pytest.raises(SagecacheError, match="metadata is missing"):
        array(store, "depth")


@pytest.mark.parametrize("name", ["depth", "status", "ids"])
def test_metadata_with_any_flipped_byte_reads_as_it_was_or_is_told(content, name):
    """A KeyError would tell the user neither the file nor what mends it."""
    with memory_folder() as folder:
        flip_all(content.write(Path(folder) / "geo"), name)


def flip_all(store, name):
    path = store / "targets.zarr" / name / "zarr.json"
    sound, wanted, told = path.read_bytes(), read(array(store, name), 0), 0
    for position in range(len(sound)):
        for mask in (1, 4, 16, 255):
            path.write_bytes(sound[:position] + bytes([sound[position] ^ mask]) + sound[position + 1 :])
            try:
                found = array(store, name)
                if found.shape == array_shape(sound) and found.dtype == wanted.dtype:
                    read(found, 0)
            except SagecacheError as error:
                told += 1
                assert str(error.file).startswith(str(path.parent))
                assert isinstance(error, DamagedChunk) or "again: it writes this file anew" in str(error)
    assert told > len(sound)


def array_shape(metadata):
    return tuple(json.loads(metadata)["shape"])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": []},
        {"shape": [10, 8, 0]},
        {"shape": [10, 8.0, 6]},
        {"shape": "10"},
        {"shape": [10, 6, 8]},
        {"data_type": "float99"},
        {"data_type": ["uint16"]},
        {"codecs": []},
        {"codecs": {}},
        {"codecs": [{"name": "sharding_indexed", "configuration": {}}]},
        {"chunk_grid": {"configuration": {"chunk_shape": [3.5, 8, 6]}}},
        {"chunk_grid": None},
        {"attributes": 7},
    ],
)
def test_metadata_that_says_what_can_not_be_is_told(store, change):
    path = store / "targets.zarr/depth/zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(SagecacheError, match="metadata is damaged") as error:
        array(store, "depth")
    assert error.value.file == path and error.value.fix
