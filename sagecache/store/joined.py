"""Stores of several teachers read as one: joined by (image_id, instance), each as it was made.

A depth teacher's store and, made a year later, a normal teacher's: neither is rewritten. Each store adds the
fields that those before it lack; a pixel counts where every store's mask says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store.ids import IdIndex
from sagecache.store.reader import Failure, StoreReader
from sagecache.store.spec import NOT_DONE, OK


class JoinedReader:
    """Reads like StoreReader. Raises SagecacheError where crops or sizes of maps differ between stores."""

    def __init__(self, readers: Sequence[StoreReader]) -> None:
        if not readers:
            raise ValueError("nothing to join")
        self.readers = tuple(readers)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def root(self):
        """That of the first store, for messages."""
        return self.readers[0].root

    @property
    def ids(self) -> np.ndarray:
        """(N, 2) int64: instances of the first store."""
        return self.readers[0].ids

    @property
    def attributes(self) -> dict:
        return self.readers[0].attributes

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the target maps, the same in all stores; SagecacheError where it is not."""
        sizes = {reader.size: reader for reader in reversed(self.readers)}
        if len(sizes) > 1:
            told = ", ".join(f"{width}x{height} in {sizes[width, height].root}" for width, height in sizes)
            raise SagecacheError(
                f"the stores to be joined have maps of different sizes: {told}",
                fix="Give their teachers one map_size.",
            )
        return self.readers[0].size

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for reader in self.readers for name in reader.fields))

    def field_attributes(self, name: str) -> dict:
        return self._owner(name).field_attributes(name)

    def read(self, image_id: int, instance: int) -> dict[str, np.ndarray]:
        """As ``StoreReader.read``."""
        return {name: values[0] for name, values in self.read_many([(image_id, instance)]).items()}

    def read_many(
        self, ids: Sequence[tuple[int, int]], out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """As ``StoreReader.read_many``: fields of all stores, 'mask' true where all of their masks are."""
        wanted = self.allocate(len(ids)) if out is None else dict(out)
        unknown = wanted.keys() - self.allocate(0).keys()
        if unknown:
            raise SagecacheError(f"none of the stores has '{sorted(unknown)[0]}'", file=self.root)
        crops = self.readers[0].allocate(len(ids))["target_from_image"]
        batch, taken = {"target_from_image": crops, **wanted}, set()
        for reader in self.readers:
            parts = reader.allocate(len(ids))
            own, again = parts.keys() - taken, parts.keys() & taken & {"mask", "target_from_image"}
            read = {name: batch[name] for name in own & batch.keys()}
            read |= {name: parts[name] for name in again & batch.keys()}
            reader.read_many(ids, read)
            if "target_from_image" in again:
                self._require_same_crop(reader, ids, batch["target_from_image"], read["target_from_image"])
            if "mask" in again & batch.keys():
                batch["mask"] &= read["mask"]
            taken |= own
        return wanted

    def allocate(self, count: int) -> dict[str, np.ndarray]:
        """Empty arrays for count instances."""
        _ = self.size  # one for all, or an error
        arrays = {}
        for reader in reversed(self.readers):
            arrays |= reader.allocate(count)
        return arrays

    def boxes(self, ids: Sequence[tuple[int, int]]) -> np.ndarray:
        """Boxes (B, 4) float64 xywh; that all stores have these is tested by their crops."""
        return self.readers[0].boxes(ids)

    def image_sha256(self, image_id: int, instance: int) -> str:
        return self.readers[0].image_sha256(image_id, instance)

    def failures(self) -> list[Failure]:
        """Instances of the first store for which one of the stores has no targets, with its reason."""
        ids = self.ids  # once: a store may grow meanwhile, and rows are never moved
        status = np.full(len(ids), OK, np.uint8)
        for reader in self.readers:
            rows = IdIndex(reader.ids).find(ids)
            found = np.where(rows < 0, NOT_DONE, reader.status[rows])
            status = np.where(status == OK, found, status)
        rows = np.flatnonzero(status != OK)
        return [Failure(*ids[row].tolist(), int(status[row])) for row in rows]

    def _owner(self, field: str) -> StoreReader:
        return next(reader for reader in self.readers if field in reader.fields)

    def _require_same_crop(self, reader: StoreReader, ids, wanted: np.ndarray, found: np.ndarray) -> None:
        differs = (wanted != found).any(axis=(1, 2))
        if differs.any():
            image_id, instance = ids[int(differs.argmax())]
            raise SagecacheError(
                f"another crop than in {self.root}",
                file=reader.root,
                record=f"image_id {image_id}, instance {instance}",
                fix="Make both stores with the same boxes, crop rule and map_size.",
            )
