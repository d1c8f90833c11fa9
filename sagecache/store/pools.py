"""Where chunks come from: here files of a disk, kept open; objects of a bucket are in ``remote``."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sagecache.errors import SagecacheError
from sagecache.store.files import is_remote

_PROBES = 8  # of a batch
_MANY = 65536  # descriptors: as good as no limit
_CAN_PROBE = hasattr(os, "RWF_NOWAIT") and hasattr(os, "posix_fadvise")

Span = tuple[str, int, int]  # path, offset, length in bytes
Read = Callable[[str, int, int], bytes]  # path, length, offset -> bytes; fewer where the file ends


class Pool(Protocol):
    """What arrays are read through. Paths are those of ``files.open_root``, as text."""

    opened: int  # grows when what was not open is read: from there on it stays as it was
    far: bool  # whether a read takes so long that those of a batch are better under way together

    def read(self, path: str, size: int, offset: int) -> bytes:
        """size bytes from offset; fewer where the file ends. FileNotFoundError where there is none."""

    def size(self, path: str) -> int:
        """Bytes of a file."""

    def forget(self, path: str) -> None:
        """What is kept of a file is damaged or old."""

    def together(self, spans: Sequence[Span]) -> Read:
        """All spans at once; what is returned gives them out."""


def open_pool(root: Path, limit: int | None = None) -> Pool:
    """What the arrays of a store are read through. limit: of open files."""
    if not is_remote(root):
        return FilePool(limit)
    from sagecache.store.remote import RemotePool

    return RemotePool(root.fs)


class OpenFile:
    """A descriptor that closes when its last user lets go, so that eviction never interrupts a read."""

    __slots__ = ("descriptor", "_close")

    def __init__(self, path: str) -> None:
        self._close = os.close  # kept: module globals may be gone when the interpreter ends
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self._close(self.descriptor)


class FilePool:
    """At most ``limit`` files open at once, the one opened first is closed first; safe under threads.

    limit: by default a quarter of what the process may have open; all its pools together hold half of it.
    """

    far = False

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit or max(1, _may_be_open() // 4)
        self._files: dict[str, OpenFile] = {}
        self._lock = threading.Lock()
        self.opened = 0
        _POOLS[id(self)] = self

    def read(self, path: str, size: int, offset: int) -> bytes:
        """size bytes from offset; fewer where the file ends."""
        file = self._files.get(path) or self._open(path)
        # held by this name until the read is over, whatever other threads evict
        return os.pread(file.descriptor, size, offset)

    def size(self, path: str) -> int:
        file = self._files.get(path) or self._open(path)
        return os.fstat(file.descriptor).st_size

    def forget(self, path: str) -> None:
        with self._lock:
            self._files.pop(path, None)

    def release(self) -> None:
        """Close all that no read is using just now."""
        with self._lock:
            self._files.clear()

    def together(self, spans: Sequence[Span]) -> Read:
        """Where the first bytes of a few are not in memory, the disk is asked for all of them at once."""
        if any(not self._in_memory(path, offset) for path, offset, _ in spans[:: len(spans) // _PROBES + 1]):
            for path, offset, size in spans:
                with contextlib.suppress(OSError):  # a hint; what is wrong with a file, reading it will tell
                    file = self._files.get(path) or self._open(path)
                    os.posix_fadvise(file.descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        return self.read

    def _in_memory(self, path: str, offset: int) -> bool:
        """Whether the page at offset can be had without the disk; True where the system can't tell."""
        if not _CAN_PROBE:
            return True
        try:
            file = self._files.get(path) or self._open(path)
            return os.preadv(file.descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) >= 0
        except BlockingIOError:
            return False
        except OSError:  # a file that is missing, or of a kind that knows no such reads: reading will tell
            return True

    def __len__(self) -> int:
        return len(self._files)

    def _open(self, path: str) -> OpenFile:
        file = open_file(path)
        with self._lock:
            self.opened += 1
            self._files[path] = file
            if len(self._files) > self._limit:
                del self._files[next(iter(self._files))]
        pools = _all_pools()
        if sum(map(len, pools)) > _may_be_open() // 2:
            max(pools, key=len)._close_first()
        return file

    def _close_first(self) -> None:
        with self._lock:
            if self._files:
                del self._files[next(iter(self._files))]


# Not a WeakSet: this can be listed while another thread adds to it.
_POOLS: weakref.WeakValueDictionary[int, FilePool] = weakref.WeakValueDictionary()
os.register_at_fork(after_in_child=_POOLS.clear)  # a thread that is gone may have held their locks


def _all_pools() -> list[FilePool]:
    """Those that this process made."""
    return [pool for reference in _POOLS.valuerefs() if (pool := reference()) is not None]


def _may_be_open() -> int:
    """Descriptors that the process may have; no limit is -1 to the system."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MANY if limit == resource.RLIM_INFINITY else min(limit, _MANY)


def open_file(path: str) -> OpenFile:
    """Where there are no descriptors left, those of all pools are let go of. Raises SagecacheError then."""
    try:
        return OpenFile(path)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    for pool in _all_pools():
        pool.release()
    try:
        return OpenFile(path)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise SagecacheError(
            "no more files can be opened: the process, or the machine, has as many open as it may",
            file=path,
            fix="Raise the limit (ulimit -n), or close what else is open.",
        ) from error
