"""What a training reads, as digests: its annotations, and the weights that it starts from."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch

from sagecache.mm.build import start_checkpoint
from sagecache.mm.checkpoints import network_state
from sagecache.project import Project, Recipe
from sagecache.store.fingerprint import file_sha256


def inputs_of(project: Project, recipe: Recipe) -> dict[str, Any]:
    """{'annotations': {split: digest}, 'start': digest or None, 'stores': {split: fingerprints}} as they are
    now; 'stores' only where cached depth and normals are read.

    Raises SagecacheError or OSError where one of them is not there.
    """
    names = [*recipe.data.labeled, recipe.data.val, recipe.data.unlabeled if recipe.uses_unlabeled else None]
    files = {name: project.path(project.split(name).annotations) for name in names if name is not None}
    start = start_checkpoint(project, recipe)
    found: dict[str, Any] = dict(
        annotations={name: file_digest(file) for name, file in files.items()},
        start=None if start is None else weights_digest(start),
    )
    if splits := recipe.geometry_splits:
        found["stores"] = {name: _fingerprints(project, name) for name in splits}
    return found


def _fingerprints(project: Project, split: str) -> list[str]:
    reader = project.joined_targets(split)
    return [one.fingerprint_sha256 for one in getattr(reader, "readers", [reader])]


def file_digest(path: Path) -> str:
    """sha256 of the file's bytes; read once, until its size or date changes."""
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns)


def weights_digest(path: Path) -> str:
    """Of the network that trainings start from, however and whenever its file was written."""
    found = path.stat()
    return _digest_of_weights(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _digest(path: Path, _size: int, _written: int) -> str:
    return file_sha256(path)


@functools.lru_cache(maxsize=256)
def _digest_of_weights(path: Path, _size: int, _written: int) -> str:
    content = hashlib.sha256()
    for name, value in sorted(network_state(path, "ema_teacher").items()):
        numbers = value.contiguous().flatten().view(torch.uint8).numpy()  # numpy has no bfloat16
        content.update(name.encode() + str(tuple(value.shape)).encode() + numbers.tobytes())
    return content.hexdigest()
