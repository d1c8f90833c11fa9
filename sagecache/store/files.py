"""Files that are whole or not there: write under a temporary name, fsync, rename, fsync the folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_MARK = ".sagecache-tmp"


def write_whole(path: str | Path, data: bytes) -> None:
    """Replace path by data: afterwards, and after a crash at any moment, path is old, absent or complete."""
    path = Path(path)
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_MARK}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk, an interrupt: leave nothing behind
        raise
    for folder in {path.parent, *(folder.parent for folder in made)}:
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Delete what killed writers left half-written below folder; returns how many. Call it when alone."""
    leftovers = list(folder.rglob(f".*{_MARK}"))
    for path in leftovers:
        path.unlink()
    return len(leftovers)


def unused_name(path: Path) -> Path:
    """path, or ``<name>-2``, ``<name>-3``, … where it is taken."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def remaining_files(folder: Path) -> list[Path]:
    """Files and folders directly in folder, without half-written ones."""
    return [path for path in folder.iterdir() if not path.name.endswith(_MARK)] if folder.exists() else []
