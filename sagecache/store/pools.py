"""Where chunks come from: here files of a disk, kept open; objects of a bucket are in ``remote``."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sagecache.store.files import is_remote

_PROBES = 8  # of a batch
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


class _OpenFile:
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

    limit: by default a quarter of what the process may have open.
    """

    far = False

    def __init__(self, limit: int | None = None) -> None:
        self._limit = max(1, limit or resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._files: dict[str, _OpenFile] = {}
        self._lock = threading.Lock()
        self.opened = 0

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

    def _open(self, path: str) -> _OpenFile:
        file = _OpenFile(path)
        with self._lock:
            self.opened += 1
            self._files[path] = file
            if len(self._files) > self._limit:
                del self._files[next(iter(self._files))]
        return file
