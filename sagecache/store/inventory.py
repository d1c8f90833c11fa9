"""Which stores lie in a folder, on a disk or in a bucket, and what each holds. Reads only; damage is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import layout
from sagecache.store.files import sizes
from sagecache.store.reader import StoreReader
from sagecache.store.spec import NOT_DONE, OK

RECORDS = "records"  # manifest, journal, index and metadata, beside the arrays


@dataclass(frozen=True)
class StoreFacts:
    """A store as it lies there.

    done, failed, missing: instances with targets, without (the reason is in the store), and not computed.
    bytes: by array, and RECORDS. problem: why it can't be read; what is not known is then empty or 0.
    """

    root: Path
    bytes: Mapping[str, int]
    problem: str = ""
    instances: int = 0
    done: int = 0
    failed: int = 0
    missing: int = 0
    fields: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    complete: bool = False
    fingerprint: Mapping = field(default_factory=dict)
    fingerprint_sha256: str = ""

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())


def find_stores(folder: Path) -> list[StoreFacts]:
    """Stores directly in a folder, by name; nothing where there is no such folder. Links are not followed."""
    found: dict[str, dict[str, int]] = {}
    for path, size in sizes(folder).items():
        store, _, inside = path.partition("/")
        found.setdefault(store, {})[inside] = size
    return [
        look_at(folder / store, files)
        for store, files in sorted(found.items())
        if any(name == layout.MANIFEST or name.startswith(f"{layout.GROUP}/") for name in files)
    ]


def look_at(root: Path, files: Mapping[str, int] | None = None) -> StoreFacts:
    """What is known of one store. files: path below it -> bytes, where that was listed already."""
    by_array = _by_array(sizes(root).items() if files is None else files.items())
    try:
        reader = StoreReader(root, partial=True)
        status = reader.status
        facts = dict(
            instances=len(reader),
            done=int((status == OK).sum()),
            failed=int(((status != OK) & (status != NOT_DONE)).sum()),
            missing=int((status == NOT_DONE).sum()),
            fields=reader.fields,
            size=reader.size,
            complete=reader.complete,
            fingerprint=reader.fingerprint,
            fingerprint_sha256=reader.fingerprint_sha256,
        )
    except SagecacheError as error:
        return StoreFacts(root, by_array, _told(error, root))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        return StoreFacts(root, by_array, f"it can't be read: {type(error).__name__}: {error}")
    return StoreFacts(root, by_array, **facts)


def first_ids(ids: np.ndarray | Iterable[tuple[int, int]], count: int = 3) -> str:
    """'201/0, 201/1, … (4)': image_id/instance of the first few, and of how many."""
    pairs = [tuple(pair) for pair in ids]
    shown = ", ".join(f"{image_id}/{instance}" for image_id, instance in pairs[:count])
    return shown + (f", … ({len(pairs)})" if len(pairs) > count else "")


def _by_array(files: Iterable[tuple[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for path, size in files:
        parts = path.split("/")
        name = parts[1] if parts[0] == layout.GROUP and len(parts) > 2 and parts[2] == "c" else RECORDS
        totals[name] = totals.get(name, 0) + size
    return totals


def _told(error: SagecacheError, root: Path) -> str:
    """The message, with the file below the store that it is of."""
    file = str(error.file or "").removeprefix(str(root)).lstrip("/")
    return f"{file}: {error.message}" if file else error.message
