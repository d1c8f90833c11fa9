"""A split may grow: rows of new instances go behind those that a store has. No row moves, none is made twice.

While the manifest and the plan's arrays are rewritten, the grown plan lies whole in ``growing.npz``: a run
that finds it carries the growth to its end, whatever of the rest was written.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError, counted
from sagecache.store import layout
from sagecache.store.files import sync_folder, write_whole
from sagecache.store.ids import IdIndex
from sagecache.store.spec import PLAN_ARRAYS, StorePlan

GROWING = "growing.npz"
CHANGED = {"image_sha256": "image", "bbox": "box", "target_from_image": "crop"}


def grow(old: StorePlan, new: StorePlan, root: Path) -> StorePlan:
    """The rows of old, then those of new that old lacks. Rows that only old has stay: their targets hold.

    Raises SagecacheError, naming the first, for instances that both have with another image, box or crop.
    """
    rows = IdIndex(old.ids).find(new.ids)
    both = np.flatnonzero(rows >= 0)
    for name, what in CHANGED.items():
        before, now = getattr(old, name)[rows[both]], getattr(new, name)[both]
        changed = (before != now).reshape(len(both), -1).any(axis=1)
        gone = (
            changed & (name == "image_sha256") & ~now.reshape(len(both), -1).any(axis=1)
        )  # no hash: no file
        if gone.any():
            image_id, instance = new.ids[both[gone.argmax()]].tolist()
            raise SagecacheError(
                f"the image of {counted(int(gone.sum()), 'instance')} is missing or can't be read",
                file=root,
                record=f"image_id {image_id}, instance {instance}",
                fix="Put the image back ('sagecache data check' names its file), or leave it out of the "
                "split: the store keeps its targets.",
            )
        if changed.any():
            image_id, instance = new.ids[both[changed.argmax()]].tolist()
            raise SagecacheError(
                f"{int(changed.sum())} instances have another {what} than when the store was made",
                file=root,
                record=f"image_id {image_id}, instance {instance}",
                fix="Put the old ones back, or --force: it sets the old store aside under another name "
                "(nothing is deleted) and computes all anew.",
            )
    fresh = rows < 0
    if not fresh.any():
        return old
    arrays = {name: np.concatenate([getattr(old, name), getattr(new, name)[fresh]]) for name in PLAN_ARRAYS}
    return StorePlan(size=new.size, **arrays)


def begin(root: Path, plan: StorePlan) -> None:
    """Note the grown plan before anything of the store changes."""
    buffer = io.BytesIO()
    np.savez(buffer, size=plan.size, **{name: getattr(plan, name) for name in PLAN_ARRAYS})
    write_whole(root / GROWING, buffer.getvalue())


def begun(root: Path) -> StorePlan | None:
    """The plan of a growth that was cut off, or None. Raises SagecacheError where it can't be read."""
    path = root / GROWING
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes())) as content:
            arrays = {name: content[name] for name in PLAN_ARRAYS}
            width, height = content["size"].tolist()
            return StorePlan(size=(width, height), **arrays)
    except Exception as error:  # numpy and zipfile tell of damage by a dozen kinds
        command = layout.read_manifest(root)["attributes"].get("command", "sagecache precompute geo")
        raise SagecacheError(
            f"the note of a growth that was cut off is damaged ({type(error).__name__}: {error})",
            file=path,
            fix=f"Delete {GROWING} and run '{command}': it begins the growth again. Where that finds the "
            f"plan half rewritten, only '{command} --force' helps; it keeps the old store beside the new.",
        ) from error


def end(root: Path) -> None:
    """The store is of the grown plan: the note may go."""
    if (root / GROWING).exists():
        (root / GROWING).unlink()
        sync_folder(root)
