"""Files that are whole or not there, on a disk or in an object store.

On a disk: written under a temporary name, synced, renamed, the folder synced. In an object store (any place
that fsspec knows by a URL: s3://, gs://, az://, …) a put is whole by itself; folders and locks do not exist.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from sagecache.errors import SagecacheError

_MARK = ".sagecache-tmp"


def open_root(root: str | Path) -> Path:
    """A folder from a path, or from a URL an object of universal_pathlib that is used like a Path.

    Credentials and endpoints are those of the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …). Raises
    SagecacheError where the package that knows the URL's scheme is missing.
    """
    if not isinstance(root, str) or "://" not in root:
        return Path(root) if isinstance(root, str) else root
    scheme = root.partition("://")[0]
    try:
        from upath import UPath

        # What others write must be seen: no listing is kept.
        return UPath(root, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise SagecacheError(
            f"can't reach '{scheme}://' places: {error}",
            file=root,
            fix="pip install 'sagecache[s3]', or for other places universal_pathlib and fsspec's package.",
        ) from error


def is_remote(path: Path) -> bool:
    """Whether a path lies in an object store."""
    return not isinstance(path, Path)


def write_whole(path: str | Path, data: bytes) -> None:
    """Replace path by data: afterwards, and after a crash at any moment, path is old, absent or complete."""
    path = Path(path) if isinstance(path, str) else path
    if is_remote(path):
        path.write_bytes(data)
        return
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
    if is_remote(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_files(paths: Sequence[Path]) -> list[bytes]:
    """Contents of several files; from an object store all at once."""
    if paths and is_remote(paths[0]):
        found = paths[0].fs.cat([path.path for path in paths])
        return [found[path.path] for path in paths]
    return [path.read_bytes() for path in paths]


def sizes(folder: Path) -> dict[str, int]:
    """Path below folder -> bytes, of all files; half-written ones are left out."""
    if is_remote(folder):
        found = folder.fs.find(folder.path, detail=True)
        start = len(folder.path.rstrip("/")) + 1
        return {name[start:]: facts["size"] for name, facts in found.items()}
    known = {}
    for place, _, names in os.walk(folder):
        for name in names:
            if not name.endswith(_MARK):
                path = os.path.join(place, name)
                with contextlib.suppress(FileNotFoundError):  # gone since: a writer is at work
                    known[os.path.relpath(path, folder).replace(os.sep, "/")] = os.stat(path).st_size
    return known


def move_folder(folder: Path, target: Path) -> None:
    """Rename a folder; in an object store each of its files is copied, then removed."""
    if is_remote(folder):
        names = list(sizes(folder))
        before, after = ([f"{place.path}/{name}" for name in names] for place in (folder, target))
        folder.fs.copy(before, after)
        folder.fs.rm(before)
        return
    folder.rename(target)
    sync_folder(folder.parent)


def leftovers(folder: Path) -> list[Path]:
    """What is half-written below folder, by a writer that is at work or was killed."""
    return [] if is_remote(folder) else sorted(folder.rglob(f".*{_MARK}"))


def remove_leftovers(folder: Path) -> int:
    """Delete what killed writers left half-written below folder; returns how many. Call it when alone."""
    found = leftovers(folder)
    for path in found:
        path.unlink()
    return len(found)


def remove_folder(folder: Path) -> None:
    """Delete a folder with all that is in it; links in it are removed, not followed.

    On a disk it is renamed first: what is half deleted is never taken for what it was.
    """
    if is_remote(folder):
        folder.fs.rm(folder.path, recursive=True)
        return
    condemned = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_MARK}")
    folder.rename(condemned)
    sync_folder(folder.parent)
    shutil.rmtree(condemned)


def unused_name(path: Path) -> Path:
    """path, or ``<name>-2``, ``<name>-3``, … where it is taken."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def remaining_files(folder: Path) -> list[Path]:
    """Files and folders directly in folder, without half-written ones."""
    return [path for path in folder.iterdir() if not path.name.endswith(_MARK)] if folder.exists() else []
