"""The same targets in other containers: how each is written, and what a row in it is.

``blobs`` are the chunks of our own store (blosc lz4 and a checksum), so that what is compared is the
container and not the codec: of depth and normals, since depth stands just where the mask is true. ``raw`` is
what people put there without a codec of their own, the mask included. Nothing here knows how to read: see
``readers``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numcodecs.blosc
import numpy as np

from sagecache.store import StoreReader
from sagecache.store.codec import decode_depth

FIELDS = ("depth", "normal", "mask")
CHUNKED = FIELDS[:2]  # whose chunks are read; the mask follows from depth
Row = Mapping[str, np.ndarray]


def stored_rows(root: Path) -> Iterator[Row]:
    """depth uint16, normal uint8 (2, ...), mask bool of each instance of a store, in its order."""
    reader = StoreReader(root)
    for key in reader.ids.tolist():
        yield reader.read(*key)


def chunks(root: Path, names: Sequence[str] = CHUNKED) -> dict[str, list[bytes]]:
    """field -> the encoded chunks of a store, in its order, each with its checksum."""
    reader, found = StoreReader(root), {name: [] for name in names}
    for key in reader.ids.tolist():
        places = reader.locate(*key)
        for name in names:
            path, offset, length = places[name]
            with open(path, "rb") as file:
                file.seek(offset)
                found[name].append(file.read(length))
    return found


def write_memmap(folder: Path, root: Path) -> None:
    """One .npy a field: depth decoded to float16, normals as their two bytes, masks: 246 KB at 256x192."""
    folder.mkdir(parents=True)
    arrays = {}
    for index, row in enumerate(stored_rows(root)):
        for name, values in raw_row(row).items():
            if name not in arrays:
                shape = (len(StoreReader(root)), *values.shape)
                arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
            arrays[name][index] = values
    for array in arrays.values():
        array.flush()


def raw_row(row: Row) -> dict[str, np.ndarray]:
    """A row as the memory map holds it."""
    depth = np.nan_to_num(decode_depth(row["depth"], row["depth_range"])).astype(np.float16)
    return {"depth": depth, "normal": row["normal"], "mask": row["mask"]}


def write_npz(folder: Path, root: Path) -> None:
    """One uncompressed .npz an instance, stored dtypes."""
    folder.mkdir(parents=True)
    for index, row in enumerate(stored_rows(root)):
        np.savez(folder / f"{index:07d}.npz", **{name: row[name] for name in FIELDS})


def write_lmdb(folder: Path, root: Path) -> None:
    """Key: the row's number; value: the lengths of the chunks, then the chunks."""
    _write_lmdb(folder, zip(*chunks(root).values(), strict=True))


def write_lmdb_zstd(folder: Path, root: Path) -> None:
    """The same with zstd and bit shuffle instead of lz4, for the densest chunks."""

    def packed(values: np.ndarray) -> bytes:
        return numcodecs.blosc.compress(values, b"zstd", 1, numcodecs.blosc.BITSHUFFLE) + bytes(4)

    _write_lmdb(folder, ([packed(row[name]) for name in CHUNKED] for row in stored_rows(root)))


def _write_lmdb(folder: Path, rows) -> None:
    import lmdb

    folder.mkdir(parents=True)
    environment = lmdb.open(str(folder), map_size=1 << 36)
    with environment.begin(write=True) as transaction:
        for index, blobs in enumerate(rows):
            head = np.array([len(blob) for blob in blobs], "<u4").tobytes()
            transaction.put(b"%08d" % index, head + b"".join(blobs))
    environment.close()


def write_arrow(folder: Path, root: Path) -> None:
    """Hugging Face datasets: a binary column a field, the chunks of our store in it."""
    import datasets

    features = datasets.Features({name: datasets.Value("large_binary") for name in CHUNKED})
    _write_dataset(folder, chunks(root), features)


def write_arrow_arrays(folder: Path, root: Path) -> None:
    """Hugging Face datasets: an array column a field, uncompressed."""
    import datasets

    columns = {name: [] for name in FIELDS}
    for row in stored_rows(root):
        for name in FIELDS:
            columns[name].append(row[name])
    kinds = {2: datasets.Array2D, 3: datasets.Array3D}
    features = datasets.Features(
        {name: kinds[one[0].ndim](one[0].shape, one[0].dtype.name) for name, one in columns.items()}
    )
    _write_dataset(folder, columns, features)


def _write_dataset(folder: Path, columns: dict, features) -> None:
    import datasets

    count = len(columns["depth"])
    cache = folder / "cache"

    def generate():
        for index in range(count):
            yield {name: values[index] for name, values in columns.items()}

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_generator(generate, features=features, cache_dir=str(cache))
    made.save_to_disk(str(folder / "dataset"))
    shutil.rmtree(cache)


def write_litdata(folder: Path, root: Path) -> None:
    """litData's chunk files, the chunks of our store as bytes."""
    found = chunks(root)
    rows = zip(*found.values(), strict=True)
    _write_litdata(folder, (dict(zip(found, blobs, strict=True)) for blobs in rows))


def write_litdata_arrays(folder: Path, root: Path) -> None:
    """litData's chunk files, numpy arrays by its own serialiser."""
    _write_litdata(folder, ({name: row[name] for name in FIELDS} for row in stored_rows(root)))


def _write_litdata(folder: Path, rows) -> None:
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir(parents=True)
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for index, row in enumerate(rows):
        writer[index] = row
    writer.done()
    writer.merge()


# --------------------------------------------------------------------------------------------- on disk
def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def settle(folder: Path) -> None:
    """fsync all files below a folder: a dirty page can't be dropped."""
    for path in files_below(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def drop_pages(folder: Path) -> None:
    """Ask the kernel to forget the cached pages of our own files; pages that are mapped somewhere stay."""
    for path in files_below(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
