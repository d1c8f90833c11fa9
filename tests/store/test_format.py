"""A second reader, written from docs/store-format.md alone: json, struct, hashlib, numpy, a blosc decoder."""

import hashlib
import json
import struct

import google_crc32c
import numcodecs
import numpy as np
from toy_store import expected

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
    assert seal == {"shards": 3, "instances": 10, "journal_sha256": hashlib.sha256(journal).hexdigest()}
    manifest = json.loads((store / "manifest.json").read_bytes())
    text = json.dumps(manifest["identity"]["fingerprint"], sort_keys=True, separators=(",", ":"))
    assert manifest["fingerprint_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    for name in ("ids", "bbox", "image_sha256", "target_from_image"):
        values = getattr(content.plan, name).tobytes()
        assert manifest["identity"]["plan"][name] == hashlib.sha256(values).hexdigest()
