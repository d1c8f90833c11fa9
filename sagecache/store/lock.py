"""Who may write in a folder: one writer alone, or several that share the shards among them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from sagecache.errors import SagecacheError
from sagecache.store.files import is_remote

_NAME = ".lock"
_PATIENCE = 30.0  # seconds


class FolderLock:
    """An flock on ``<root>/.lock``: dropped by the kernel when its process dies, removed by a clean close.

    shared=False: alone; where others are at work waiting() is called once and their end waited for, or,
    without it, SagecacheError raised at once. shared=True: beside other sharing writers. alone tells whether
    nobody else held the lock when it was taken (so leftovers belong to the dead).
    """

    def __init__(self, root: Path, shared: bool, waiting: Callable[[], None] | None = None) -> None:
        self._path, self._waiting = root / _NAME, waiting
        self.alone = True
        while True:
            root.mkdir(parents=True, exist_ok=True)  # its last owner may have set it aside
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._take(shared)
            except BaseException:
                os.close(self._descriptor)
                raise
            if self._still_named():
                return
            os.close(self._descriptor)  # its last owner removed it while we waited: take the new one

    def become_alone(self) -> None:
        """Wait until every other writer has gone."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def moved(self, root: Path) -> None:
        """The folder has another name now, still under this lock."""
        self._path = root / _NAME

    def release(self) -> None:
        if self._try(fcntl.LOCK_EX) and self._still_named():
            self._path.unlink()
        os.close(self._descriptor)

    def _take(self, shared: bool) -> None:
        self.alone = self._try(fcntl.LOCK_EX)
        if self.alone or (shared and self._wait_for_share()):
            return
        if self._waiting is None:
            raise SagecacheError(
                "another process is writing here",
                file=self._path.parent,
                fix="Wait until it has finished, or stop it; what it has committed is kept.",
            )
        self._waiting()
        fcntl.flock(self._descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        self.alone = not shared

    def share(self) -> None:
        """Let other sharing writers in."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def _wait_for_share(self) -> bool:
        """A sharing writer that opens or finishes the store is alone for a moment: wait so long."""
        until = time.monotonic() + _PATIENCE
        while not self._try(fcntl.LOCK_SH):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _still_named(self) -> bool:
        try:
            return os.stat(self._path).st_ino == os.fstat(self._descriptor).st_ino
        except FileNotFoundError:
            return False


def is_held(root: Path) -> bool:
    """Whether a writer is at work in a folder of a disk. Makes no file."""
    try:
        descriptor = os.open(root / _NAME, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class NoLock:
    """In an object store nothing can be held: writers of the same shards put the same bytes, or find out.

    Puts are whole, each record tells the checksums of its shard's files, and where two tell of one shard the
    files decide; a shard that is of neither is made again.
    """

    alone = True

    def become_alone(self) -> None:
        pass

    def share(self) -> None:
        pass

    def moved(self, root: Path) -> None:
        pass

    def release(self) -> None:
        pass


def take_lock(root: Path, shared: bool, waiting: Callable[[], None] | None = None) -> FolderLock | NoLock:
    """As FolderLock, for any place."""
    return NoLock() if is_remote(root) else FolderLock(root, shared, waiting)
