"""A second reader, written from docs/store-format.md alone: json, struct, hashlib, numpy, a blosc decoder."""

import hashlib
import json
import struct
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest
from toy_store import expected, same

from sagecache.store import StoreReader

EMPTY = (2**64 - 1, 2**64 - 1)


def checked(data: bytes) -> bytes:
    assert struct.unpack("<I", data[-4:])[0] == google_crc32c.value(data[:-4])
    return data[:-4]


def field_row(root, name: str, row: int, shape: tuple, dtype: str) -> np.ndarray:
    """Row of a field, by the four steps of the document."""
    shard_size = json.loads((root / "manifest.json").read_bytes())["identity"]["shard_size"]
    k, j = divmod(row, shard_size)
    data = (root / "targets.zarr" / name / "c" / str(k)).joinpath(*["0"] * len(shape)).read_bytes()
    index = checked(data[-(16 * shard_size + 4) :])
    offset, length = struct.unpack_from("<QQ", index, 16 * j)
    assert (offset, length) != EMPTY
    body = checked(data[offset : offset + length])
    return np.frombuffer(numcodecs.Blosc().decode(body), dtype).reshape(shape)


def small_row(root, name: str, row: int, dtype: str, tail: int, axes: int) -> np.ndarray:
    """Row of status or depth_range: tail values a row."""
    shard_size = json.loads((root / "manifest.json").read_bytes())["identity"]["shard_size"]
    k, j = divmod(row, shard_size)
    data = (root / "targets.zarr" / name / "c" / str(k)).joinpath(*["0"] * (axes - 1)).read_bytes()
    return np.frombuffer(checked(data), dtype).reshape(shard_size, tail)[j]


def test_a_reader_written_from_the_document_reads_the_store(store, content):
    for row in range(len(content.plan)):
        status = small_row(store, "status", row, "u1", 1, 1)[0]
        if row in content.failed:
            assert status == 3
            continue
        wanted = expected(content, row)
        assert status == 1
        assert np.array_equal(field_row(store, "depth", row, (8, 6), "<u2"), wanted["depth"])
        assert np.array_equal(field_row(store, "normal", row, (2, 8, 6), "u1"), wanted["normal"])
        assert np.array_equal(field_row(store, "mask", row, (8, 6), "?"), wanted["mask"])
        assert np.array_equal(small_row(store, "depth_range", row, "<f4", 2, 2), wanted["depth_range"])


def test_unused_slots_of_the_last_shard_are_marked(store):
    data = (store / "targets.zarr/mask/c/2/0/0").read_bytes()
    index = checked(data[-(16 * 4 + 4) :])
    assert [struct.unpack_from("<QQ", index, 16 * j) == EMPTY for j in range(4)] == [False, False, True, True]


def test_journal_seal_fingerprint_and_plan_are_hashed_as_the_document_says(store, content):
    journal = (store / "journal.jsonl").read_bytes()
    for k, line in enumerate(journal.splitlines()):
        assert int(line[:8], 16) == google_crc32c.value(line[9:]) and line[8:9] == b" "
        record = json.loads(line[9:])
        assert record["shard"] == k
        for name, (size, digest) in record["files"].items():
            data = (store / "targets.zarr" / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    seal = json.loads((store / "complete.json").read_bytes())
    assert seal == {
        "shards": 3,
        "instances": 10,
        "journal_sha256": hashlib.sha256(journal).hexdigest(),
        "manifest_sha256": hashlib.sha256((store / "manifest.json").read_bytes()).hexdigest(),
    }
    manifest = json.loads((store / "manifest.json").read_bytes())
    text = json.dumps(manifest["identity"]["fingerprint"], sort_keys=True, separators=(",", ":"))
    assert manifest["fingerprint_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    for name in ("ids", "bbox", "image_sha256", "target_from_image"):
        values = getattr(content.plan, name).tobytes()
        assert manifest["identity"]["plan"][name] == hashlib.sha256(values).hexdigest()


FROZEN = Path(__file__).parents[1] / "fixtures" / "store_v1"


@pytest.mark.parametrize("name", ["grown", "lossless"])
def test_a_store_of_format_1_reads_as_on_the_day_it_was_made(name):
    """Committed bytes and the values that went in: whoever changes the format has to read these still."""
    with np.load(FROZEN / f"{name}.npz") as content:
        wanted = dict(content)
    reader = StoreReader(FROZEN / name)
    found = reader.read_many(wanted.pop("ids"))
    assert found.keys() == wanted.keys()
    assert all(same(found[key], wanted[key]) and found[key].dtype == wanted[key].dtype for key in wanted)
    assert reader.verify() == []
    assert json.loads((FROZEN / name / "manifest.json").read_bytes())["format"] == 1


def test_the_index_of_all_shards_is_laid_out_as_the_document_says(store):
    index = np.load(store / "index.npy")
    assert index.shape == (3, 15, 2) and index.dtype == "<i8"
    for place, name in enumerate(("depth", "mask", "normal")):
        for k in range(3):
            tail = "/".join("0" * (3 if name == "normal" else 2))
            table = checked((store / "targets.zarr" / name / "c" / str(k) / tail).read_bytes()[-68:])
            slots = [(-1, -1) if pair == EMPTY else pair for pair in struct.iter_unpack("<QQ", table)]
            assert index[place, 4 * k : 4 * k + 4].tolist() == [list(pair) for pair in slots]
            block = index[place, 4 * k : 4 * k + 4].tobytes()
            assert index[place, 12 + k].tolist() == [google_crc32c.value(block), 0]
