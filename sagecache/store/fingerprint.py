"""What decides the numbers in a store, as one hash, and what differs between two of them.

A fingerprint is a nested dict of plain values. Paths, times, hosts, devices and batch sizes do not
belong in it. What cannot be hashed is refused: a store that cannot say where it came from is no cache.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

ABSENT = "absent"


def canonical(value: object, key: str = "") -> object:
    """The same value in plain JSON types: tuples become lists, 1.0 becomes 1, numpy scalars become Python's.

    Raises TypeError, naming the dotted key, for anything else and for numbers that are not finite.
    """
    if isinstance(value, Mapping):
        unnamed = [k for k in value if not isinstance(k, str)]
        if unnamed:
            raise TypeError(
                f"fingerprint key {key or 'at the top'} has a name that is no string: {unnamed[0]!r}"
            )
        return {name: canonical(value[name], f"{key}.{name}" if key else name) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return canonical(value.item(), key)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"fingerprint key {key} is not a finite number")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"fingerprint key {key} holds a {type(value).__name__}, which has no canonical form")


def canonical_json(value: object) -> str:
    """Sorted keys, no spaces, shortest digits that read back as the same double."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: object) -> str:
    """sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def diff(old: Mapping, new: Mapping) -> list[tuple[str, object, object]]:
    """Sorted dotted keys whose values differ, each with the old and the new value ('absent' where none)."""
    before, after = _flatten(canonical(old)), _flatten(canonical(new))
    keys = sorted(before.keys() | after.keys())
    return [
        (".".join(key), before.get(key, ABSENT), after.get(key, ABSENT))
        for key in keys
        if not (key in before and key in after and canonical_json(before[key]) == canonical_json(after[key]))
    ]


def describe(differences: list[tuple[str, object, object]], limit: int = 6) -> str:
    """'key: old -> new; …' for an error message."""
    parts = [f"{key}: {_short(old)} -> {_short(new)}" for key, old, new in differences[:limit]]
    rest = len(differences) - limit
    return "; ".join(parts) + (f"; and {rest} more" if rest > 0 else "")


def sha256(data: bytes) -> str:
    """sha256 of bytes, in hex.

    A CRC would not tell files apart here: that of blocks which are each followed by their own CRC depends on
    their lengths alone.
    """
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(value: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    if isinstance(value, dict) and value:
        return {k: v for name, item in value.items() for k, v in _flatten(item, (*path, name)).items()}
    return {path: value}


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text
