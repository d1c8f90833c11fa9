"""One Zarr v3 array read straight from its files: one pread a chunk, checksum tested, no zarr library.

Knows what our writer writes: arrays split along the first axis only, files that are either shards
(``sharding_indexed``, index at the end) or single chunks, codecs bytes, blosc, crc32c.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store.codec import ChecksumMismatch, unpack_into, without_checksum
from sagecache.store.shard import ABSENT_CHUNK, shard_key

_INDEX_ENTRY = 16  # bytes: offset and length, uint64 each
_CHECKSUM = 4


class _OpenFile:
    """A descriptor that closes when its last user lets go, so that eviction never interrupts a read."""

    __slots__ = ("descriptor", "_close")

    def __init__(self, path: str) -> None:
        self._close = os.close  # kept: module globals may be gone when the interpreter ends
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self._close(self.descriptor)


class FilePool:
    """At most ``limit`` files open at once, the least recently used is closed first; safe under threads."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, size: int, offset: int) -> bytes:
        """size bytes from offset; fewer where the file ends."""
        file = self._get(path)  # held by this name until the read is over, whatever other threads evict
        return os.pread(file.descriptor, size, offset)

    def size(self, path: str) -> int:
        file = self._get(path)
        return os.fstat(file.descriptor).st_size

    def __len__(self) -> int:
        return len(self._files)

    def _get(self, path: str) -> _OpenFile:
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _OpenFile(path)
                if len(self._files) > self._limit:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(path)
            return file


class ArrayReader:
    """Chunks of one array by number. Raises SagecacheError naming the file for what is not as written."""

    def __init__(self, folder: Path, pool: FilePool) -> None:
        self._folder, self._pool = folder, pool
        self._indices: dict[int, np.ndarray] = {}
        self._paths: dict[int, str] = {}  # pathlib takes longer than reading a small chunk
        metadata = _load_metadata(folder / "zarr.json")
        self.shape = tuple(metadata["shape"])
        self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        self.attributes = metadata["attributes"]
        self.file_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        first = metadata["codecs"][0]
        self._sharded = first["name"] == "sharding_indexed"
        inner = first["configuration"] if self._sharded else {"codecs": metadata["codecs"]}
        self.chunk_rows = inner["chunk_shape"][0] if self._sharded else self.file_rows
        names = [codec["name"] for codec in inner["codecs"]]
        if names not in (["bytes", "blosc", "crc32c"], ["bytes", "crc32c"]) or (
            self._sharded and inner["index_location"] != "end"
        ):
            raise SagecacheError(f"no direct reading of the codecs {names}", file=folder / "zarr.json")
        self._compressed = "blosc" in names

    def file(self, shard: int) -> Path:
        return self._folder.parent / shard_key(self._folder.name, shard, len(self.shape))

    def read_chunk_into(self, chunk: int, out: np.ndarray) -> None:
        """Decode chunk number ``chunk`` along the first axis into out: C-contiguous, stored dtype."""
        shard, slot = divmod(chunk, self.file_rows // self.chunk_rows)
        try:
            self._decode(self._chunk_bytes(shard, slot), out)
        except (FileNotFoundError, ChecksumMismatch) as error:
            raise self._told(error, shard) from error

    def read_chunk(self, chunk: int) -> np.ndarray:
        """A whole chunk, (chunk_rows, ...); rows past the end of the array are padding."""
        out = np.empty((self.chunk_rows, *self.shape[1:]), self.dtype)
        self.read_chunk_into(chunk, out)
        return out

    def read_all(self) -> np.ndarray:
        """The whole array in memory; for the small ones."""
        chunks = math.ceil(self.shape[0] / self.chunk_rows)
        return np.concatenate([self.read_chunk(k) for k in range(chunks)])[: self.shape[0]]

    def _decode(self, data: bytes, out: np.ndarray) -> None:
        if self._compressed:
            unpack_into(data, out)
            return
        values = np.frombuffer(without_checksum(data), self.dtype)
        if values.size != out.size:
            raise ChecksumMismatch(f"{values.size} values where {out.size} belong")
        out[...] = values.reshape(out.shape)

    def location(self, chunk: int) -> tuple[Path, int, int]:
        """File, offset and length in bytes of chunk number ``chunk``, its checksum included."""
        shard, slot = divmod(chunk, self.file_rows // self.chunk_rows)
        try:
            path, offset, length = self._locate(shard, slot)
            return Path(path), offset, length
        except (FileNotFoundError, ChecksumMismatch) as error:
            raise self._told(error, shard) from error

    def _told(self, error: Exception, shard: int) -> SagecacheError:
        lost = isinstance(error, FileNotFoundError)
        message = "the shard's file is missing" if lost else f"the bytes are damaged ({error})"
        return SagecacheError(message, file=self.file(shard))

    def _locate(self, shard: int, slot: int) -> tuple[str, int, int]:
        path = self._paths.get(shard)
        if path is None:
            path = self._paths[shard] = str(self.file(shard))
        if not self._sharded:
            return path, 0, self._pool.size(path)
        index = self._indices.get(shard)
        if index is None:
            index = self._indices[shard] = self._read_index(path)
        offset, length = index[slot].tolist()
        if offset < 0:
            raise ChecksumMismatch(f"slot {slot} was never written")
        return path, offset, length

    def _chunk_bytes(self, shard: int, slot: int) -> bytes:
        path, offset, length = self._locate(shard, slot)
        return self._pool.read(path, length, offset)

    def _read_index(self, path: str) -> np.ndarray:
        slots = self.file_rows // self.chunk_rows
        length = slots * _INDEX_ENTRY + _CHECKSUM
        data = self._pool.read(path, length, max(0, self._pool.size(path) - length))
        body = without_checksum(data)
        if len(body) != slots * _INDEX_ENTRY:
            raise ChecksumMismatch("the shard is shorter than its index")
        index = np.frombuffer(body, "<u8").reshape(slots, 2)
        return np.where(index == ABSENT_CHUNK, -1, index.astype(np.int64))


def _load_metadata(path: Path) -> dict:
    try:
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise SagecacheError("the array's metadata is missing", file=path) from error
    except ValueError as error:
        raise SagecacheError(f"the array's metadata is damaged ({error})", file=path) from error
    if metadata.get("zarr_format") != 3 or metadata.get("node_type") != "array":
        raise SagecacheError("this is not the metadata of a Zarr v3 array", file=path)
    return metadata
