"""Pseudo-labels of one moment of a training, kept in a Zarr group of their own.

They change as the teacher does, and so never stand in a store of frozen targets: a folder holds what one
network said at one iteration, and its attributes say which. Written under another name, then renamed: it is
there whole or not at all. Plain Zarr v3, compressed arrays of all instances, for any reader.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zarr

from sagecache.errors import SagecacheError
from sagecache.store.files import move_folder, remove_folder, sync_folder

VERSION = 1
PSEUDO_LABELS = {
    "ids": "image_id, instance",
    "keypoints": "x, y in image pixels, pixel centres at integers",
    "corrected": "the prior's pose, x, y in image pixels; keypoints where no prior was asked",
    "confidence": "in [0, 1], 1 = the peak of a perfect map",
    "plausibility": "kinematic plausibility score in [0, 1]",
    "teacher_a": "whether the hybrid gate took the pose as it is",
    "weights": ">= 0, 0 where a joint is not learned from",
    "places": ">= 0, weights of joints whose place is trusted and whose name, left or right, is not",
    "fate": "why, see the provenance's 'fates'",
}
FACING = {
    "ids": "image_id, instance",
    "votes": "in [-1, 1], above 0 the person is seen from the front (semi.swaps.FacingVote)",
}
KINDS = {"pseudo_labels": PSEUDO_LABELS, "facing": FACING}


def write_labels(
    root: str | Path, arrays: Mapping[str, np.ndarray], provenance: Mapping, kind: str = "pseudo_labels"
) -> None:
    """Write a group of arrays, each with N rows, those of the kind; provenance: plain values for JSON.

    A group that stands there already is replaced. Raises ValueError for other names or unequal lengths.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if set(arrays) != set(KINDS[kind]) or len(set(lengths.values())) != 1:
        raise ValueError(f"{kind} are arrays {sorted(KINDS[kind])} of one length, got {lengths}")
    root = Path(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = root.with_name(f".{root.name}.{secrets.token_hex(4)}.tmp")
    attributes = {"format": f"sagecache.{kind}", "version": VERSION, "provenance": dict(provenance)}
    group = zarr.open_group(temporary, mode="w", zarr_format=3, attributes=attributes)
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        group.create_array(name, data=values, attributes={"meaning": KINDS[kind][name]})
    if root.exists():
        remove_folder(root)
    move_folder(temporary, root)
    sync_folder(root.parent)


def read_labels(root: str | Path, kind: str = "pseudo_labels") -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, provenance). Raises SagecacheError for a folder that is missing, foreign or damaged."""
    root = Path(root)
    try:
        group = zarr.open_group(root, mode="r")
        attributes = dict(group.attrs)
        if (attributes.get("format"), attributes.get("version")) != (f"sagecache.{kind}", VERSION):
            raise SagecacheError(f"is no sagecache.{kind} of version {VERSION}", file=root, fix=REMAKE)
        return {name: group[name][:] for name in KINDS[kind]}, attributes["provenance"]
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        told = str(error).split("\n")[0] or type(error).__name__
        raise SagecacheError(f"can't be read: {told}", file=root, fix=REMAKE) from error


REMAKE = "Train anew (leave --resume out), or resume from an earlier checkpoint."
