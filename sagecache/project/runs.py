"""Work dirs: which run has ended as asked, and which checkpoint stands for it.

mmengine leaves ``best_*.pth`` and ``iter_*.pth`` behind however a run ends. At its start a run notes what it
trains and what from. One that ended by itself also has a marker with its length and its checkpoint; without
one it was killed and can be resumed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sagecache.errors import SagecacheError
from sagecache.project.recipe import Recipe
from sagecache.store.files import write_whole
from sagecache.store.fingerprint import describe, diff
from sagecache.strict import build

MARKER = "finished.json"
STARTED = "recipe.json"
# What may differ in a run that goes on: how it is watched, how fast it reads, and the seed, which it keeps.
FREE = (
    "train_cfg.val_interval",
    "train_cfg.log_interval",
    "train_cfg.checkpoint_interval",
    "batch.workers",
    "data.image_cache_mb",
    "data.probe",
    "guards",
    "seed",
    "vis_backends",
    "default_hooks",
)
# Of these, what makes a finished run another one: the draws, and which of its checkpoints was best.
DECISIVE = ("seed", "train_cfg.val_interval", "default_hooks")


@dataclass(frozen=True)
class FinishedRun:
    """iterations: how many were run. checkpoint: file name in the work dir."""

    iterations: int
    checkpoint: str


@dataclass(frozen=True)
class NotedStart:
    """What a run trains. inputs: digests of what it reads and starts from. processes: that it began with.
    None where they were not noted.
    """

    recipe: Recipe
    model: dict[str, Any]
    inputs: dict[str, Any] | None = None
    processes: int | None = None


def recipe_digest(recipe: Recipe, model: Mapping[str, Any]) -> str:
    """Of all that a recipe and its model say, for the provenance of what a training writes."""
    content = json.dumps([asdict(recipe), model], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def note_start(
    work_dir: Path,
    recipe: Recipe,
    model: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    processes: int | None = None,
) -> None:
    """Write down what a run trains, for those that go on with it or take it for done. Whole or not at all."""
    beside = dict(inputs=inputs, processes=processes)
    text = json.dumps(as_noted(recipe, model) | beside, indent=1) + "\n"
    write_whole(work_dir / STARTED, text.encode())


def noted_start(work_dir: Path) -> NotedStart | None:
    """What `note_start` wrote; None where the run says nothing, or its note is damaged. Keys that are younger
    than the note have their defaults: until they came, all runs were as these say.

    Raises SagecacheError for a note that this version can't read.
    """
    path = work_dir / STARTED
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return build(NotedStart, content, path) if isinstance(content, dict) else None


def shortfall(work_dir: Path, recipe: Recipe, model: Mapping[str, Any], max_iters: int | None = None) -> str:
    """'' where the finished run in work_dir stands for this page, else how it was trained otherwise.

    max_iters: asked for instead of the page's, by a trial.
    """
    run = finished_run(work_dir)
    if run is None:
        return "not to its end"
    if recipe.train_cfg is not None and run.iterations < (max_iters or recipe.train_cfg.max_iters):
        return f"for {run.iterations} of its {max_iters or recipe.train_cfg.max_iters} iterations"
    try:
        started = noted_start(work_dir)
    except SagecacheError as error:
        return f"by another version ({error.message})"
    if started is None:
        return "with settings that it does not tell"
    free = [key for key in FREE if key not in DECISIVE]
    changed = _changed(started, recipe, model, free)
    return f"with other settings than its page's ({changed})" if changed else ""


def changed_since_start(work_dir: Path, recipe: Recipe, model: Mapping[str, Any]) -> str:
    """'' where the run in work_dir is of this recipe (or says nothing), else what differs, old -> new.

    Raises SagecacheError for a note that this version can't read, and for one that is damaged: a run goes on
    as what it was, or not at all.
    """
    started, note = noted_start(work_dir), work_dir / STARTED
    if started is None and note.exists():
        raise SagecacheError(
            "is damaged, and says no more what this run trains",
            file=note,
            fix="Restore it, or train anew: leave --resume out.",
        )
    return "" if started is None else _changed(started, recipe, model, FREE)


def _changed(started: NotedStart, recipe: Recipe, model: Mapping[str, Any], free: Sequence[str]) -> str:
    differences = diff(as_noted(started.recipe, started.model), as_noted(recipe, model))
    kept = [
        one for one in differences if not f"{one[0]}.".startswith(tuple(f"recipe.{key}." for key in free))
    ]
    return describe(kept)


def as_noted(recipe: Recipe, model: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe and its model in JSON's types."""
    return _finite(json.loads(json.dumps(dict(recipe=asdict(recipe), model=model), default=str)))


def _finite(value: Any) -> Any:
    """Infinities (clip_grad's max_norm, to log the norm) as text, which JSON and `diff` can hold."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def mark_finished(work_dir: Path, run: FinishedRun) -> None:
    """Write the marker, whole or not at all."""
    write_whole(work_dir / MARKER, (json.dumps(asdict(run)) + "\n").encode())


def unmark(work_dir: Path) -> None:
    """A resumed run is not finished."""
    (work_dir / MARKER).unlink(missing_ok=True)


# All that a run leaves in its folder, its marker first: without it a run is killed.
LEFT = (
    MARKER,
    "last_checkpoint",
    "iter_*.pth",
    "best_*.pth",
    STARTED,
    "pseudo_labels",
    "[0-9]*_[0-9]*",  # mmengine's logs, by the second
    "predictions_*.json",
    "scored_*.json",
    "disturbed_*.json",
    "report.html",
)


def set_aside(work_dir: Path) -> Path | None:
    """Move what an earlier run left into ``previous-<n>/``: no later --resume takes it for its own, no report
    shows its curves, and it stays whole. Returns that folder, None where nothing was left.
    """
    left = [path for pattern in LEFT for path in sorted(work_dir.glob(pattern))]
    if not left:
        return None
    number = next(n for n in itertools.count(1) if not (work_dir / f"previous-{n}").exists())
    folder = work_dir / f"previous-{number}"
    folder.mkdir()
    for path in left:
        path.rename(folder / path.name)
    return folder


def put_back(work_dir: Path, folder: Path) -> None:
    """Undo `set_aside` for a run that ended without a checkpoint of its own; what it left is set aside."""
    if any(work_dir.glob("*.pth")):
        return
    set_aside(work_dir)
    for path in folder.iterdir():
        path.rename(work_dir / path.name)
    folder.rmdir()


def finished_run(work_dir: Path) -> FinishedRun | None:
    """None for a run that was killed, and where the checkpoint is gone or the marker is damaged."""
    marker = work_dir / MARKER
    if not marker.is_file():
        return None
    try:
        run = build(FinishedRun, json.loads(marker.read_text()), marker)
    except (ValueError, SagecacheError):  # cut, or written by another hand: as good as none
        return None
    return run if (work_dir / run.checkpoint).is_file() else None


def standing_checkpoint(work_dir: Path) -> Path | None:
    """The finished run's checkpoint, else the newest best one, else the last."""
    run = finished_run(work_dir)
    if run is not None:
        return work_dir / run.checkpoint
    for pattern in ("best_*.pth", "iter_*.pth"):
        found = max(work_dir.glob(pattern), key=_written, default=None)
        if found is not None:
            return found
    return None


def newest_work_dir(root: Path) -> Path | None:
    """The folder below root whose checkpoints are the youngest."""
    saved = [path for pattern in ("best_*.pth", "iter_*.pth") for path in root.glob(f"*/{pattern}")]
    newest = max(saved, key=_written, default=None)
    return None if newest is None else newest.parent


def _written(path: Path) -> float:
    return path.stat().st_mtime
