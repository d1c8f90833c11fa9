"""Reading a store in a bucket: the ranges of a batch together, and whole shards kept on the local disk.

A training reads at random over all of a store, so what is kept stays kept: shards are fetched whole in the
background while ranges serve the reads, until the bound is reached; the rest goes on by ranges. Only stores
that are no longer read make room.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sagecache.store.pools import FilePool, Read, Span

logger = logging.getLogger(__name__)

_LOOK_AGAIN = 10.0  # seconds
_UNUSED = 3600.0  # seconds after which a store that nobody read makes room for another
_TOUCH = 60.0  # seconds after which a reader says again that it is here


class RemotePool:
    """Objects of a bucket, by range requests; those that the cache has whole, from there.

    files: a file system of fsspec.
    """

    far = True

    @property
    def opened(self) -> int:
        """Nothing stays open in a bucket: whether a store was changed is asked every few seconds."""
        return int(time.monotonic() / _LOOK_AGAIN)

    def __init__(self, files, cache: ShardCache | None = None) -> None:
        self._files, self._cache = files, cache

    def read(self, path: str, size: int, offset: int) -> bytes:
        return self.together([(path, offset, size)])(path, size, offset)

    def size(self, path: str) -> int:
        return self._files.size(path)

    def forget(self, path: str) -> None:
        if self._cache is not None:
            self._cache.forget(path)

    def together(self, spans: Sequence[Span]) -> Read:
        found: dict[Span, bytes | Exception] = {}
        asked = []
        for path, offset, size in dict.fromkeys(spans):
            here = self._cache and self._cache.read(path, size, offset)
            if here is None:
                asked.append((path, offset, size))
            else:
                found[path, offset, size] = here
        if asked:
            paths, starts, sizes = zip(*asked, strict=True)
            ends = [start + size for start, size in zip(starts, sizes, strict=True)]
            answers = self._files.cat_ranges(list(paths), list(starts), ends, on_error="return")
            found |= zip(asked, answers, strict=True)

        def read(path: str, size: int, offset: int) -> bytes:
            data = found.get((path, offset, size))
            if data is None:
                return self.read(path, size, offset)
            if isinstance(data, Exception):
                raise data
            return data

        return read


class ShardCache:
    """Files of one state of one store, in ``<folder>/<state>``; shared by the processes of a machine.

    files: a file system of fsspec. state: names what the store holds, so that a store made anew is never
    mistaken for the old one. limit: bytes of all that lies in folder. clock: seconds, as ``time.time``.
    """

    def __init__(
        self, files, folder: Path, state: str, limit: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._files, self._base, self._limit, self._clock = files, folder, limit, clock
        self._folder = folder / state
        self._pool, self._wanted = FilePool(), queue.SimpleQueue()
        self._known: set[str] = set()  # under way, or did not fit
        self._touch()
        self._thread: threading.Thread | None = None

    def read(self, path: str, size: int, offset: int) -> bytes | None:
        """None for a file that is not here (yet): it is then fetched in the background."""
        if self._clock() - self._touched > _TOUCH:
            self._touch()
        try:
            return self._pool.read(self._place(path), size, offset)
        except FileNotFoundError:
            self._want(path)
            return None

    def forget(self, path: str) -> None:
        """Remove a file that turned out to be damaged."""
        place = self._place(path)
        self._pool.forget(place)
        Path(place).unlink(missing_ok=True)
        self._known.discard(path)

    def wait(self) -> None:
        """Until all that was wanted is here, or did not fit."""
        if self._thread is not None:
            done = threading.Event()
            self._wanted.put(done)
            done.wait()

    def _touch(self) -> None:
        """Tell the other processes that this store is read; where one took it away, begin anew."""
        self._touched = self._clock()
        try:
            os.utime(self._folder)
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._pool.release()  # files that have no name any more
            self._known.clear()

    def _place(self, path: str) -> str:
        return f"{self._folder}/{path.rpartition('.zarr/')[2].replace('/', '-')}"

    def _want(self, path: str) -> None:
        if path in self._known:
            return
        self._known.add(path)
        self._wanted.put(path)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            wanted = self._wanted.get()
            if isinstance(wanted, threading.Event):
                wanted.set()
                continue
            try:
                if self._fetch(wanted):
                    self._known.discard(wanted)  # should it vanish, it is wanted again
            except Exception as error:  # a full disk, any of a network's: ranges go on serving
                logger.warning("could not keep %s here: %s", wanted, error)

    def _fetch(self, path: str) -> bool:
        """Whether the file is here now."""
        place = self._place(path)
        if os.path.exists(place):
            return True
        if not self._has_room(self._files.size(path)):
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        part = f"{place}.part"
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL))
        except FileExistsError:  # another process fetches it, or died doing so
            if self._clock() - os.stat(part).st_mtime < _UNUSED:
                return False
        try:
            self._files.get_file(path, part)
            os.replace(part, place)
        finally:
            Path(part).unlink(missing_ok=True)
        return True

    def _has_room(self, size: int) -> bool:
        stores = sorted(self._base.iterdir(), key=lambda folder: folder.stat().st_mtime)
        held = {folder: sum(entry.stat().st_size for entry in os.scandir(folder)) for folder in stores}
        for folder in stores:
            if sum(held.values()) + size <= self._limit:
                return True
            if folder != self._folder and self._clock() - folder.stat().st_mtime > _UNUSED:
                shutil.rmtree(folder, ignore_errors=True)
                held[folder] = 0
        return sum(held.values()) + size <= self._limit
