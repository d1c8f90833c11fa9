"""Does a store still hold what was written? Files against their records, chunks against their checksums."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import journal, layout
from sagecache.store.arrays import Column, Field
from sagecache.store.chunk_index import INDEX, index_bytes
from sagecache.store.files import sizes
from sagecache.store.fingerprint import sha256
from sagecache.store.pools import open_pool
from sagecache.store.shard import shard_count, shard_rows


@dataclass(frozen=True)
class Problem:
    """A file that is not as recorded. shard is None for metadata; ids are the instances it takes away."""

    file: str
    message: str
    shard: int | None = None
    ids: tuple[tuple[int, int], ...] = ()


def verify(root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Problem]:
    """All problems of the store in root. Raises SagecacheError where there is no readable manifest.

    progress: called with the shards read and all of them.
    """
    manifest = layout.read_manifest(root)
    if manifest is None:
        raise SagecacheError("there is no target store", file=root)
    problems = [
        Problem(name, message)
        for name, (size, expected) in manifest["files"].items()
        if (message := _file_problem(root / name, size, expected))
    ]
    if problems:
        return problems  # without sound metadata and plan the rest cannot be judged
    problems = _journal_problems(root) + _shard_problems(root, manifest, progress)
    return problems or _index_problems(root, manifest)


def _file_problem(path: Path, size: int, expected: str) -> str | None:
    if not path.is_file():
        return "missing"
    data = path.read_bytes()
    if len(data) != size:
        return f"{len(data)} bytes, {size} were written"
    return None if sha256(data) == expected else "sha256 differs from the record"


def _journal_problems(root: Path) -> list[Problem]:
    complete = root / layout.COMPLETE
    if not complete.exists():
        return []
    path = root / journal.FINISHED
    try:
        expected = json.loads(complete.read_bytes())["journal_sha256"]
    except (ValueError, KeyError) as error:
        return [Problem(layout.COMPLETE, f"damaged ({error})")]
    found = sha256(path.read_bytes()) if path.exists() else None
    return [] if found == expected else [Problem(journal.FINISHED, "not the journal that was completed")]


def _index_problems(root: Path, manifest: dict) -> list[Problem]:
    """Of a store whose shards are sound."""
    path, pool = root / INDEX, open_pool(root)
    if not (root / layout.COMPLETE).exists():
        return []
    fields = {name: Field(root / layout.GROUP / name, pool) for name in manifest["identity"]["fields"]}
    if path.is_file() and path.read_bytes() == index_bytes(fields):
        return []
    return [Problem(INDEX, "missing, or not what the shards say; readers do without it")]


def _shard_problems(root: Path, manifest: dict, progress: Callable[[int, int], None]) -> list[Problem]:
    group, identity = root / layout.GROUP, manifest["identity"]
    pool = open_pool(root)
    ids = Column(group / "ids", pool).read_all()
    fields = {name: Field(group / name, pool) for name in identity["fields"]}
    records, known, problems = journal.read_all(root), sizes(group), []
    shards = shard_count(len(ids), identity["shard_size"])
    for k in range(shards):
        progress(k, shards)
        rows = shard_rows(k, len(ids), identity["shard_size"])
        lost = tuple(tuple(pair) for pair in ids[rows.start : rows.stop].tolist())
        if k not in records:
            problems.append(Problem(layout.GROUP, "not computed", k, lost))
            continue
        record = journal.current(records[k], group, known, verify=True) or records[k][-1]
        for name, (size, expected) in record.files.items():
            message = _file_problem(group / name, size, expected)
            if message:
                problems.append(Problem(f"{layout.GROUP}/{name}", message, k, lost))
                continue
            array = fields.get(name.split("/")[0])
            if array is not None:
                problems += _chunk_problems(array, f"{layout.GROUP}/{name}", k, rows, ids)
    progress(shards, shards)
    return problems


def _chunk_problems(array: Field, name: str, shard: int, rows: range, ids: np.ndarray) -> list[Problem]:
    """Chunks that do not decode although the file is as recorded: a fault of the writer, not of the disk."""
    out, problems = np.empty(array.shape[1:], array.dtype), []
    for row in rows:
        try:
            array.read_into(row, out)
        except SagecacheError as error:
            problems.append(Problem(name, error.message, shard, (tuple(ids[row].tolist()),)))
    return problems
