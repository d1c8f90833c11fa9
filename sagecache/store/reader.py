"""Reading targets by image and instance, for training: lazy, picklable, safe under fork, spawn and threads.

A reader pickles as its path and options and opens its files in whichever process first reads. Every
chunk's crc32c is tested. What was never computed, what failed and what is damaged raises; nothing
ever reads as zeros. Needs numpy, numcodecs and google-crc32c; no zarr, no torch.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import verification
from sagecache.store.arrays import DamagedChunk
from sagecache.store.codec import mask_of_depth
from sagecache.store.files import open_root
from sagecache.store.growth import GROWING
from sagecache.store.opened import Kept, Mark, OpenedStore, command
from sagecache.store.spec import NOT_DONE, OK, STATUS_TEXT

T = TypeVar("T")

_ATTEMPTS, _PAUSE = 5, 0.2  # seconds; what a writer replaces is there again in no time
_PATIENCE = 150  # attempts while a plan of millions may be rewritten: half a minute


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
        self._opened: OpenedStore | None = None
        self._mark: Mark | None = (
            None  # of the store that was opened before this reader was forked or pickled
        )

    def __getstate__(self) -> dict:
        mark = self._mark if self._opened is None else self._opened.mark
        return {
            "root": self.root if isinstance(self.root, Path) else str(self.root),
            "partial": self._partial,
            "max_open_files": self._max_open_files,
            "kept": self._kept,
            # the folder's number may be another on another machine, and ids are many
            "mark": mark and mark._replace(folder=None, ids=None),
        }

    def __setstate__(self, state: dict) -> None:
        mark = state.pop("mark")
        self.__init__(**state)
        self._mark = mark

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
        return self._steady(lambda state: state.status(np.arange(len(state.ids))))

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
        batch = self.allocate(len(ids)) if out is None else dict(out)
        if out is not None:
            self._require_room(batch, len(ids))
        self._steady(lambda state: self._fill(state, ids, batch))
        return batch

    def _fill(self, state: OpenedStore, ids: Sequence[tuple[int, int]], batch: dict[str, np.ndarray]) -> None:
        rows = self._require(state, ids)
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

    def image_sha256(self, image_id: int, instance: int) -> str:
        """Hash of the image file that these targets were made from, in hex."""
        wanted = [(image_id, instance)]
        found = self._steady(lambda state: state.image_sha256.take(self._require(state, wanted)))
        return found.tobytes().hex()

    def boxes(self, ids: Sequence[tuple[int, int]]) -> np.ndarray:
        """Boxes (B, 4) float64 xywh in image pixels that the targets of these instances were made for."""
        return self._steady(lambda state: state.bbox.take(self._require(state, ids)))

    def locate(self, image_id: int, instance: int) -> dict[str, tuple[str, int, int]]:
        """Where the bytes of an instance lie: field -> (file, offset, length)."""
        row = int(self._require(self._state, [(image_id, instance)])[0])
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
    def _state(self) -> OpenedStore:
        if self._opened is not None and self._opened.process != os.getpid():  # after a fork, start afresh
            self._mark, self._opened = self._opened.mark, None
        if self._opened is None and self._mark is not None:
            self._opened = self._follow(self._mark)
        elif self._opened is None:
            self._opened = OpenedStore(self.root, self._max_open_files, self._partial, self._kept)
        return self._opened

    def _steady(self, take: Callable[[OpenedStore], T]) -> T:
        """take(state), of one state of the store: again where files were opened and it was changed meanwhile.

        Raises SagecacheError where a chunk is damaged, and where the store was made anew since it was opened.
        """
        for attempt in range(_ATTEMPTS):
            time.sleep(_PAUSE if attempt > 1 else 0)
            state = self._state
            try:
                found = take(state)
                if not state.changed():
                    return found
            except (SagecacheError, FileNotFoundError) as error:
                if attempt == _ATTEMPTS - 1 or not state.moved():
                    if isinstance(error, DamagedChunk):
                        raise self._damaged(error) from error
                    raise
            self._opened = self._follow(state.mark)
        raise SagecacheError(
            "the store changes faster than it can be read", file=self.root, fix="Wait for what makes it."
        )

    def _follow(self, old: Mark) -> OpenedStore:
        """The store as it is now: mended or grown since. Raises SagecacheError where it is another one.

        While its plan is rewritten, what is read may be half of it: it is read until it holds still.
        """
        for attempt in itertools.count(1):
            growing = (self.root / GROWING).exists()
            last = attempt >= (_PATIENCE if growing else _ATTEMPTS)
            try:
                state = OpenedStore(self.root, self._max_open_files, True, self._kept)
                if state.follows(old) and not growing:
                    state.trust(old)
                    return state
                last |= state.complete and not growing
            except (SagecacheError, FileNotFoundError):
                if last:
                    raise
            if last:
                raise SagecacheError(
                    "the store was made anew since it was opened, or is just being changed",
                    file=self.root,
                    fix="Start again what reads it.",
                )
            time.sleep(_PAUSE)

    def _require_room(self, out: Mapping[str, np.ndarray], count: int) -> None:
        """Raise SagecacheError unless each array is one that targets can be decoded into."""
        known = self._state.arrays | self._state.columns
        for name, values in out.items():
            like = known.get(name)
            shape = (count, *like.shape[1:]) if like is not None else ()
            problem = None
            if like is None:
                problem = f"the store has no '{name}', only {', '.join(known)}"
            elif values.dtype != like.dtype or values.shape != shape:
                problem = f"'{name}' is {values.dtype} {values.shape}, not {like.dtype} {shape}"
            elif not (values.flags.c_contiguous and values.flags.writeable):
                problem = f"'{name}' is not contiguous, or not writeable"
            if problem:
                raise SagecacheError(f"no targets into these arrays: {problem}", file=self.root)

    def _require(self, state: OpenedStore, ids: Sequence[tuple[int, int]]) -> np.ndarray:
        """Rows (B,) of instances that have targets; SagecacheError for the first that has none."""
        wanted = np.asarray(ids).reshape(-1, 2)
        if wanted.dtype.kind not in "iu" and len(wanted):
            raise SagecacheError(f"ids are pairs of whole numbers, not {wanted.dtype}", file=self.root)
        wanted = wanted.astype(np.int64)
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
            fix=_fix(int(status[first]), unknown, command(state.manifest)),
        )

    def _damaged(self, error: DamagedChunk) -> SagecacheError:
        rows, ids = error.rows, self._state.ids
        image_id, instance = ids[rows.start].tolist()
        record = f"image_id {image_id}, instance {instance}"
        if len(rows) > 1:
            last = "image_id {}, instance {}".format(*ids[rows[-1]].tolist())
            record = f"shard {rows.start // self._state.shard_size}, {record} to {last}"
        run = "Run" if error.lost else "Delete this file and run"
        return SagecacheError(
            error.message,
            file=error.file,
            record=record,
            fix=f"{run} '{command(self._state.manifest)}': it makes this shard again.",
        )


def _fix(status: int, unknown: bool, command: str) -> str:
    if unknown or status == NOT_DONE:
        return f"Run '{command}'."
    return f"Mend the input and run '{command} --force', or leave the instance out (on_missing='skip')."
