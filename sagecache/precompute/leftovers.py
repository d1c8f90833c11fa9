"""What phase one leaves behind and nobody needs: found, told with its reason, removed on demand.

Trials (``geo-first20``), results that --force set aside (``geo.replaced-…``), what killed writers left
half-written, and shards that are kept of stores in a bucket. Never a result that is in use, nothing outside
the given places, nothing that a writer holds; links are not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sagecache.store import layout
from sagecache.store.files import is_remote, leftovers, remove_folder, sizes
from sagecache.store.lock import is_held, take_lock

CURRENT, TRIAL, ASIDE, OTHER = "current", "trial", "set aside", "other"
REASONS = {
    TRIAL: "a trial run's (--limit)",
    ASIDE: "set aside by --force",
    "half": "half-written by a run that was killed",
    "kept": "kept of a store in a bucket; fetched again when it is read",
    "stale": "kept of a store that has gone or was made anew",
}
_WRITER = "a writer is at work"
_UNSEEN = "not complete, and in a bucket nobody can see whether a writer is at work"
_DETECTIONS = {
    ASIDE: re.compile(r"detections(-first\d+)?\.json\.replaced(-\d+)?"),
    TRIAL: re.compile(r"detections-first\d+\.(json|meta\.json|parts)"),
}
_STATISTICS = re.compile(r"skeleton_stats\.json\.replaced(-\d+)?")
_STATE = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Places:
    """Where a project's results lie.

    stores: split -> the store in use. shards: where shards of stores in buckets are kept; states: of those
    that are in use. needed: files that must stay whatever their names are (a split's boxes).
    """

    cache_root: Path
    stores: Mapping[str, Path]
    shards: Path
    states: frozenset[str] = frozenset()
    needed: frozenset[Path] = frozenset()


@dataclass(frozen=True)
class Leftover:
    """A file or folder that may go. held: why it can't now. owner: whose lock to hold while removing it."""

    path: Path
    reason: str
    bytes: int
    held: str = ""
    owner: Path | None = None


def kind_of(name: str, current: str) -> str:
    """What a store's name says of it; current: the name of the split's store in use."""
    if name == current:
        return CURRENT
    trial = rf"{re.escape(current)}-(first\d+|of-.+)"
    if re.fullmatch(rf"({re.escape(current)}|{trial})\.replaced-.+", name):
        return ASIDE
    return TRIAL if re.fullmatch(trial, name) else OTHER


def find_leftovers(places: Places) -> list[Leftover]:
    """All that may go, in the order of the places."""
    found = []
    for split, store in places.stores.items():
        found += _stores(store)
        found += _detections(places.cache_root / split)
    found += _named(places.cache_root, {ASIDE: _STATISTICS})
    found += _kept(places)
    roots = [places.cache_root, places.shards, *(store.parent.parent for store in places.stores.values())]
    return [one for one in _once(found) if _may_go(one.path, roots, places)]


def remove(leftover: Leftover) -> None:
    """Delete it, under its owner's lock. Raises SagecacheError where a writer has come since it was found."""
    lock = None if leftover.owner is None else take_lock(leftover.owner, shared=False)
    try:
        if is_remote(leftover.path) or leftover.path.is_dir():
            remove_folder(leftover.path)
        else:
            leftover.path.unlink()
    finally:
        if lock is not None:
            lock.release()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, half-written ones too; 0 where there is none."""
    if is_remote(folder):
        return sum(sizes(folder).values())
    if folder.is_file():
        return folder.stat().st_size
    return sum(
        os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names
    )


def _stores(store: Path) -> Iterator[Leftover]:
    """Those beside the store in use, and what is half-written in it."""
    base = store.parent
    if is_remote(base):
        yield from _far_stores(store)
        return
    for path in sorted(base.iterdir()) if base.is_dir() else []:
        if not ((path / layout.MANIFEST).exists() or (path / layout.GROUP).exists()):
            continue
        held, kind = _WRITER if is_held(path) else "", kind_of(path.name, store.name)
        if kind in REASONS:
            yield Leftover(path, REASONS[kind], folder_bytes(path), held, path)
        elif kind == CURRENT:
            yield from (_half_written(one, path, held) for one in leftovers(path))
    yield from (_half_written(path, None, "") for path in base.glob(".*.sagecache-tmp") if path.is_dir())


def _far_stores(store: Path) -> Iterator[Leftover]:
    found: dict[str, dict[str, int]] = {}
    for name, size in sizes(store.parent).items():
        top, _, inside = name.partition("/")
        found.setdefault(top, {})[inside] = size
    for name, files in sorted(found.items()):
        kind = kind_of(name, store.name)
        if kind in REASONS and any(file.startswith((layout.MANIFEST, layout.GROUP)) for file in files):
            held = _UNSEEN if kind == TRIAL and layout.COMPLETE not in files else ""
            yield Leftover(store.parent / name, REASONS[kind], sum(files.values()), held)


def _detections(folder: Path) -> Iterator[Leftover]:
    yield from _named(folder, _DETECTIONS)
    parts = folder / "detections.parts"
    held = _WRITER if is_held(parts) else ""
    yield from (_half_written(path, parts, held) for path in leftovers(parts))


def _named(folder: Path, patterns: Mapping[str, re.Pattern]) -> Iterator[Leftover]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        for kind, pattern in patterns.items():
            if pattern.fullmatch(path.name):
                writing = path.suffix == ".parts"
                held = _WRITER if writing and is_held(path) else ""
                yield Leftover(path, REASONS[kind], folder_bytes(path), held, path if writing else None)


def _half_written(path: Path, owner: Path | None, held: str) -> Leftover:
    return Leftover(path, REASONS["half"], folder_bytes(path), held, owner)


def _kept(places: Places) -> Iterator[Leftover]:
    for path in sorted(places.shards.iterdir()) if places.shards.is_dir() else []:
        if path.is_dir() and _STATE.fullmatch(path.name):
            reason = REASONS["kept" if path.name in places.states else "stale"]
            yield Leftover(path, reason, folder_bytes(path))


def _once(found: list[Leftover]) -> list[Leftover]:
    """Two splits may share a folder."""
    return list({str(one.path): one for one in found}.values())


def _may_go(path: Path, roots: list[Path], places: Places) -> bool:
    if is_remote(path):
        return True
    real = path.resolve()
    if path.is_symlink() or not any(not is_remote(r) and real.is_relative_to(r.resolve()) for r in roots):
        return False
    kept = [*places.needed, *(store for store in places.stores.values() if not is_remote(store))]
    return not any(one.resolve() == real or one.resolve().is_relative_to(real) for one in kept)
