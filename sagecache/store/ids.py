"""Which row of a store belongs to which instance."""

from __future__ import annotations

import numpy as np


class IdIndex:
    """Rows by (image_id, instance); ids (N, 2) int64 are unique and in any order."""

    def __init__(self, ids: np.ndarray) -> None:
        self._order = None if is_rising(ids) else np.lexsort((ids[:, 1], ids[:, 0]))
        rising = ids if self._order is None else ids[self._order]
        self._columns = np.ascontiguousarray(rising.T)  # searchsorted copies what is strided

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Rows (B,) of wanted ids (B, 2), -1 where there is none."""
        images, numbers = self._columns
        last, places = len(images) - 1, images.searchsorted(wanted[:, 0])
        while True:  # as often as an image of the batch has persons
            at = np.minimum(places, last)
            same = (places <= last) & (images[at] == wanted[:, 0])
            behind = same & (numbers[at] < wanted[:, 1])
            if not behind.any():
                break
            places = places + behind
        rows = at if self._order is None else self._order[at]
        return np.where(same & (numbers[at] == wanted[:, 1]), rows, -1)


def is_rising(ids: np.ndarray) -> bool:
    """Whether ids are in order of image_id, then instance, without a repetition."""
    image, number = ids[:, 0], ids[:, 1]
    return bool(((image[1:] > image[:-1]) | ((image[1:] == image[:-1]) & (number[1:] > number[:-1]))).all())


def first_repeated(ids: np.ndarray) -> tuple[int, int] | None:
    """An id that stands in two rows, or None."""
    if is_rising(ids):
        return None
    rising = ids[np.lexsort((ids[:, 1], ids[:, 0]))]
    repeated = (rising[1:] == rising[:-1]).all(axis=1)
    return tuple(rising[int(repeated.argmax())].tolist()) if repeated.any() else None
