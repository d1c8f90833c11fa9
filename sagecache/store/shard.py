"""Rows -> shards, and the exact bytes and metadata of a Zarr v3 array sharded along its first axis."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from sagecache.store.codec import shuffled, with_checksum
from sagecache.store.spec import Setting

ABSENT_CHUNK = np.uint64(2**64 - 1)  # offset and length of a chunk that a shard does not hold


def shard_count(rows: int, shard_size: int) -> int:
    return -(-rows // shard_size)


def default_shard_size(size: tuple[int, int]) -> int:
    """Instances a shard, for maps of size (width, height): 1,024 at 192x256, 4,096 at 48x64.

    Files of some 20 MB: few enough to keep open, and a kill costs few enough teacher passes.
    """
    share = math.sqrt(192 * 256 / (size[0] * size[1]))
    return min(max(2 ** round(math.log2(1024 * share)), 64), 4096)


def shard_rows(shard: int, rows: int, shard_size: int) -> range:
    """The rows of one shard: fixed and contiguous; the last shard may be short."""
    return range(shard * shard_size, min(rows, (shard + 1) * shard_size))


def shard_key(array: str, shard: int, axes: int) -> str:
    """Path of a shard below the group: Zarr's default chunk key, every other axis has one chunk."""
    return "/".join([array, "c", str(shard), *["0"] * (axes - 1)])


def shard_bytes(chunks: Sequence[bytes], slots: int) -> bytes:
    """A whole shard: the chunks in order, then the index (offset, length) of each slot, then its crc32c."""
    if len(chunks) > slots:
        raise ValueError(f"{len(chunks)} chunks do not fit in {slots} slots")
    lengths = np.array([len(chunk) for chunk in chunks], "<u8")
    index = np.full((slots, 2), ABSENT_CHUNK, "<u8")
    index[: len(chunks), 0] = np.cumsum(lengths) - lengths
    index[: len(chunks), 1] = lengths
    return b"".join(chunks) + with_checksum(index.tobytes())


# --------------------------------------------------------------------------------------------- metadata
def json_bytes(value: object) -> bytes:
    """JSON for people and machines: sorted keys, one indent, a final newline; the same bytes each time."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()


def group_metadata(attributes: Mapping) -> dict:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def sharded_array_metadata(
    shape: Sequence[int],
    dtype: str,
    chunk_rows: int,
    shard_rows: int,
    *,
    compressed: Setting | None,
    dimensions: Sequence[str],
    attributes: Mapping,
) -> dict:
    """zarr.json of an array whose files are shards of shard_rows rows, with inner chunks of chunk_rows.

    compressed: how, or None.
    """
    codecs = [
        _bytes_codec(dtype),
        *([_blosc_codec(dtype, compressed)] if compressed else []),
        {"name": "crc32c"},
    ]
    sharding = {
        "chunk_shape": [chunk_rows, *shape[1:]],
        "codecs": codecs,
        "index_codecs": [_bytes_codec("uint64"), {"name": "crc32c"}],
        "index_location": "end",
    }
    codec = {"name": "sharding_indexed", "configuration": sharding}
    return _array_metadata(shape, dtype, shard_rows, [codec], dimensions, attributes)


def plain_array_metadata(
    shape: Sequence[int], dtype: str, chunk_rows: int, *, dimensions: Sequence[str], attributes: Mapping
) -> dict:
    """zarr.json of an array whose files are chunks of chunk_rows rows, uncompressed, with crc32c."""
    codecs = [_bytes_codec(dtype), {"name": "crc32c"}]
    return _array_metadata(shape, dtype, chunk_rows, codecs, dimensions, attributes)


def _array_metadata(shape, dtype: str, file_rows: int, codecs: list, dimensions, attributes) -> dict:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [file_rows, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if dtype == "bool" else 0.0 if dtype.startswith("float") else 0,
        "codecs": codecs,
        "dimension_names": list(dimensions),
        "attributes": dict(attributes),
        "storage_transformers": [],
    }


def _bytes_codec(dtype: str) -> dict:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _blosc_codec(dtype: str, setting: Setting) -> dict:
    configuration = {
        "typesize": np.dtype(dtype).itemsize,
        "cname": setting.compressor,
        "clevel": setting.level,
        "shuffle": "shuffle" if shuffled(dtype) else "noshuffle",
        "blocksize": 0,
    }
    return {"name": "blosc", "configuration": configuration}
