"""Reading targets by image and instance, for training: lazy, picklable, safe under fork, spawn and threads.

A reader pickles as its path and options and opens its files in whichever process first reads. Every
chunk's crc32c is tested. What was never computed, what failed and what is damaged raises; nothing
ever reads as zeros. Needs numpy, numcodecs and google-crc32c; no zarr, no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import journal, layout, verification
from sagecache.store.arrays import ArrayReader, FilePool
from sagecache.store.codec import require_fast_checksum
from sagecache.store.shard import shard_count, shard_rows
from sagecache.store.spec import NOT_DONE, OK, STATUS_TEXT

_DEFAULT_COMMAND = "sagecache precompute geo"


class _Opened:
    """What a process holds once it has read something: metadata, arrays, ids, small chunks already read."""

    def __init__(self, root: Path, max_open_files: int, partial: bool) -> None:
        require_fast_checksum()
        self.process = os.getpid()
        self.manifest = _manifest(root)
        self.complete = (root / layout.COMPLETE).exists()
        if not self.complete and not partial:
            raise SagecacheError(
                "the store is not complete",
                file=root,
                fix=f"Run '{_command(self.manifest)}' again: it continues with what is missing.",
            )
        group, pool = root / layout.GROUP, FilePool(max_open_files)
        self.fields = tuple(self.manifest["identity"]["fields"])
        small = ["status", "target_from_image", "ids", "image_sha256"]
        if (group / "depth_range").exists():
            small.append("depth_range")
        self.arrays = {name: ArrayReader(group / name, pool) for name in (*self.fields, *small)}
        self._columns = np.ascontiguousarray(self.arrays["ids"].read_all().T)  # searchsorted copies strided
        self.ids = self._columns.T
        self.ids.flags.writeable = False
        self.shard_size = self.manifest["identity"]["shard_size"]
        self.done = None if self.complete else _done_shards(root)
        self._chunks: dict[tuple[str, int], np.ndarray] = {}

    def small_row(self, name: str, row: int) -> np.ndarray:
        """One row of a small array; its chunk is kept."""
        array = self.arrays[name]
        number, offset = divmod(row, array.chunk_rows)
        chunk = self._chunks.get((name, number))
        if chunk is None:
            chunk = self._chunks[name, number] = array.read_chunk(number)
        return chunk[offset]

    def status(self, row: int) -> int:
        if self.done is not None and row // self.shard_size not in self.done:
            return NOT_DONE
        return int(self.small_row("status", row))

    def all_status(self) -> np.ndarray:
        status, array = np.full(len(self.ids), NOT_DONE, np.uint8), self.arrays["status"]
        shards = range(shard_count(len(status), self.shard_size))
        for k in shards if self.done is None else sorted(self.done):
            rows = shard_rows(k, len(status), self.shard_size)
            status[rows.start : rows.stop] = array.read_chunk(k)[: len(rows)]
        return status

    def find(self, image_id: int, instance: int) -> int | None:
        """Row of an id, or None: two bisections, since ids are sorted by image, then instance."""
        images, numbers = self._columns
        first, last = int(images.searchsorted(image_id)), int(images.searchsorted(image_id, "right"))
        row = first + int(numbers[first:last].searchsorted(instance))
        return row if row < last and numbers[row] == instance else None


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

    root: the store's folder. partial=True also opens a store that is not finished; instances not yet
    computed raise when read. max_open_files bounds the descriptors held by one process.
    """

    def __init__(self, root: str | Path, *, partial: bool = False, max_open_files: int = 128) -> None:
        self.root, self._partial, self._max_open_files = Path(root), partial, max_open_files
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict:
        return {"root": self.root, "partial": self._partial, "max_open_files": self._max_open_files}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, key: tuple[int, int]) -> bool:
        """Whether (image_id, instance) has targets that can be read."""
        row = self._state.find(*key)
        return row is not None and self._state.status(row) == OK

    @property
    def ids(self) -> np.ndarray:
        """(N, 2) int64: image_id, instance; sorted, one row an instance, those without targets included."""
        return self._state.ids

    @property
    def status(self) -> np.ndarray:
        """(N,) uint8, a key of ``spec.STATUS_TEXT`` for each row of ids."""
        return self._state.all_status()

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
        ``allocate(B)`` gives them.
        """
        rows = [self._require(image_id, instance) for image_id, instance in ids]
        state, batch = self._state, self.allocate(len(rows)) if out is None else dict(out)
        for position, row in enumerate(rows):
            for name, values in batch.items():
                if name not in state.fields:
                    values[position] = state.small_row(name, row)
                    continue
                try:
                    state.arrays[name].read_chunk_into(row, values[position])
                except SagecacheError as error:
                    raise self._damaged(error, row) from error
        return batch

    def image_sha256(self, image_id: int, instance: int) -> str:
        """Hash of the image file that these targets were made from, in hex."""
        return self._state.small_row("image_sha256", self._require(image_id, instance)).tobytes().hex()

    def locate(self, image_id: int, instance: int) -> dict[str, tuple[Path, int, int]]:
        """Where the bytes of an instance lie: field -> (file, offset, length)."""
        row = self._require(image_id, instance)
        return {name: self._state.arrays[name].location(row) for name in self._state.fields}

    def allocate(self, count: int) -> dict[str, np.ndarray]:
        """Empty arrays for count instances, in the order in which they are read."""
        state = self._state
        names = [
            *state.fields,
            *(n for n in ("depth_range", "status", "target_from_image") if n in state.arrays),
        ]
        return {
            name: np.empty((count, *state.arrays[name].shape[1:]), state.arrays[name].dtype) for name in names
        }

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
            self._opened = _Opened(self.root, self._max_open_files, self._partial)
        return self._opened

    def _require(self, image_id: int, instance: int) -> int:
        """Row of an instance that has targets; SagecacheError otherwise."""
        state = self._state
        row = state.find(image_id, instance)
        status = NOT_DONE if row is None else state.status(row)
        if status == OK:
            return row
        reason = "it is not in the store's plan" if row is None else STATUS_TEXT[status]
        raise SagecacheError(
            f"no targets for image_id {image_id}, instance {instance}: {reason}",
            file=self.root,
            fix=_fix(status, row is None, _command(state.manifest)),
        )

    def _damaged(self, error: SagecacheError, row: int) -> SagecacheError:
        image_id, instance = self._state.ids[row].tolist()
        run = "Delete this file and run" if Path(error.file).exists() else "Run"
        return SagecacheError(
            error.message,
            file=error.file,
            record=f"image_id {image_id}, instance {instance}",
            fix=f"{run} '{_command(self._state.manifest)}': it makes this shard again.",
        )


def _fix(status: int, unknown: bool, command: str) -> str:
    if unknown:
        return f"Make a store of the split as it is now with '{command} --force'."
    if status == NOT_DONE:
        return f"Run '{command}'."
    return f"Mend the input and run '{command} --force', or leave the instance out (on_missing='skip')."


def _command(manifest: dict) -> str:
    return manifest["attributes"].get("command", _DEFAULT_COMMAND)


def _manifest(root: Path) -> dict:
    content = layout.read_manifest(root)
    if content is None:
        raise SagecacheError("there is no target store", file=root, fix=f"Make it with '{_DEFAULT_COMMAND}'.")
    return content


def _done_shards(root: Path) -> set[int]:
    group = root / layout.GROUP
    return {k for k, records in journal.read_all(root).items() if journal.current(records, group)}
