"""Does a store still hold what was written? Files against their records, chunks against their checksums."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import growth, journal, layout
from sagecache.store.arrays import Column, Field
from sagecache.store.chunk_index import INDEX, index_bytes
from sagecache.store.files import sizes
from sagecache.store.fingerprint import digest, sha256
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
    sealed = _seal_problems(root, manifest)
    problems = [one for one in sealed if one.file == layout.MANIFEST] + _growth_problems(root)
    problems += [
        Problem(name, message)
        for name, (size, expected) in manifest["files"].items()
        if (message := _file_problem(root / name, size, expected))
    ]
    problems = problems or _manifest_problems(root, manifest)
    if problems:
        return problems  # without sound metadata and plan the rest cannot be judged
    problems = sealed + _shard_problems(root, manifest, progress)
    return problems or _index_problems(root, manifest)


def _file_problem(path: Path, size: int, expected: str) -> str | None:
    if not path.is_file():
        return "missing"
    data = path.read_bytes()
    if len(data) != size:
        return f"{len(data)} bytes, {size} were written"
    return None if sha256(data) == expected else "sha256 differs from the record"


def _seal_problems(root: Path, manifest: dict) -> list[Problem]:
    """complete.json, if there, against the files whose hashes it holds."""
    complete, path = root / layout.COMPLETE, root / journal.FINISHED
    if not complete.exists():
        return []
    identity = manifest["identity"]
    expected = layout.seal(
        (root / layout.MANIFEST).read_bytes(),
        path.read_bytes() if path.exists() else None,
        identity["plan"]["instances"],
        identity["shard_size"],
    )
    try:
        faults = layout.seal_faults(json.loads(complete.read_bytes()), expected)
    except ValueError as error:
        faults = {layout.COMPLETE: f"damaged ({error})"}
    return [Problem(file, message) for file, message in faults.items()]


def _growth_problems(root: Path) -> list[Problem]:
    try:
        growth.begun(root)
    except SagecacheError as error:
        return [Problem(growth.GROWING, error.message)]
    return []


def _manifest_problems(root: Path, manifest: dict) -> list[Problem]:
    """What the manifest says twice, or says of files that are as it records them."""
    identity, group, pool = manifest["identity"], root / layout.GROUP, open_pool(root)
    arrays = {name: Field(group / name, pool) for name in identity["fields"]}
    told = {
        name: {"dtype": array.dtype.name, "encoding": array.attributes.get("encoding")}
        for name, array in arrays.items()
    }
    try:
        about = json.loads((group / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Problem(f"{layout.GROUP}/zarr.json", f"damaged ({type(error).__name__}: {error})")]
    agree = {
        "fingerprint_sha256": manifest["fingerprint_sha256"] == digest(identity["fingerprint"]),
        "fingerprint, size or attributes": about == layout.group_attributes(identity, manifest["attributes"]),
        "plan": identity["plan"] == layout.plan_identity(layout.read_plan(root)),
        "fields": all(told[name].items() <= field.items() for name, field in identity["fields"].items()),
        "shard_size": all(array.file_rows == identity["shard_size"] for array in arrays.values()),
    }
    return [
        Problem(layout.MANIFEST, f"its {name} is not that of the files") for name in agree if not agree[name]
    ]


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
