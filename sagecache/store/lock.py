"""Who may write in a folder: one writer alone, or several that share the shards among them."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from sagecache.errors import SagecacheError

_NAME = ".lock"
_PATIENCE = 30.0  # seconds


class FolderLock:
    """An flock on ``<root>/.lock``: dropped by the kernel when its process dies, removed by a clean close.

    shared=False: alone, or SagecacheError at once. shared=True: beside other sharing writers.
    alone tells whether nobody else held the lock when it was taken (so leftovers belong to the dead).
    """

    def __init__(self, root: Path, shared: bool) -> None:
        self._path = root / _NAME
        self.alone = True
        while True:
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

    def release(self) -> None:
        if self._try(fcntl.LOCK_EX) and self._still_named():
            self._path.unlink()
        os.close(self._descriptor)

    def _take(self, shared: bool) -> None:
        self.alone = self._try(fcntl.LOCK_EX)
        if not self.alone and not (shared and self._wait_for_share()):
            raise SagecacheError(
                "another process is writing here",
                file=self._path.parent,
                fix="Wait until it has finished, or stop it; what it has committed is kept.",
            )

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
