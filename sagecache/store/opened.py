"""What a process holds of a store once it has read something, and whether that still is the store.

A store may be made anew, mended or grown while a training reads it. Files are opened as they are needed, so
ids and index of one store must never meet the shards of another: who reads asks ``changed`` afterwards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import journal, layout
from sagecache.store.arrays import Column, Field
from sagecache.store.chunk_index import map_index
from sagecache.store.codec import require_fast_checksum
from sagecache.store.files import is_remote, open_root, sizes
from sagecache.store.fingerprint import sha256
from sagecache.store.growth import GROWING
from sagecache.store.ids import IdIndex
from sagecache.store.pools import Pool, open_file, open_pool
from sagecache.store.shard import shard_count
from sagecache.store.spec import NOT_DONE

_DEFAULT_COMMAND = "sagecache precompute geo"


@dataclass(frozen=True)
class Kept:
    """Where shards of stores in object stores are kept, and how many bytes of them."""

    folder: Path
    limit: int


class Mark(NamedTuple):
    """By what a store is known again: identity of its manifest; done: which shards were, None for all;
    folder: device and number, None for any; ids: its rows, None where they need not be compared."""

    identity: dict
    done: np.ndarray | None
    folder: tuple | None
    ids: np.ndarray | None


class OpenedStore:
    """Metadata, arrays, ids of one state of a store. Raises SagecacheError where there is none to read."""

    def __init__(self, root: Path, max_open_files: int | None, partial: bool, kept: Kept | None) -> None:
        require_fast_checksum()
        self.process = os.getpid()
        root = self.root = open_root(str(root))  # in this process: connections don't live through a fork
        self._seen = _state(root)  # before anything is read: what changes after this is told
        self._folder, self._sound = self._hold(root), -1
        self.manifest = _manifest(root)
        self.complete = (root / layout.COMPLETE).exists()
        if not self.complete and not partial:
            raise SagecacheError(
                "the store is not complete",
                file=root,
                fix=f"Run '{command(self.manifest)}' again: it continues with what is missing.",
            )
        group, pool = root / layout.GROUP, open_pool(root, max_open_files)
        self.pool = self._keeping(root, kept) or pool  # of fields: the other arrays are read once
        self.fields = tuple(self.manifest["identity"]["fields"])
        index = map_index(root, self.fields) if self.complete else {}
        self.arrays = {name: Field(group / name, self.pool, index.get(name)) for name in self.fields}
        small = ["depth_range"] if (group / "depth_range").exists() else []
        self.columns = {name: Column(group / name, pool) for name in (*small, "status", "target_from_image")}
        self.image_sha256, self.bbox = (Column(group / name, pool) for name in ("image_sha256", "bbox"))
        ids = Column(group / "ids", pool).read_all()
        self.ids, self.index = ids, IdIndex(ids)
        self.ids.flags.writeable = False
        self.shard_size = self.manifest["identity"]["shard_size"]
        shards = shard_count(len(ids), self.shard_size)
        self.done = None if self.complete else _done_shards(root, shards)

    def _hold(self, root: Path) -> tuple | None:
        """Device and number of the folder, which no other folder can have while it is held open."""
        if is_remote(root) or not root.is_dir():
            return None
        self._held = open_file(str(root))
        found = os.fstat(self._held.descriptor)
        return found.st_dev, found.st_ino

    def changed(self) -> bool:
        """Whether the store was made anew, mended or grown, or is about to be, since it was opened.

        Asks the files only where something was opened that no answer of False covers yet.
        """
        opened = self.pool.opened
        if opened != self._sound and not self.moved():
            self._sound = opened
        return opened != self._sound

    def moved(self) -> bool:
        """As ``changed``, and asks the files in any case."""
        return _state(self.root) != self._seen

    @property
    def mark(self) -> Mark:
        return Mark(self.manifest["identity"], self.done, self._folder, self.ids)

    def follows(self, old: Mark) -> bool:
        """Whether this is the store that old was, mended or grown: the rows of old are the same here."""
        mine, theirs = {**self.manifest["identity"]}, {**old.identity}
        plan, before = mine.pop("plan"), theirs.pop("plan")
        grown = plan["instances"] > before["instances"] and plan["size"] == before["size"]
        return (
            old.folder in (None, self._folder)
            and mine == theirs
            and (grown or plan == before)
            and (old.ids is None or np.array_equal(self.ids[: len(old.ids)], old.ids))
        )

    def trust(self, old: Mark) -> None:
        """Another run is at work: shards that old has stay readable until they are made again."""
        if self.done is not None:
            before = shard_count(old.identity["plan"]["instances"], self.shard_size)
            self.done[:before] |= True if old.done is None else old.done

    def _keeping(self, root: Path, kept: Kept | None) -> Pool | None:
        if kept is None or not self.complete or not is_remote(root):
            return None
        from sagecache.store.remote import RemotePool, ShardCache

        state = sha256((root / layout.COMPLETE).read_bytes())[:16]
        return RemotePool(root.fs, ShardCache(root.fs, kept.folder, state, kept.limit))

    def status(self, rows: np.ndarray) -> np.ndarray:
        """Status (B,) of rows (B,); of shards that are not done too."""
        if self.done is None:
            return self.columns["status"].take(rows)
        status, there = np.full(len(rows), NOT_DONE, np.uint8), self.done[rows // self.shard_size]
        status[there] = self.columns["status"].take(rows[there])
        return status


def command(manifest: dict) -> str:
    """What makes the store, or more of it."""
    return manifest["attributes"].get("command", _DEFAULT_COMMAND)


def _state(root: Path) -> tuple:
    """What differs after every change. Writers replace or remove these files before the first shard and at
    the end; between, a shard's status goes before its other files change, and comes after them."""
    found = [_version(root / name) for name in (layout.MANIFEST, layout.COMPLETE, GROWING)]
    if found[1] is None and not is_remote(root):
        found.append(_version(root / layout.GROUP / "status" / "c"))
    return tuple(found)


def _version(path: Path) -> tuple | str | None:
    """Of a file or a folder; None where there is none."""
    try:
        if is_remote(path):
            return sha256(path.read_bytes())
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _manifest(root: Path) -> dict:
    content = layout.read_manifest(root)
    if content is None:
        raise SagecacheError("there is no target store", file=root, fix=f"Make it with '{_DEFAULT_COMMAND}'.")
    return content


def _done_shards(root: Path, count: int) -> np.ndarray:
    """(count,) bool: which shards are done."""
    records, group = journal.read_all(root), root / layout.GROUP
    known = sizes(group)
    return np.array([journal.current(records.get(k, []), group, known) is not None for k in range(count)])
