"""Reading targets by image and instance, for training: lazy, picklable, safe under fork, spawn and threads.

A reader pickles as its path and options and opens its files in whichever process first reads. Every
chunk's crc32c is tested. What was never computed, what failed and what is damaged raises; nothing
ever reads as zeros. Needs numpy, numcodecs and google-crc32c; no zarr, no torch.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import journal, layout, verification
from sagecache.store.arrays import Column, DamagedChunk, Field
from sagecache.store.chunk_index import map_index
from sagecache.store.codec import mask_of_depth, require_fast_checksum
from sagecache.store.files import is_remote, open_root, sizes
from sagecache.store.fingerprint import sha256
from sagecache.store.ids import IdIndex
from sagecache.store.pools import Pool, open_pool
from sagecache.store.shard import shard_count
from sagecache.store.spec import NOT_DONE, OK, STATUS_TEXT

_DEFAULT_COMMAND = "sagecache precompute geo"


@dataclass(frozen=True)
class Kept:
    """Where shards of stores in object stores are kept, and how many bytes of them."""

    folder: Path
    limit: int


class _Opened:
    """What a process holds once it has read something: metadata, arrays, ids."""

    def __init__(self, root: Path, max_open_files: int | None, partial: bool, kept: Kept | None) -> None:
        require_fast_checksum()
        self.process = os.getpid()
        root = open_root(str(root))  # in this process: connections don't live through a fork
        self.manifest = _manifest(root)
        self.complete = (root / layout.COMPLETE).exists()
        if not self.complete and not partial:
            raise SagecacheError(
                "the store is not complete",
                file=root,
                fix=f"Run '{_command(self.manifest)}' again: it continues with what is missing.",
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


@dataclass(frozen=True)
class Failure:
    """An instance without targets."""

    image_id: int
    instance: int
    status: int

    @property
    def reason(self) -> str:
        return STATUS_TEXT[self.status]


class StoreReader:
    """Targets of one store. Nothing is opened before the first use.

    root: the store's folder, or its URL in an object store. partial=True also opens a store that is not
    finished; instances not yet computed raise when read. max_open_files bounds the descriptors held by one
    process; by default a quarter of what it may have. kept: where shards of a store in an object store are
    kept on this machine's disk.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        partial: bool = False,
        max_open_files: int | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.root, self._partial, self._max_open_files, self._kept = root, partial, max_open_files, kept
        self.root = open_root(root)
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict:
        return {
            "root": self.root if isinstance(self.root, Path) else str(self.root),
            "partial": self._partial,
            "max_open_files": self._max_open_files,
            "kept": self._kept,
        }

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, key: tuple[int, int]) -> bool:
        """Whether (image_id, instance) has targets that can be read."""
        row = self._state.index.find(np.array([key], np.int64))
        return bool(row[0] >= 0 and self._state.status(row)[0] == OK)

    @property
    def ids(self) -> np.ndarray:
        """(N, 2) int64: image_id, instance; one row an instance, those without targets included."""
        return self._state.ids

    @property
    def status(self) -> np.ndarray:
        """(N,) uint8, a key of ``spec.STATUS_TEXT`` for each row of ids."""
        return self._state.status(np.arange(len(self)))

    @property
    def fields(self) -> tuple[str, ...]:
        return self._state.fields

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the target maps."""
        return tuple(self._state.manifest["identity"]["plan"]["size"])

    @property
    def fingerprint(self) -> dict:
        """What decided the numbers; compare with ``fingerprint.diff``."""
        return self._state.manifest["identity"]["fingerprint"]

    @property
    def fingerprint_sha256(self) -> str:
        return self._state.manifest["fingerprint_sha256"]

    @property
    def attributes(self) -> dict:
        """What the maker of the store noted: split, crop rule, teacher, the command that makes it."""
        return self._state.manifest["attributes"]

    @property
    def complete(self) -> bool:
        return self._state.complete

    def field_attributes(self, name: str) -> dict:
        """Attributes of one array: encoding, formula, kind, unit, frame."""
        return self._state.arrays[name].attributes

    def read(self, image_id: int, instance: int) -> dict[str, np.ndarray]:
        """Targets of one instance in stored dtypes, each array freshly made.

        Those that the store has of depth (h, w) uint16, depth_range (2,) float32, normal (2, h, w) uint8,
        mask (h, w) bool; status () uint8; target_from_image (3, 3) float64. Raises SagecacheError where the
        instance has no targets.
        """
        return {name: values[0] for name, values in self.read_many([(image_id, instance)]).items()}

    def read_many(
        self, ids: Sequence[tuple[int, int]], out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Targets of several instances, as ``read`` with a leading axis B.

        out: arrays to fill instead of new ones (for a batch in shared memory), keys, dtypes and shapes as
        ``allocate(B)`` gives them, or some of them. Where depth and mask are both wanted, the mask is where
        depth has a value, as the format says, and its chunks are not read.
        """
        state, rows = self._state, self._require(ids)
        batch = self.allocate(len(rows)) if out is None else dict(out)
        try:
            wanted = [name for name in batch if name in state.arrays]
            if derived := {"depth", "mask"} <= set(wanted):
                wanted.remove("mask")
            spans = {name: state.arrays[name].locate_many(rows) for name in wanted}
            read = state.pool.together(list(itertools.chain(*spans.values())))
            for name in wanted:
                state.arrays[name].read_many_into(rows, batch[name], spans[name], read)
            for name in batch.keys() & state.columns.keys():
                batch[name][...] = state.columns[name].take(rows)
            if derived:
                mask_of_depth(batch["depth"], out=batch["mask"])
        except DamagedChunk as error:
            raise self._damaged(error) from error
        return batch

    def image_sha256(self, image_id: int, instance: int) -> str:
        """Hash of the image file that these targets were made from, in hex."""
        return self._state.image_sha256.take(self._require([(image_id, instance)])).tobytes().hex()

    def boxes(self, ids: Sequence[tuple[int, int]]) -> np.ndarray:
        """Boxes (B, 4) float64 xywh in image pixels that the targets of these instances were made for."""
        return self._state.bbox.take(self._require(ids))

    def locate(self, image_id: int, instance: int) -> dict[str, tuple[str, int, int]]:
        """Where the bytes of an instance lie: field -> (file, offset, length)."""
        row = int(self._require([(image_id, instance)])[0])
        return {name: self._state.arrays[name].location(row) for name in self._state.fields}

    def allocate(self, count: int) -> dict[str, np.ndarray]:
        """Empty arrays for count instances, in the order in which they are read."""
        arrays = self._state.arrays | self._state.columns
        return {name: np.empty((count, *array.shape[1:]), array.dtype) for name, array in arrays.items()}

    def failures(self) -> list[Failure]:
        """Instances without targets, with the reason; those not computed yet included."""
        status = self.status
        rows = np.flatnonzero(status != OK)
        return [Failure(*self.ids[row].tolist(), int(status[row])) for row in rows]

    def verify(self) -> list[verification.Problem]:
        """Every checksum of every file and every chunk; an empty list means that the store is sound."""
        return verification.verify(self.root)

    # ------------------------------------------------------------------------------------------ inside
    @property
    def _state(self) -> _Opened:
        if self._opened is None or self._opened.process != os.getpid():  # after a fork, start afresh
            self._opened = _Opened(self.root, self._max_open_files, self._partial, self._kept)
        return self._opened

    def _require(self, ids: Sequence[tuple[int, int]]) -> np.ndarray:
        """Rows (B,) of instances that have targets; SagecacheError for the first that has none."""
        state, wanted = self._state, np.asarray(ids, np.int64).reshape(-1, 2)
        rows = state.index.find(wanted)
        status = state.status(np.maximum(rows, 0))
        lacking = (rows < 0) | (status != OK)
        if not lacking.any():
            return rows
        first = int(lacking.argmax())
        unknown, (image_id, instance) = rows[first] < 0, wanted[first].tolist()
        reason = "it is not in the store's plan" if unknown else STATUS_TEXT[int(status[first])]
        raise SagecacheError(
            f"no targets for image_id {image_id}, instance {instance}: {reason}",
            file=self.root,
            fix=_fix(int(status[first]), unknown, _command(state.manifest)),
        )

    def _damaged(self, error: DamagedChunk) -> SagecacheError:
        image_id, instance = self._state.ids[error.chunk].tolist()
        run = "Run" if error.lost else "Delete this file and run"
        return SagecacheError(
            error.message,
            file=error.file,
            record=f"image_id {image_id}, instance {instance}",
            fix=f"{run} '{_command(self._state.manifest)}': it makes this shard again.",
        )


def _fix(status: int, unknown: bool, command: str) -> str:
    if unknown or status == NOT_DONE:
        return f"Run '{command}'."
    return f"Mend the input and run '{command} --force', or leave the instance out (on_missing='skip')."


def _command(manifest: dict) -> str:
    return manifest["attributes"].get("command", _DEFAULT_COMMAND)


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
