"""Where everything lies in a store folder, and the bytes of what is written before the first target.

<root>/manifest.json        identity (fingerprint, plan, fields, shard size), attributes, checksums
<root>/journal*.jsonl       which shards are done
<root>/complete.json        present when all are
<root>/targets.zarr/        a plain Zarr v3 group: fields, depth_range, status, and the plan's arrays
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store import shard
from sagecache.store.arrays import Column
from sagecache.store.codec import with_checksum
from sagecache.store.fingerprint import canonical, digest, sha256
from sagecache.store.journal import FINISHED
from sagecache.store.pools import open_pool
from sagecache.store.spec import FORMAT, PLAN_ARRAYS, STATUS_TEXT, StorePlan, TargetField

GROUP, MANIFEST, COMPLETE = "targets.zarr", "manifest.json", "complete.json"
PLAN_CHUNK_ROWS = 1024
_DIMENSIONS = {
    "ids": ("instance", "image_id_and_instance"),
    "image_sha256": ("instance", "byte"),
    "bbox": ("instance", "xywh"),
    "target_from_image": ("instance", "row", "column"),
}
_MEANING = {
    "ids": "image_id, instance (0, 1, ... in the order of the box source); sorted",
    "image_sha256": "sha256 of the image file; zeros where it could not be read",
    "bbox": "x, y, w, h in image pixels",
    "target_from_image": "affine, image pixels -> target-map pixels (x, y, 1), pixel centres at integers",
}


def identity(
    plan: StorePlan, fields: Sequence[TargetField], fingerprint: Mapping, shard_size: int
) -> dict[str, object]:
    """What must be equal for two runs to write into one store; differences are told by dotted key."""
    return {
        "fingerprint": canonical(fingerprint),
        "plan": plan_identity(plan),
        "fields": {field.name: _field_identity(field) for field in fields},
        "shard_size": shard_size,
    }


def plan_identity(plan: StorePlan) -> dict[str, object]:
    hashes = {name: sha256(np.ascontiguousarray(getattr(plan, name)).tobytes()) for name in PLAN_ARRAYS}
    return {"instances": len(plan), "size": list(plan.size), **hashes}


def _field_identity(field: TargetField) -> dict[str, object]:
    setting, levels = field.setting, field.attributes.get("levels")
    known = {"dtype": field.dtype, "encoding": field.encoding}
    known |= {"compressor": setting.compressor, "level": setting.level}
    return known if levels is None else {**known, "levels": levels}


def metadata_files(
    plan: StorePlan, fields: Sequence[TargetField], identity: Mapping, attributes: Mapping
) -> dict[str, bytes]:
    """Path below the root -> bytes of all that is known before the first target: zarr.json files, plan."""
    rows, shard_size = len(plan), identity["shard_size"]
    about = group_attributes(identity, attributes)
    files = {"zarr.json": shard.json_bytes(shard.group_metadata(about))}
    for field in fields:
        shape = (rows, *field.shape(plan.size))
        files[f"{field.name}/zarr.json"] = shard.json_bytes(
            shard.sharded_array_metadata(
                shape,
                field.dtype,
                1,
                shard_size,
                compressed=field.setting,
                dimensions=field.dimensions,
                attributes=field.attributes,
            )
        )
    for name, (dtype, shape, dimensions, meaning) in row_arrays(fields).items():
        files[f"{name}/zarr.json"] = shard.json_bytes(
            shard.plain_array_metadata(
                (rows, *shape), dtype, shard_size, dimensions=dimensions, attributes=meaning
            )
        )
    files |= _plan_files(plan)
    return {f"{GROUP}/{name}": data for name, data in files.items()}


def group_attributes(identity: Mapping, attributes: Mapping) -> dict[str, object]:
    """What the group's zarr.json says of the store."""
    about = {
        "format": FORMAT,
        "fingerprint": digest(identity["fingerprint"]),
        "made_from": identity["fingerprint"],
        "size": identity["plan"]["size"],
        **attributes,
    }
    return {"sagecache": about}


def row_arrays(fields: Sequence[TargetField]) -> dict[str, tuple]:
    """Small arrays written with each shard: name -> dtype, shape of a row, dimensions, attributes."""
    arrays = {
        "status": ("uint8", (), ("instance",), {"codes": {str(k): text for k, text in STATUS_TEXT.items()}})
    }
    if any(field.encoding == "instance_levels" for field in fields):
        arrays["depth_range"] = ("float32", (2,), ("instance", "lo_step"), {"meaning": "lo, step"})
    return arrays


def _plan_files(plan: StorePlan) -> dict[str, bytes]:
    """The plan's arrays: each one shard file, with inner chunks of many rows, not compressed."""
    rows, files = len(plan), {}
    chunk_rows = min(rows, PLAN_CHUNK_ROWS)
    slots = shard.shard_count(rows, chunk_rows)
    for name, (dtype, shape) in PLAN_ARRAYS.items():
        array = np.ascontiguousarray(getattr(plan, name), np.dtype(dtype).newbyteorder("<"))
        padded = np.zeros((slots * chunk_rows, *shape), array.dtype)
        padded[:rows] = array
        chunks = [with_checksum(part.tobytes()) for part in np.split(padded, slots)]
        files[shard.shard_key(name, 0, 1 + len(shape))] = shard.shard_bytes(chunks, slots)
        files[f"{name}/zarr.json"] = shard.json_bytes(
            shard.sharded_array_metadata(
                array.shape,
                dtype,
                chunk_rows,
                slots * chunk_rows,
                compressed=None,
                dimensions=_DIMENSIONS[name],
                attributes={"meaning": _MEANING[name]},
            )
        )
    return files


def read_plan(root: Path) -> StorePlan:
    """The plan of a store. Raises SagecacheError where its arrays are damaged."""
    pool = open_pool(root)
    arrays = {name: Column(root / GROUP / name, pool).read_all() for name in PLAN_ARRAYS}
    try:
        return StorePlan(size=tuple(read_manifest(root)["identity"]["plan"]["size"]), **arrays)
    except ValueError as error:  # arrays of different lengths
        raise SagecacheError(f"the plan is damaged ({error})", file=root / GROUP, fix=_FORCE) from error


def manifest(identity: Mapping, attributes: Mapping, files: Mapping[str, bytes]) -> dict:
    return {
        "format": FORMAT,
        "fingerprint_sha256": digest(identity["fingerprint"]),
        "identity": identity,
        "attributes": attributes,
        "files": {name: [len(data), sha256(data)] for name, data in sorted(files.items())},
    }


def read_manifest(root: Path) -> dict | None:
    """The manifest of a store, or None where there is none. Raises for a newer format and for damage.

    What it returns has every key that the format names, each of its type.
    """
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        version = content["format"]
        newer = type(version) is int and version > FORMAT
        wrong = None if newer else _first_fault(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        newer, wrong = False, f"{type(error).__name__}: {error}"
    if wrong:
        raise SagecacheError(f"the manifest is damaged ({wrong})", file=path, fix=_FORCE)
    if newer:
        raise SagecacheError(
            f"the store has format {version}, this sagecache knows format {FORMAT}",
            file=path,
            fix="Update sagecache, or make the store anew with --force.",
        )
    return content


_FORCE = "Make the store anew with --force; this one is kept beside it."
_SHA256 = re.compile("[0-9a-f]{64}")


def _first_fault(content: dict) -> str | None:
    """What of a manifest cannot be; a missing key raises as it does."""
    identity, files = content["identity"], content["files"].values()
    plan, size = identity["plan"], identity["plan"]["size"]
    hashes = [
        content["fingerprint_sha256"],
        *(plan[name] for name in PLAN_ARRAYS),
        *(sha for _, sha in files),
    ]
    if not all(_SHA256.fullmatch(text) for text in hashes):
        return "a sha256 that is none"
    counts = [
        content["format"],
        identity["shard_size"],
        plan["instances"],
        *size,
        *(count for count, _ in files),
    ]
    if len(size) != 2 or not all(type(count) is int and count > 0 for count in counts):
        return "a number that is no positive integer"
    objects = (
        content["attributes"],
        identity["fingerprint"],
        identity["fields"],
        *identity["fields"].values(),
    )
    return None if all(isinstance(value, dict) for value in objects) else "a value that is no object"


# ------------------------------------------------------------------------------------------------- seal
def seal(manifest: bytes, journal: bytes | None, instances: int, shard_size: int) -> dict[str, object]:
    """What complete.json holds: numbers to see, and hashes of the two files that vouch for all others."""
    return {
        "shards": shard.shard_count(instances, shard_size),
        "instances": instances,
        "journal_sha256": None if journal is None else sha256(journal),
        _MANIFEST_HASH: sha256(manifest),
    }


_MANIFEST_HASH = "manifest_sha256"  # stores that were finished before it was added lack it


def sealed_manifest(root: Path) -> str | None:
    """The sha256 of the manifest that a store was completed with; None where that is not told."""
    path = root / COMPLETE
    try:
        return json.loads(path.read_bytes())[_MANIFEST_HASH] if path.exists() else None
    except (ValueError, KeyError, TypeError):  # damaged, or of a store that was finished without it
        return None


def seal_faults(found: object, expected: Mapping) -> dict[str, str]:
    """File -> what is wrong, for what complete.json holds against what it should."""
    if not isinstance(found, dict) or found.keys() | {_MANIFEST_HASH} != expected.keys():
        return {COMPLETE: "damaged (its keys are not those of a finished store)"}
    wrong = {name for name, value in found.items() if value != expected[name]}
    files = {_MANIFEST_HASH: MANIFEST, "journal_sha256": FINISHED}
    faults = {
        file: "not the one that the store was completed with" for key, file in files.items() if key in wrong
    }
    for name in sorted(wrong - files.keys()):
        faults[COMPLETE] = f"{name} is {found[name]!r}, the manifest says {expected[name]!r}"
    return faults
