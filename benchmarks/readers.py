"""One class a way of reading: ``read(rows, out)`` fills a batch. Lazy, picklable, opened anew after a fork.

Every class reads as fast as its library allows for random rows, straight into the batch where it can.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numcodecs.blosc
import numpy as np

from benchmarks import containers
from benchmarks.containers import CHUNKED, FIELDS
from sagecache.store import StoreReader
from sagecache.store.codec import mask_of_depth, unpack_into

Spec = dict[str, tuple[np.dtype, tuple[int, ...]]]  # field -> dtype and shape of a row
Batch = Mapping[str, np.ndarray]


def spec_of(root: Path) -> Spec:
    """What the store holds of depth, normal and mask."""
    arrays = StoreReader(root).allocate(1)
    return {name: (arrays[name].dtype, arrays[name].shape[1:]) for name in FIELDS}


def allocate(spec: Spec, count: int) -> dict[str, np.ndarray]:
    return {name: np.empty((count, *shape), dtype) for name, (dtype, shape) in spec.items()}


class Reader:
    """folder: its own files. spec: what it fills a batch with. slowness: the slower, the smaller a round."""

    slowness = 1
    forks = True  # whether a process that used it may fork

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.folder, self.spec = folder, spec
        self._process, self._handle = None, None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_process": None, "_handle": None}

    def open(self):
        """What reading needs, made once a process."""
        raise NotImplementedError

    def read(self, rows: np.ndarray, out: Batch) -> None:
        """Rows (B,) of the store into out, (B, ...) a field."""
        raise NotImplementedError

    @property
    def handle(self):
        if self._process != os.getpid():
            self._handle, self._process = self.open(), os.getpid()
        return self._handle

    def close(self) -> None:
        """Let go of files and mappings."""
        self._handle = self._process = None
        gc.collect()

    def row(self, row: int) -> dict[str, np.ndarray]:
        out = allocate(self.spec, 1)
        self.read(np.array([row]), out)
        return {name: values[0] for name, values in out.items()}


class Direct(Reader):
    """Our own reader, in one call, by ids."""

    def open(self):
        reader = StoreReader(self.folder)
        return reader, [tuple(key) for key in reader.ids.tolist()]

    def read(self, rows, out):
        reader, keys = self.handle
        reader.read_many([keys[row] for row in rows.tolist()], out)


class Stored(Reader):
    """Reads stored depth and normals; the mask follows from depth, once a batch, as our own reader has it."""

    fields: Sequence[str] = CHUNKED

    def read(self, rows, out):
        self.fill(rows, {name: out[name] for name in self.fields})
        if "mask" not in self.fields:
            mask_of_depth(out["depth"], out=out["mask"])

    def fill(self, rows: np.ndarray, out: Batch) -> None:
        """Rows (B,) of ``fields`` into out."""
        raise NotImplementedError


class InMemory(Stored):
    """The store's chunks held in memory: decoding alone. checked: with the checksum that reading tests."""

    def __init__(self, folder: Path, spec: Spec, fields=CHUNKED, checked: bool = True) -> None:
        super().__init__(folder, spec)
        self.fields, self.checked = fields, checked

    def open(self):
        return containers.chunks(self.folder, self.fields)

    def fill(self, rows, out):
        numbers, found = rows.tolist(), self.handle
        decode = unpack_into if self.checked else _decompress
        for name, values in out.items():
            blobs = found[name]
            for row, target in zip(numbers, values, strict=True):
                decode(blobs[row], target)


def _decompress(chunk: bytes, target: np.ndarray) -> None:
    numcodecs.blosc.decompress(memoryview(chunk)[:-4], target)


class ZarrPython(Stored):
    """zarr-python's arrays, instance by instance: the fastest way through its API for random rows."""

    slowness = 16
    pipeline = "zarr.core.codec_pipeline.BatchedCodecPipeline"

    def open(self):
        import zarr

        with zarr.config.set({"codec_pipeline.path": self.pipeline}):  # taken when an array is opened
            group = zarr.open_group(str(self.folder / "targets.zarr"), mode="r")
            return {name: group[name] for name in self.fields}

    def fill(self, rows, out):
        for name, values in out.items():
            array = self.handle[name]
            for row, target in zip(rows.tolist(), values, strict=True):
                target[...] = array[row]


class ZarrsPipeline(ZarrPython):
    """The same API with zarrs' codecs in Rust behind it."""

    pipeline = "zarrs.ZarrsCodecPipeline"

    def open(self):
        import zarrs  # noqa: F401, zarr looks the pipeline up by name

        return super().open()


class TensorStore(Stored):
    """tensorstore on the same files: all reads of a batch in flight together, no cache of its own."""

    slowness = 4
    forks = False

    def open(self):
        import tensorstore

        def array(name: str):
            path = str(self.folder / "targets.zarr" / name)
            store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
            return tensorstore.open(store, open=True, read=True).result()

        return {name: array(name) for name in self.fields}

    def fill(self, rows, out):
        numbers = rows.tolist()
        futures = {name: [self.handle[name][row].read() for row in numbers] for name in out}
        for name, values in out.items():
            for future, target in zip(futures[name], values, strict=True):
                target[...] = future.result()


class Memmap(Reader):
    """np.memmap of raw values, gathered straight into the batch."""

    def open(self):
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in FIELDS}

    def read(self, rows, out):
        for name, values in out.items():
            np.take(self.handle[name], rows, axis=0, out=values, mode="clip")  # 'raise' would copy twice


class Npz(Reader):
    slowness = 4

    def open(self):
        return str(self.folder)

    def read(self, rows, out):
        for position, row in enumerate(rows.tolist()):
            with np.load(f"{self.handle}/{row:07d}.npz") as file:
                for name, values in out.items():
                    values[position] = file[name]


class Lmdb(Stored):
    """One value an instance; its chunks are decoded from the mapping, without a copy."""

    def open(self):
        import lmdb

        environment = lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False)
        return environment, environment.begin(buffers=True)

    def fill(self, rows, out):
        transaction, head = self.handle[1], 4 * len(out)
        for position, row in enumerate(rows.tolist()):
            value = transaction.get(b"%08d" % row)
            begin = head
            for name, length in zip(out, np.frombuffer(value[:head], "<u4").tolist(), strict=True):
                _decompress(value[begin : begin + length], out[name][position])
                begin += length

    def close(self) -> None:
        if self._process == os.getpid():
            environment, transaction = self._handle
            transaction.abort()
            environment.close()
        super().close()


class Arrow(Stored):
    """Hugging Face datasets with the chunks as binary columns, a batch in one call."""

    def open(self):
        return _dataset(self.folder)

    def fill(self, rows, out):
        found = self.handle[rows.tolist()]
        for name, values in out.items():
            for blob, target in zip(found[name], values, strict=True):
                _decompress(blob, target)


class ArrowArrays(Reader):
    """Hugging Face datasets with array columns and its numpy format, a batch in one call."""

    slowness = 16

    def open(self):
        return _dataset(self.folder).with_format("numpy")

    def read(self, rows, out):
        found = self.handle[rows.tolist()]
        for name, values in out.items():
            values[...] = found[name]


def _dataset(folder: Path):
    import datasets

    return datasets.load_from_disk(str(folder / "dataset"))


class Litdata(Stored):
    """litData by row number, the chunks as bytes."""

    slowness = 16

    def open(self):
        from litdata import StreamingDataset

        return StreamingDataset(str(self.folder))

    def fill(self, rows, out):
        for position, row in enumerate(rows.tolist()):
            found = self.handle[row]
            for name, values in out.items():
                self.take(found[name], values[position])

    def take(self, value, target: np.ndarray) -> None:
        _decompress(value, target)


class LitdataArrays(Litdata):
    """litData by row number, arrays by its own serialiser, the mask among them."""

    fields = FIELDS

    def take(self, value, target):
        target[...] = value


Writer = Callable[[Path, Path], None]
# name -> how it is written (None: our own files), how it is read
WAYS: dict[str, tuple[Writer | None, type[Reader]]] = {
    "sagecache": (None, Direct),
    "np.memmap, raw float16": (containers.write_memmap, Memmap),
    "LMDB, same chunks": (containers.write_lmdb, Lmdb),
    "LMDB, zstd bitshuffle": (containers.write_lmdb_zstd, Lmdb),
    "Arrow (datasets), same chunks": (containers.write_arrow, Arrow),
    "Arrow (datasets), arrays": (containers.write_arrow_arrays, ArrowArrays),
    "litData, same chunks": (containers.write_litdata, Litdata),
    "litData, arrays": (containers.write_litdata_arrays, LitdataArrays),
    "one .npz an image": (containers.write_npz, Npz),
    "tensorstore, same files": (None, TensorStore),
    "zarrs pipeline, same files": (None, ZarrsPipeline),
    "zarr-python, same files": (None, ZarrPython),
}


def build(
    folder: Path, store: Path, names: Sequence[str] = tuple(WAYS)
) -> tuple[dict[str, Reader], list[str]]:
    """Readers of the named ways, each checked against the store; and what could not be had, with why.

    Containers are written below folder where they are not there yet.
    """
    found, absent, spec = {}, [], spec_of(store)
    for name in names:
        write, kind = WAYS[name]
        own = store if write is None else folder / write.__name__.removeprefix("write_")
        try:
            if not own.exists():
                write(own, store)
                containers.settle(own)
            reader = kind(own, memmap_spec(spec) if kind is Memmap else spec)
            reader.row(0)
        except ImportError as error:
            absent.append(f"{name}: {error}")
            continue
        check(name, reader, store)
        reader.close()
        found[name] = reader
    return found, absent


def memmap_spec(spec: Spec) -> Spec:
    return spec | {"depth": (np.dtype(np.float16), spec["depth"][1])}


def check(name: str, reader: Reader, store: Path) -> None:
    """Raise ValueError unless a reader gives the store's own values; those of the memory map in float16."""
    oracle = StoreReader(store)
    for row in (0, len(oracle) // 2, len(oracle) - 1):
        expected = oracle.read(*oracle.ids[row].tolist())
        if isinstance(reader, Memmap):
            expected = containers.raw_row(expected)
        found = reader.row(row)
        for field in FIELDS:
            if not np.array_equal(found[field], expected[field]):
                raise ValueError(f"{name}: row {row} differs in {field}")
