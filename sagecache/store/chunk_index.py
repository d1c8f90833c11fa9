"""``index.npy``: where every chunk of every field lies, in one file that all readers map into memory.

A copy of the tables at the ends of the shards, so that the processes of a training share its pages and open
no shard to look something up. int64 (fields, files * S + files, 2): for each field, in the order of names,
the (offset, length) of every slot, -1 for unused ones, then for each file (crc32c of its slots, 0). Written
when a store is finished, removed before any shard changes. A reader that finds it missing or damaged asks the
shards.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sagecache.store.arrays import Field
from sagecache.store.codec import checksum
from sagecache.store.files import is_remote, write_whole

INDEX = "index.npy"


def index_bytes(fields: Mapping[str, Field]) -> bytes:
    """The file's content. Raises SagecacheError where a shard can't be read."""
    tables = []
    for name in sorted(fields):
        table = np.ascontiguousarray(fields[name].read_index(), "<i8")
        sums = [[checksum(part.tobytes()), 0] for part in table]
        tables.append(np.concatenate([table.reshape(-1, 2), np.array(sums, "<i8")]))
    buffer = io.BytesIO()
    np.save(buffer, np.stack(tables))
    return buffer.getvalue()


def write_index(root: Path, fields: Mapping[str, Field]) -> None:
    """Write the index, unless it stands there as it should."""
    path, data = root / INDEX, index_bytes(fields)
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)


def map_index(root: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Field -> its part of the mapped index; empty where there is none. What it says is for Field to test.

    From an object store it is read whole.
    """
    try:
        if is_remote(root):
            index = np.load(io.BytesIO((root / INDEX).read_bytes()))
        else:
            index = np.load(root / INDEX, mmap_mode="c")  # Field mends its own copy
    except Exception:  # numpy tells of a damaged header by EOFError, TokenError, SyntaxError and many more
        return {}
    if index.ndim != 3 or len(index) != len(names) or index.dtype != np.dtype("<i8"):
        return {}
    return dict(zip(sorted(names), index, strict=True))
