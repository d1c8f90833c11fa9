"""One Zarr v3 array read straight from its files: one pread a chunk, checksum tested, no zarr library.

Knows what our writer writes: arrays split along the first axis only, files that are either shards
(``sharding_indexed``, index at the end) or single chunks, codecs bytes, blosc, crc32c.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store.codec import ChecksumMismatch, EncodedRow, checksum, unpack_into, without_checksum
from sagecache.store.pools import Pool, Read, Span, open_pool
from sagecache.store.shard import ABSENT_CHUNK, shard_key
from sagecache.store.spec import NOT_DONE, TargetField

_INDEX_ENTRY = 16  # bytes: offset and length, uint64 each
_CHECKSUM = 4


class DamagedChunk(SagecacheError):
    """A chunk that can't be read. rows: of the array, that it holds; lost: with all of its file."""

    def __init__(self, message: str, file: str, rows: range, lost: bool) -> None:
        super().__init__(message, file=file)
        self.rows, self.lost = rows, lost


class _Array:
    """Metadata and files of one array. Raises SagecacheError naming the file for what is not as written."""

    _codecs: list[str]

    def __init__(self, folder: Path, pool: Pool, index: np.ndarray | None = None) -> None:
        """index: this array's part of the store's (see ``chunk_index``), tested before it is believed."""
        self._pool = pool
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
        if names != self._codecs:
            path = folder / "zarr.json"
            raise SagecacheError(f"no direct reading of the codecs {names}", file=path, fix=_REMADE)
        files, self._slots = math.ceil(self.shape[0] / self.file_rows), self.file_rows // self.chunk_rows
        keys = (shard_key(folder.name, number, len(self.shape)) for number in range(files))
        self._paths = [f"{folder.parent}/{key}" for key in keys]  # pathlib takes longer than a small chunk
        chunks = files * self._slots
        self._sums = None if index is None or index.shape != (chunks + files, 2) else index[chunks:, 0]
        # Offset and length of each chunk. Filled file by file: what nobody reads takes no memory.
        self._index = sparse_empty((chunks, 2), np.int64) if self._sums is None else index[:chunks]
        self._indexed = np.zeros(files, bool)

    def _span(self, chunk: int) -> tuple[str, int, int]:
        """File, offset and length of a chunk."""
        number = chunk // self._slots
        path = self._paths[number]
        if not self._sharded:
            return path, 0, self._whole_chunk
        self._read_index(number)
        offset, length = self._index[chunk].tolist()
        if offset < 0:
            raise ChecksumMismatch(f"slot {chunk % self._slots} was never written")
        return path, offset, length

    def _read_index(self, number: int) -> None:
        """Know where the chunks of a file lie: from the store's index if that is sound, or from the file."""
        if self._indexed[number]:
            return
        kept = self._index[number * self._slots : (number + 1) * self._slots]
        if self._sums is not None and checksum(kept.tobytes()) == self._sums[number]:
            self._indexed[number] = True
            return
        path, length = self._paths[number], self._slots * _INDEX_ENTRY + _CHECKSUM
        data = self._pool.read(path, length, max(0, self._pool.size(path) - length))
        body = without_checksum(data)
        if len(data) != length:
            raise ChecksumMismatch("the shard is shorter than its index")
        index = np.frombuffer(body, "<u8").reshape(self._slots, 2)
        kept[...] = np.where(index == ABSENT_CHUNK, -1, index.astype(np.int64))
        self._indexed[number] = True

    def _told(self, error: Exception, chunk: int) -> DamagedChunk:
        lost = isinstance(error, FileNotFoundError)
        message = "the shard's file is missing" if lost else f"the bytes are damaged ({error})"
        first = chunk * self.chunk_rows
        rows = range(first, max(first + 1, min(first + self.chunk_rows, self.shape[0])))
        return DamagedChunk(message, self._paths[chunk // self._slots], rows, lost)


class Field(_Array):
    """An array of targets: sharded, each row a compressed chunk of its own."""

    _codecs = ["bytes", "blosc", "crc32c"]

    def read_into(self, row: int, out: np.ndarray) -> None:
        """Decode a row into out: C-contiguous, of the stored dtype and a row's shape."""
        try:
            try:
                self._decode(row, out)
            except ChecksumMismatch:  # perhaps it is the index that is old, or what a pool keeps
                self._sums = None
                self._pool.forget(self._paths[row // self._slots])
                self._indexed[row // self._slots] = False
                self._decode(row, out)
        except (FileNotFoundError, ChecksumMismatch) as error:
            raise self._told(error, row) from error

    def _decode(self, row: int, out: np.ndarray) -> None:
        path, offset, length = self._span(row)
        unpack_into(self._pool.read(path, length, offset), out)

    def locate_many(self, rows: np.ndarray) -> list[Span]:
        """Path, offset and length of the chunks of rows (B,)."""
        files = rows // self._slots
        for place in np.flatnonzero(~self._indexed[files]).tolist():
            try:
                self._read_index(files[place])
            except (FileNotFoundError, ChecksumMismatch) as error:
                raise self._told(error, int(rows[place])) from error
        paths = self._paths
        offsets, lengths = self._index[rows].T.tolist()
        return list(zip([paths[number] for number in files.tolist()], offsets, lengths, strict=True))

    def read_many_into(
        self,
        rows: np.ndarray,
        out: np.ndarray,
        spans: Sequence[Span] | None = None,
        read: Read | None = None,
    ) -> None:
        """Decode rows (B,) into out (B, ...): per row one pread, one checksum, one decompression.

        spans: those of rows, and read: what gives them out, where they were asked for together.
        """
        read = read or self._pool.read
        try:
            for (path, offset, length), values in zip(spans or self.locate_many(rows), out, strict=True):
                unpack_into(read(path, length, offset), values)
        except (OSError, ChecksumMismatch, DamagedChunk):
            for row, values in zip(rows.tolist(), out, strict=True):  # once more, to mend or to tell which
                self.read_into(row, values)

    def chunk(self, row: int) -> bytes:
        """A row as it stands in its file, checksum tested and included."""
        try:
            path, offset, length = self._span(row)
            data = self._pool.read(path, length, offset)
            without_checksum(data)
            return data
        except (FileNotFoundError, ChecksumMismatch) as error:
            raise self._told(error, row) from error

    def read_index(self) -> np.ndarray:
        """Offset and length of each slot of each file, (files, S, 2) int64, -1 for unused ones."""
        for number in range(len(self._paths)):
            try:
                self._read_index(number)
            except (FileNotFoundError, ChecksumMismatch) as error:
                raise self._told(error, number * self._slots) from error
        return self._index.reshape(len(self._paths), self._slots, 2)

    def location(self, row: int) -> Span:
        """File, offset and length in bytes of a row's chunk, its checksum included."""
        try:
            return self._span(row)
        except (FileNotFoundError, ChecksumMismatch) as error:
            raise self._told(error, row) from error


class Column(_Array):
    """A small array: chunks of many rows, not compressed, kept once they are read."""

    _codecs = ["bytes", "crc32c"]

    def __init__(self, folder: Path, pool: Pool) -> None:
        super().__init__(folder, pool)
        chunks = math.ceil(self.shape[0] / self.chunk_rows)
        self._whole_chunk = self.chunk_rows * math.prod(self.shape[1:]) * self.dtype.itemsize + _CHECKSUM
        self._values = sparse_empty((chunks * self.chunk_rows, *self.shape[1:]), self.dtype)
        self._loaded = np.zeros(chunks, bool)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows (B,) of the array, (B, ...)."""
        chunks = rows // self.chunk_rows
        missing = np.unique(chunks[~self._loaded[chunks]]).tolist()
        if missing:
            self._load(missing)
        return self._values[rows]

    def read_all(self) -> np.ndarray:
        """The whole array."""
        return self.take(np.arange(self.shape[0]))

    def _load(self, chunks: Sequence[int]) -> None:
        read = self._pool.read
        if self._pool.far and not self._sharded:  # sharded ones are read whole when a store is opened
            read = self._pool.together([self._span(chunk) for chunk in chunks])
        for chunk in chunks:
            self._load_chunk(chunk, read)

    def _load_chunk(self, chunk: int, read: Read) -> None:
        first = chunk * self.chunk_rows
        target = self._values[first : first + self.chunk_rows]
        try:
            path, offset, length = self._span(chunk)
            body = without_checksum(read(path, length, offset))
            if len(body) != target.nbytes:
                raise ChecksumMismatch(f"{len(body)} bytes where {target.nbytes} belong")
        except (FileNotFoundError, ChecksumMismatch) as error:
            raise self._told(error, chunk) from error
        target[...] = np.frombuffer(body, self.dtype).reshape(target.shape)
        self._loaded[chunk] = True


def sparse_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.empty, and what is never touched takes no memory: numpy asks for huge pages, 2 MB a touch."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, max(1, size))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def read_encoded(group: Path, fields: Sequence[TargetField], rows: range) -> list[EncodedRow]:
    """Rows as their encoder made them. Raises SagecacheError where one is damaged or was never made."""
    pool, numbers = open_pool(group, 8), np.arange(rows.start, rows.stop)
    arrays = {field.name: Field(group / field.name, pool) for field in fields}
    status = Column(group / "status", pool).take(numbers).tolist()
    if NOT_DONE in status:
        raise SagecacheError("a row was never made", file=group)
    ranges = [(0.0, 0.0)] * len(rows)
    if (group / "depth_range").exists():
        ranges = Column(group / "depth_range", pool).take(numbers).tolist()
    chunks = ({name: array.chunk(row) for name, array in arrays.items()} for row in rows)
    return [EncodedRow(one, tuple(pair), row) for one, pair, row in zip(status, ranges, chunks, strict=True)]


def _load_metadata(path: Path) -> dict:
    """An array's zarr.json, with all that this module uses of it in its place and of its type."""
    try:
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise SagecacheError("the array's metadata is missing", file=path, fix=_REMADE) from error
    except ValueError as error:
        raise SagecacheError(f"the array's metadata is damaged ({error})", file=path, fix=_REMADE) from error
    if not isinstance(metadata, dict) or (metadata.get("zarr_format"), metadata.get("node_type")) != (
        3,
        "array",
    ):
        raise SagecacheError("this is not the metadata of a Zarr v3 array", file=path, fix=_REMADE)
    try:
        wrong = _first_fault(metadata)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        raise SagecacheError(f"the array's metadata is damaged ({wrong})", file=path, fix=_REMADE)
    return metadata


_REMADE = "Run the command that made the store again: it writes this file anew and keeps the targets."
_DTYPES = ("bool", "uint8", "uint16", "int64", "float32", "float64")


def _first_fault(metadata: dict) -> str | None:
    """What of an array's metadata cannot be; a missing key raises as it does."""
    shape, first = metadata["shape"], metadata["codecs"][0]
    outer = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    sharded = first["name"] == "sharding_indexed"
    inner = first["configuration"] if sharded else {"codecs": metadata["codecs"], "chunk_shape": outer}
    if not all(type(length) is int and length > 0 for length in (*shape, *outer, *inner["chunk_shape"])):
        return "a length is no positive integer"
    if not (shape[1:] == outer[1:] == inner["chunk_shape"][1:]) or outer[0] % inner["chunk_shape"][0]:
        return "shape and chunks do not fit"
    if metadata["data_type"] not in _DTYPES:
        return f"data type {metadata['data_type']!r}"
    if not all(isinstance(codec["name"], str) for codec in inner["codecs"]):
        return "a codec without a name"
    if not isinstance(metadata["attributes"], dict):
        return "attributes that are no object"
    return f"index at {inner['index_location']!r}" if sharded and inner["index_location"] != "end" else None
