"""Writing a store so that a kill at any moment loses at most the shard in hand, and never leaves a wrong one.

Order: manifest, then plan and metadata, then shard by shard its files (each whole or not there), then the
shard's journal line; last ``complete.json``. Resuming redoes every shard without a line or whose files have
another size. The finished folder is the same, byte for byte, however often the work was cut off.

A store whose split has grown takes the new instances behind its own (``growth``); the rows that stood in its
last shard are copied, not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import growth, journal, layout, shard
from sagecache.store.arrays import Field, read_encoded
from sagecache.store.chunk_index import INDEX, write_index
from sagecache.store.codec import EncodedRow, require_fast_checksum, with_checksum
from sagecache.store.files import (
    move_folder,
    open_root,
    remaining_files,
    remove_leftovers,
    sizes,
    sync_folder,
    unused_name,
    write_whole,
)
from sagecache.store.fingerprint import canonical, describe, diff, sha256
from sagecache.store.lock import FolderLock, NoLock, take_lock
from sagecache.store.pools import open_pool
from sagecache.store.spec import NOT_DONE, PLAN_ARRAYS, StorePlan, TargetField


class StoreWriter:
    """Made by ``open``, used in a ``with``: ``commit`` each shard of ``missing()``, then ``finish()``."""

    def __init__(
        self,
        root: Path,
        plan: StorePlan,
        fields: Sequence[TargetField],
        shard_size: int,
        lock: FolderLock | NoLock,
        shared: bool,
    ) -> None:
        self.root, self.plan, self.fields, self.shard_size = root, plan, tuple(fields), shard_size
        self.group = root / layout.GROUP
        self._lock, self._shared, self._journal = lock, shared, journal.JournalWriter(root)
        self._records = journal.read_all(root)  # those of former runs
        self._kept: dict[int, list[EncodedRow]] = {}

    @classmethod
    def open(
        cls,
        root: str | Path,
        plan: StorePlan,
        fields: Sequence[TargetField],
        fingerprint: Mapping,
        attributes: Mapping,
        shard_size: int | None = None,
        *,
        shared: bool = False,
        waiting: Callable[[], None] | None = None,
    ) -> StoreWriter:
        """Make a store, or take up one that was left unfinished.

        fingerprint: what decides the numbers (see ``fingerprint``); attributes: what else a reader may like
        to know (split, crop rule, 'command' that makes the store), kept from the first run. shard_size: None
        for that of the store that is there, or ``default_shard_size``. shared: other writers that own other
        shards may be at work too. waiting: called once where another run is at work, whose end is then waited
        for; without it that is an error. Raises SagecacheError where the folder holds
        another store (naming the parts that differ), something else, or a writer at work.
        """
        root = open_root(root)
        require_fast_checksum()
        root.mkdir(parents=True, exist_ok=True)
        lock = take_lock(root, shared, waiting)
        try:
            if lock.alone:
                remove_leftovers(root)
                journal.cut_torn_tails(root)
            shard_size = shard_size or _usual_shard_size(root, plan)
            plan = _with_rows_there(root, plan, fields, fingerprint, shard_size)
            identity = layout.identity(plan, fields, fingerprint, shard_size)
            _write_metadata(root, plan, fields, identity, attributes)
            if shared:
                lock.share()
        except BaseException:
            lock.release()
            raise
        return cls(root, plan, fields, shard_size, lock, shared)

    @property
    def shards(self) -> int:
        return shard.shard_count(len(self.plan), self.shard_size)

    def rows(self, shard_index: int) -> range:
        """The plan's rows of one shard."""
        return shard.shard_rows(shard_index, len(self.plan), self.shard_size)

    def missing(self, verify: bool = False) -> list[int]:
        """Shards still to be made, in order; with verify also those whose files' checksums fail."""
        done = _rows_done(self.root, self.shards, verify)
        return [k for k in range(self.shards) if done[k] < len(self.rows(k))]

    def todo(self, shard_index: int) -> range:
        """The rows of a missing shard that are still to be made: all, or those behind what it held before."""
        return self.rows(shard_index)[len(self._rows_kept(shard_index)) :]

    def commit(self, shard_index: int, rows: Sequence[EncodedRow]) -> int:
        """Write all arrays of one shard, then its journal line; returns the bytes written.

        rows: those of ``todo``, in order.
        """
        expected = len(self.todo(shard_index))
        if len(rows) != expected or any(row.status == NOT_DONE for row in rows):
            raise ValueError(f"shard {shard_index} needs {expected} finished rows, got {len(rows)}")
        rows = [*self._rows_kept(shard_index), *rows]
        _unseal(self.root)
        files = self._shard_files(shard_index, rows)
        status = shard.shard_key("status", shard_index, 1)
        if not self._rows_kept(shard_index):  # other numbers, perhaps: no reader may mix them with the old
            (self.group / status).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == status):
            write_whole(self.group / name, files[name])
        facts = {name: (len(data), sha256(data)) for name, data in files.items()}
        self._journal.append(journal.ShardRecord(shard_index, len(rows), facts))
        return sum(len(data) for data in files.values())

    def finish(self) -> bool:
        """Declare the store complete; waits for sharing writers that are about to do the same.

        False where sharing writers still have shards to make: the last one finishes. Raises SagecacheError
        where shards are missing and no other writer is to make them.
        """
        if self._shared and self.missing():
            return False
        self._lock.become_alone()
        missing = self.missing()
        if missing:
            raise SagecacheError(
                f"{len(missing)} of {self.shards} shards are missing, the first is shard {missing[0]}",
                file=self.root,
                fix="Run the same command again.",
            )
        remove_leftovers(self.root)
        records = journal.read_all(self.root)
        known = sizes(self.group)
        merged = journal.merge(
            self.root, [journal.current(records[k], self.group, known) for k in range(self.shards)]
        )
        pool = open_pool(self.root)
        write_index(self.root, {field.name: Field(self.group / field.name, pool) for field in self.fields})
        manifest = (self.root / layout.MANIFEST).read_bytes()
        data = shard.json_bytes(layout.seal(manifest, merged, len(self.plan), self.shard_size))
        path = self.root / layout.COMPLETE
        if not path.exists() or path.read_bytes() != data:
            write_whole(path, data)
        return True

    def close(self) -> None:
        self._journal.close()
        self._lock.release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _rows_kept(self, shard_index: int) -> list[EncodedRow]:
        """What a shard held before the store grew, read once; nothing where it can't be read.

        A kill may have left some of its files as they were and others with more rows: either has these.
        """
        if shard_index not in self._kept:
            count = max((record.rows for record in self._records.get(shard_index, [])), default=0)
            rows = self.rows(shard_index)
            try:
                kept = read_encoded(self.group, self.fields, rows[:count]) if 0 < count < len(rows) else []
            except SagecacheError:
                kept = []
            self._kept[shard_index] = kept
        return self._kept[shard_index]

    def _shard_files(self, shard_index: int, rows: Sequence[EncodedRow]) -> dict[str, bytes]:
        files = {}
        for field in self.fields:
            chunks = [row.chunks[field.name] for row in rows]
            key = shard.shard_key(field.name, shard_index, 1 + len(field.shape(self.plan.size)))
            files[key] = shard.shard_bytes(chunks, self.shard_size)
        for name, (dtype, shape, _, _) in layout.row_arrays(self.fields).items():
            values = np.zeros((self.shard_size, *shape), np.dtype(dtype).newbyteorder("<"))
            values[: len(rows)] = [getattr(row, name) for row in rows]
            files[shard.shard_key(name, shard_index, values.ndim)] = with_checksum(values.tobytes())
        return files


def pending(
    root: str | Path,
    plan: StorePlan,
    fields: Sequence[TargetField],
    fingerprint: Mapping,
    shard_size: int | None,
) -> int:
    """Instances that a run would make, without touching the disk. Raises as ``StoreWriter.open`` does."""
    root = open_root(root)
    shard_size = shard_size or _usual_shard_size(root, plan)
    plan = _with_rows_there(root, plan, fields, fingerprint, shard_size)
    return len(plan) - sum(_rows_done(root, shard.shard_count(len(plan), shard_size)))


def is_others_empty_start(root: str | Path, fingerprint: Mapping) -> bool:
    """Whether a run of another fingerprint failed here before its first shard: nothing would be lost."""
    root = open_root(root)
    try:
        known = layout.read_manifest(root)
    except SagecacheError:
        return False
    if known is None or layout.sealed_manifest(root) is not None or journal.read_all(root):
        return False
    held = sizes(root / layout.GROUP)
    if any(name.startswith("status/") and not name.endswith("zarr.json") for name in held):
        return False  # it has shards, and lost their journal
    return bool(diff(known["identity"]["fingerprint"], canonical(fingerprint)))


def set_aside(root: str | Path) -> Path | None:
    """Rename a store to ``<name>.replaced-<fingerprint>`` and return the new path; nothing is deleted.

    This is what --force does before it computes all anew; a damaged store is moved too. None where there is
    no store.
    """
    root = open_root(root)
    if not _is_store(root):
        return None
    lock = take_lock(root, shared=False)  # never under a writer's feet: held until it has its new name
    try:
        if not _is_store(root):
            return None  # another run has just done it
        target = unused_name(root.with_name(f"{root.name}.replaced-{_short_fingerprint(root)}"))
        move_folder(root, target)
        lock.moved(target)
    finally:
        lock.release()
    return target


def _is_store(root: Path) -> bool:
    return (root / layout.MANIFEST).exists() or (root / layout.GROUP).exists()


def _short_fingerprint(root: Path) -> str:
    try:
        return layout.read_manifest(root)["fingerprint_sha256"][:8]
    except (SagecacheError, TypeError, KeyError):  # damaged, absent, or of a newer format
        return "unknown"


def _unseal(root: Path) -> None:
    """Before anything of a finished store changes: it is not finished, and its index no longer holds."""
    for name in (layout.COMPLETE, INDEX):
        if (root / name).exists():
            (root / name).unlink(missing_ok=True)
            sync_folder(root)


def _usual_shard_size(root: Path, plan: StorePlan) -> int:
    known = layout.read_manifest(root)
    return known["identity"]["shard_size"] if known else shard.default_shard_size(plan.size)


def _with_rows_there(
    root: Path, plan: StorePlan, fields: Sequence[TargetField], fingerprint: Mapping, shard_size: int
) -> StorePlan:
    """The plan with the rows of the store in root before its own. Raises where that was made otherwise."""
    known = layout.read_manifest(root)
    if known is None:
        return plan
    old, new = known["identity"], layout.identity(plan, fields, fingerprint, shard_size)
    rows = {"instances": 0, **dict.fromkeys(PLAN_ARRAYS, "")}  # which rows: told by growth, by instance
    _refuse_other(root, {**old, "plan": old["plan"] | rows}, {**new, "plan": new["plan"] | rows})
    begun = growth.begun(root)
    if begun is None and old["plan"] == new["plan"]:
        return plan  # without reading the old one, so that a damaged one is mended
    return growth.grow(begun or layout.read_plan(root), plan, root)


def _write_metadata(root: Path, plan: StorePlan, fields, identity: dict, attributes: Mapping) -> None:
    """Write manifest and plan, or check that those there belong to this identity, mending what is damaged."""
    known = layout.read_manifest(root)
    if known is None:
        foreign = [path for path in remaining_files(root) if path.name != ".lock"]
        if foreign:
            raise SagecacheError(
                f"the folder is not empty and holds no store ({foreign[0].name})",
                file=root,
                fix="Choose another folder, or move this one away.",
            )
        files = layout.metadata_files(plan, fields, identity, attributes)
        known = layout.manifest(identity, attributes, files)
        write_whole(root / layout.MANIFEST, shard.json_bytes(known))
    else:
        files = layout.metadata_files(plan, fields, identity, known["attributes"])
        remade = layout.manifest(identity, known["attributes"], files)
        known = _as_sealed(root, known, remade)
        if known["identity"]["plan"] != identity["plan"]:
            growth.begin(root, plan)
            _unseal(root)
            known = remade
            write_whole(root / layout.MANIFEST, shard.json_bytes(known))
    for name, (size, expected) in known["files"].items():
        path = root / name
        if path.is_file() and path.stat().st_size == size and sha256(path.read_bytes()) == expected:
            continue
        data = files.get(name, b"")
        if (len(data), sha256(data)) != (size, expected):
            raise SagecacheError("the file is damaged and cannot be remade", file=path, fix=_FORCE)
        write_whole(path, data)
    growth.end(root)


def _as_sealed(root: Path, known: dict, remade: dict) -> dict:
    """The manifest that a finished store was completed with; damage is mended where it can be remade.

    Else the next complete.json would vouch for the damage.
    """
    expected, path = layout.sealed_manifest(root), root / layout.MANIFEST
    data, whole = path.read_bytes(), shard.json_bytes(remade)
    if expected is None or data == whole or sha256(data) == expected:  # whole: complete.json is damaged
        return known
    if sha256(whole) != expected:
        raise SagecacheError(
            "the manifest is not the one that the store was completed with",
            file=path,
            fix=f"Put back a copy of it; or, if you know that {layout.COMPLETE} is what is damaged, delete "
            "that and run the same command again; or --force: it sets the store aside and computes all anew.",
        )
    write_whole(path, whole)
    return remade


def _rows_done(root: Path, shards: int, verify: bool = False) -> list[int]:
    """How many rows of each shard are on disk, and told of in a journal."""
    records, group = journal.read_all(root), root / layout.GROUP
    known = sizes(group)
    found = (journal.current(records.get(k, []), group, known, verify) for k in range(shards))
    return [0 if record is None else record.rows for record in found]


_FORCE = (
    "Use the configuration that made it, or --force: it sets the old store aside under another name "
    "(nothing is deleted) and computes all anew."
)


def _refuse_other(root: Path, old: Mapping, new: Mapping) -> None:
    differences = diff(old, new)
    if differences:
        raise SagecacheError(
            f"the store was made from something else ({describe(differences)})", file=root, fix=_FORCE
        )
