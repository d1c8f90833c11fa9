import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagecache.store.shard import (
    default_shard_size,
    json_bytes,
    shard_bytes,
    shard_count,
    shard_key,
    shard_rows,
)


@given(st.integers(1, 500), st.integers(1, 60))
def test_shards_part_the_rows_whatever_runs(rows, shard_size):
    parts = [shard_rows(k, rows, shard_size) for k in range(shard_count(rows, shard_size))]
    assert [row for part in parts for row in part] == list(range(rows))
    assert all(len(part) == shard_size for part in parts[:-1])
    assert all(row // shard_size == k for k, part in enumerate(parts) for row in part)


def parse(data: bytes, slots: int) -> list[bytes | None]:
    """A shard by the Zarr v3 specification, read with struct alone."""
    index = data[-(16 * slots + 4) : -4]
    pairs = [struct.unpack_from("<QQ", index, 16 * k) for k in range(slots)]
    return [None if pair == (2**64 - 1, 2**64 - 1) else data[pair[0] : sum(pair)] for pair in pairs]


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6), st.integers(0, 3))
def test_a_shard_gives_back_its_chunks_and_marks_unused_slots(chunks, spare):
    slots = len(chunks) + spare
    if slots == 0:
        return
    assert parse(shard_bytes(chunks, slots), slots) == [*chunks, *[None] * spare]


def test_too_many_chunks_are_refused():
    with pytest.raises(ValueError, match="3 chunks do not fit in 2"):
        shard_bytes([b"a", b"b", b"c"], 2)


def test_keys_follow_the_default_chunk_keys():
    assert shard_key("normal", 12, 4) == "normal/c/12/0/0/0"
    assert shard_key("status", 0, 1) == "status/c/0"


def test_json_has_one_spelling():
    assert json_bytes({"b": 1, "a": [1]}) == json_bytes({"a": (1,), "b": 1})


@pytest.mark.parametrize(
    ("size", "count"),
    [((192, 256), 1024), ((48, 64), 4096), ((96, 128), 2048), ((1, 1), 4096), ((4096, 4096), 64)],
)
def test_the_usual_shard_has_some_twenty_megabytes(size, count):
    assert default_shard_size(size) == count
