"""The steps of phase one: what is missing -> engine -> commit -> report. Each may be killed and run again.

Takes plain values and objects of the teacher protocols; knows no project and no command line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagecache.data.coco import load_json
from sagecache.errors import SagecacheError
from sagecache.precompute.engines import get_engine
from sagecache.precompute.imported import ImportedMaps, ImportWork
from sagecache.precompute.jobs import (
    DEFAULTS,
    DetectJob,
    GeoJob,
    Progress,
    RunOptions,
    StatsJob,
    StepReport,
    no_progress,
)
from sagecache.precompute.parts import PartsWriter, set_parts_aside
from sagecache.precompute.pipeline import ordered_map
from sagecache.precompute.plan import CODE_FORMAT, GeoPlan, hash_images, limited, plan_geo
from sagecache.precompute.steps import DetectWork, FailedItem, GeoShard, GeoWork
from sagecache.skeleton.measure import stacked_keypoints
from sagecache.skeleton.stats import SkeletonStats, compute_stats
from sagecache.store import StoreReader, StoreWriter, is_others_empty_start, pending, set_aside
from sagecache.store.files import is_remote, open_root, sizes
from sagecache.store.fingerprint import describe, diff, digest
from sagecache.store.ids import IdIndex
from sagecache.store.layout import COMPLETE
from sagecache.store.spec import NOT_DONE

if TYPE_CHECKING:
    from sagecache.teachers.base import Detector, Teacher


def run_geo(
    job: GeoJob,
    teacher: Teacher | ImportedMaps,
    options: RunOptions = DEFAULTS,
    progress: Progress = no_progress,
) -> StepReport:
    """Depth, normals and masks of every instance into one store; resumes where a run was cut off."""
    began = time.perf_counter()
    root, plan = lay_out(job, teacher, options, progress)
    alone = options.world_size == 1 and not is_remote(root)  # object stores have no locks
    aside = options.force or (alone and is_others_empty_start(root, plan.fingerprint))
    replaced = set_aside(root) if aside else None
    filled = _Filled()
    if not _sealed(root, plan, job):
        filled = _fill(root, plan, job, teacher, options, progress)
    return StepReport(
        "geo",
        root,
        len(plan.instances),
        filled.computed,
        _failures(root, plan, filled.failed, teacher),
        _size(root),
        time.perf_counter() - began,
        replaced,
        filled.missing,
        filled.teacher_seconds,
    )


def _sealed(root: Path, plan: GeoPlan, job: GeoJob) -> bool:
    """Whether a store is complete and in a folder that can't be written: then it is used as it is."""
    if is_remote(root) or os.access(root, os.W_OK) or not (root / COMPLETE).is_file():
        return False
    return not pending(root, plan.store, plan.fields, plan.fingerprint, job.shard_size)


@dataclass
class _Filled:
    """Instances made, seconds in the teacher, what failed by (image_id, instance), what is left to others."""

    computed: int = 0
    teacher_seconds: float = 0.0
    failed: dict[tuple[int, int], FailedItem] = field(default_factory=dict)
    missing: int = 0


def _fill(
    root: Path,
    plan: GeoPlan,
    job: GeoJob,
    teacher: Teacher | ImportedMaps,
    options: RunOptions,
    progress: Progress,
) -> _Filled:
    """Make the missing shards, each written while the next one is computed."""
    total, filled = len(plan.instances), _Filled()
    with StoreWriter.open(
        root,
        plan.store,
        plan.fields,
        plan.fingerprint,
        job.attributes,
        job.shard_size,
        shared=options.world_size > 1,
        waiting=_waiting(progress),
    ) as store:
        missing = {k: _positions(store, plan, k) for k in options.own(store.missing(options.verify))}
        kind = ImportWork if isinstance(teacher, ImportedMaps) else GeoWork
        work = kind(plan, teacher, missing, job.batch_size, options.workers)
        clock = _Clock(progress, total, total - sum(map(len, missing.values())), "targets")

        def results() -> Iterator[tuple[int, GeoShard]]:
            for number, shard in get_engine(options.engine)(work, list(missing), clock.advance):
                if options.strict:
                    _stop_at(shard.failed)
                yield number, shard

        def commit(result: tuple[int, GeoShard]) -> GeoShard:
            number, shard = result
            store.commit(number, shard.rows)
            return shard

        for shard in ordered_map(commit, results(), workers=1, ahead=1):
            filled.computed += len(shard.rows)
            filled.teacher_seconds += shard.seconds
            filled.failed |= {(item.image_id, item.instance): item for item in shard.failed}
        if not store.finish():
            filled.missing = sum(len(store.todo(k)) for k in store.missing())
    return filled


def _positions(store: StoreWriter, plan: GeoPlan, shard: int) -> list[int]:
    """Where the instances that a shard lacks stand in our plan.

    Raises SagecacheError for one that a run before this one meant to make and our split no longer has.
    """
    wanted = store.plan.ids[list(store.todo(shard))]
    positions = IdIndex(plan.store.ids).find(wanted)
    if (positions < 0).any():
        image_id, instance = wanted[int(positions.argmin())].tolist()
        raise SagecacheError(
            "an unfinished run was to make this instance, and it is no longer in the split",
            file=store.root,
            record=f"image_id {image_id}, instance {instance}",
            fix="Put it back, or --force: it sets the old store aside under another name (nothing is "
            "deleted) and computes all anew.",
        )
    return positions.tolist()


def run_detect(
    job: DetectJob, detector: Detector, options: RunOptions = DEFAULTS, progress: Progress = no_progress
) -> StepReport:
    """Person boxes of every image into one COCO detection file; resumes where a run was cut off."""
    began = time.perf_counter()
    result, images = limited(Path(job.result), job.images, options.limit)
    replaced = set_parts_aside(result) if options.force else None
    progress(0, 0, "reading images")
    parts = [images[k : k + job.part_size] for k in range(0, len(images), job.part_size)]
    identity, computed, left, failures = detect_identity(images, detector, job.part_size), 0, 0, []
    waiting = _waiting(progress)
    with PartsWriter(result, identity, len(parts), options.world_size > 1, waiting) as writer:
        missing = options.own(writer.missing())
        clock = _Clock(progress, len(images), len(images) - sum(len(parts[k]) for k in missing), "boxes")
        work = DetectWork(parts, detector, job.batch_size, options.workers)
        for number, part in get_engine(options.engine)(work, missing, clock.advance):
            if options.strict:
                _stop_at(part.failed)
            failed = [{"image_id": item.image_id, "reason": item.reason} for item in part.failed]
            writer.commit(number, part.detections, failed)
            computed += len(parts[number])
        if writer.finish():
            paths = dict(images)
            failures = [
                FailedItem(item["image_id"], None, item["reason"], paths[item["image_id"]])
                for item in writer.failed
            ]
        else:
            left = sum(len(parts[k]) for k in writer.missing())
    size, persons = (result.stat().st_size, len(load_json(result))) if result.is_file() else (0, None)
    seconds = time.perf_counter() - began
    return StepReport(
        "detect", result, len(images), computed, failures, size, seconds, replaced, left, persons=persons
    )


def run_stats(job: StatsJob, options: RunOptions = DEFAULTS, progress: Progress = no_progress) -> StepReport:
    """Robust summaries of limb lengths, angles and visibility. One quick pass: made anew or not at all.

    Statistics that are there are compared and left as they are. Raises SagecacheError for other labels' ones.
    """
    began = time.perf_counter()
    result, instances = limited(Path(job.result), job.instances, options.limit)
    labeled = [one for one in instances if one.keypoints is not None and (one.keypoints[:, 2] > 0).any()]
    progress(0, len(labeled), "statistics")
    keypoints = stacked_keypoints(labeled, job.skeleton)
    bboxes = np.array([one.bbox for one in labeled], float).reshape(-1, 4)
    content = {"instances": len(labeled), "keypoints": keypoints.tolist(), "bboxes": bboxes.tolist()}
    provenance = {"labels_sha256": digest(content), "code_format": CODE_FORMAT["stats"]}
    replaced, computed = None, 0
    if result.exists() and not options.force:
        known = SkeletonStats.load(result, job.skeleton).provenance
        if differences := diff(known, provenance):
            trial = "" if result == Path(job.result) else f" --limit {options.limit}"
            raise SagecacheError(
                f"it was made from other labels ({describe(differences)})",
                file=result,
                fix=f"Run: sagecache precompute stats{trial} --force (it is quick, and keeps the old file "
                "under another name); or put the old labels back.",
            )
    else:
        stats = compute_stats(keypoints, bboxes, job.skeleton, provenance=provenance)
        replaced = set_parts_aside(result) if options.force else None
        stats.save(result)
        computed = len(labeled)
    progress(len(labeled), len(labeled), "statistics")
    seconds = time.perf_counter() - began
    return StepReport("stats", result, len(labeled), computed, [], result.stat().st_size, seconds, replaced)


def _waiting(progress: Progress) -> Callable[[], None]:
    return lambda: progress(0, 0, "waiting for another run that is at work here")


class _Clock:
    """Counts items across shards for the progress callback."""

    def __init__(self, progress: Progress, total: int, done: int, message: str) -> None:
        self._progress, self._total, self._done, self._message = progress, total, done, message
        progress(done, total, message)

    def advance(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total, self._message)


def lay_out(
    job: GeoJob, teacher: Teacher | ImportedMaps, options: RunOptions, progress: Progress
) -> tuple[Path, GeoPlan]:
    root, instances = limited(open_root(job.root), job.instances, options.limit)
    progress(0, 0, "reading images")
    return root, plan_geo(instances, teacher.spec, teacher.fingerprint(), job.crop, job.codec)


def detect_identity(images: Sequence[tuple[int, Path]], detector: Detector, part_size: int) -> dict:
    ids = [image_id for image_id, _ in images]
    if ids != sorted(set(ids)):
        raise SagecacheError("images must be unique and ordered by image_id")
    hashes = hash_images([path for _, path in images])
    content = digest([[image_id, hashes[path].tobytes().hex()] for image_id, path in images])
    return {
        "detector": dict(detector.fingerprint()),
        "images": {"count": len(images), "sha256": content},
        "code_format": CODE_FORMAT["detect"],
        "part_size": part_size,
    }


def _stop_at(failed: Sequence[FailedItem]) -> None:
    if failed:
        first = failed[0]
        where = f"image_id {first.image_id}"
        where += "" if first.instance is None else f", instance {first.instance}"
        raise SagecacheError(
            first.reason,
            file=first.path,
            record=where,
            fix="Mend or remove it, or run without --strict: failures are then noted and the run goes on.",
        )


def _failures(
    root: Path, plan: GeoPlan, details: Mapping, teacher: Teacher | ImportedMaps
) -> list[FailedItem]:
    """details: FailedItem of those that failed in this run, by key; of the others the store has a status."""
    paths = {one.key: one.path for one in plan.instances}
    items, imported = [], isinstance(teacher, ImportedMaps)
    for failure in StoreReader(root, partial=True).failures():
        key = (failure.image_id, failure.instance)
        if failure.status != NOT_DONE and key in paths:  # the split may have lost some
            known = failure.reason, paths[key]
            if imported and key not in details:
                known = teacher.reason(paths[key], failure.status)
            items.append(details.get(key) or FailedItem(*key, *known))
    return items


def _size(folder: Path) -> int:
    return sum(sizes(folder).values())
