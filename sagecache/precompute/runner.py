"""The steps of phase one: what is missing -> engine -> commit -> report. Each may be killed and run again.

Takes plain values and objects of the teacher protocols; knows no project and no command line.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.precompute.engines import get_engine
from sagecache.precompute.parts import PARTS_FIX, Parts, PartsWriter, set_parts_aside
from sagecache.precompute.plan import CODE_FORMAT, CropRule, GeoPlan, hash_images, limited, plan_geo
from sagecache.precompute.steps import FailedItem, GeoShard, detect_part, geo_shard
from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.measure import stacked_keypoints
from sagecache.skeleton.stats import SkeletonStats, compute_stats
from sagecache.store import StoreReader, StoreWriter, pending, set_aside
from sagecache.store.fingerprint import describe, diff, digest
from sagecache.store.ids import IdIndex
from sagecache.store.layout import COMPLETE
from sagecache.structures import Instance

if TYPE_CHECKING:
    from sagecache.teachers.base import Detector, Teacher

Progress = Callable[[int, int, str], None]  # done, total, what is being done


def no_progress(done: int, total: int, message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class GeoJob:
    """One store to make.

    root: the store's folder. instances: unique; new ones of a store that is there are added to it.
    attributes: noted in the store for readers ('split', and 'command': what makes it, quoted in errors).
    codec: a key of ``store.spec.SETTINGS``. shard_size: instances a shard, what a kill may cost; None: that
    of the store that is there, or one that suits the size of the maps.
    """

    root: Path
    instances: Sequence[Instance]
    crop: CropRule
    attributes: Mapping = field(default_factory=dict)
    shard_size: int | None = None
    batch_size: int = 16
    codec: str = "fast"


@dataclass(frozen=True)
class DetectJob:
    """One detection file to make: ``result`` is a path that ends in .json; images are (image_id, path)."""

    result: Path
    images: Sequence[tuple[int, Path]]
    part_size: int = 64
    batch_size: int = 8


@dataclass(frozen=True)
class StatsJob:
    """Skeleton statistics of the labeled persons among instances, into one JSON file."""

    result: Path
    instances: Sequence[Instance]
    skeleton: Skeleton


@dataclass(frozen=True)
class RunOptions:
    """limit: only the first items, into a place of their own. force: set an existing result aside and compute
    all anew. strict: stop at the first item that fails. engine: a key of ``engines.ENGINES``.
    """

    limit: int | None = None
    force: bool = False
    strict: bool = False
    engine: str = "local"


@dataclass(frozen=True)
class StepReport:
    """What a step did. failed lists all items without a result, those of earlier runs included."""

    step: str
    path: Path
    total: int
    computed: int
    failed: list[FailedItem]
    bytes: int
    seconds: float
    replaced: Path | None = None

    @property
    def rate(self) -> float:
        """Items computed in this run per second of it."""
        return self.computed / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Estimate:
    """What a run would do, measured on a few instances: bytes of the whole, seconds for what is missing."""

    total: int
    missing: int
    bytes: int
    seconds: float


def run_geo(
    job: GeoJob, teacher: Teacher, options: RunOptions = RunOptions(), progress: Progress = no_progress
) -> StepReport:
    """Depth, normals and masks of every instance into one store; resumes where a run was cut off."""
    began = time.perf_counter()
    root, plan = _plan(job, teacher, options, progress)
    replaced = set_aside(root) if options.force else None
    computed, details = (
        (0, {}) if _sealed(root, plan, job) else _fill(root, plan, job, teacher, options, progress)
    )
    seconds = time.perf_counter() - began
    failed = _failures(root, plan, details)
    return StepReport("geo", root, len(plan.instances), computed, failed, _size(root), seconds, replaced)


def _sealed(root: Path, plan: GeoPlan, job: GeoJob) -> bool:
    """Whether a store is complete and in a folder that can't be written: then it is used as it is."""
    if os.access(root, os.W_OK) or not (root / COMPLETE).is_file():
        return False
    return not pending(root, plan.store, plan.fields, plan.fingerprint, job.shard_size)


def _fill(
    root: Path, plan: GeoPlan, job: GeoJob, teacher: Teacher, options: RunOptions, progress: Progress
) -> tuple[int, dict[tuple[int, int], FailedItem]]:
    """Make the missing shards; returns how many instances, and what failed by (image_id, instance)."""
    total, computed, details = len(plan.instances), 0, {}
    with StoreWriter.open(
        root, plan.store, plan.fields, plan.fingerprint, job.attributes, job.shard_size
    ) as store:
        missing = {number: _positions(store, plan, number) for number in store.missing()}
        clock = _Clock(progress, total, total - sum(map(len, missing.values())), "targets")

        def compute(number: int) -> GeoShard:
            return geo_shard(plan, teacher, missing[number], job.batch_size, clock.advance)

        for number, result in get_engine(options.engine)(compute, missing):
            if options.strict:
                _stop_at(result.failed)
            store.commit(number, result.rows)
            computed += len(result.rows)
            details |= {(item.image_id, item.instance): item for item in result.failed}
        store.finish()
    return computed, details


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


def estimate_geo(
    job: GeoJob,
    teacher: Teacher,
    options: RunOptions = RunOptions(),
    progress: Progress = no_progress,
    sample: int = 16,
) -> Estimate:
    """What ``run_geo`` would do; writes nothing, runs the teacher on ``sample`` instances of the whole."""
    root, plan = _plan(job, teacher, options, progress)
    total = len(plan.instances)
    if total == 0:
        return Estimate(0, 0, 0, 0.0)
    missing = total
    if not options.force:
        missing = pending(root, plan.store, plan.fields, plan.fingerprint, job.shard_size)
    rows = np.unique(np.linspace(0, total - 1, sample).astype(int)).tolist()
    geo_shard(plan, teacher, rows[:1], job.batch_size)  # first pass: allocations, kernels chosen
    began = time.perf_counter()
    encoded = geo_shard(plan, teacher, rows, job.batch_size).rows
    seconds = (time.perf_counter() - began) / len(rows)
    chunk_bytes = sum(len(chunk) + 16 for row in encoded for chunk in row.chunks.values()) / len(rows)
    plan_bytes = 152 + 9  # ids, hash, box and affine; status and depth range
    return Estimate(total, missing, round((chunk_bytes + plan_bytes) * total), seconds * missing)


def estimate_detect(
    job: DetectJob, detector: Detector, options: RunOptions = RunOptions(), sample: int = 16
) -> Estimate:
    """What ``run_detect`` would do; writes nothing, runs the detector on ``sample`` images of the whole."""
    result, images = limited(Path(job.result), job.images, options.limit)
    if not images:
        return Estimate(0, 0, 0, 0.0)
    parts = [images[k : k + job.part_size] for k in range(0, len(images), job.part_size)]
    numbers = range(len(parts))
    if not options.force:
        numbers = Parts(result, _detect_identity(images, detector, job.part_size), len(parts)).missing()
    rows = np.unique(np.linspace(0, len(images) - 1, sample).astype(int)).tolist()
    detect_part([images[rows[0]]], detector, job.batch_size)  # first pass: allocations, kernels chosen
    began = time.perf_counter()
    found = detect_part([images[row] for row in rows], detector, job.batch_size).detections
    seconds = (time.perf_counter() - began) / len(rows)
    missing = sum(len(parts[k]) for k in numbers)
    return Estimate(
        len(images), missing, round(len(json.dumps(found)) / len(rows) * len(images)), seconds * missing
    )


def run_detect(
    job: DetectJob, detector: Detector, options: RunOptions = RunOptions(), progress: Progress = no_progress
) -> StepReport:
    """Person boxes of every image into one COCO detection file; resumes where a run was cut off."""
    began = time.perf_counter()
    result, images = limited(Path(job.result), job.images, options.limit)
    replaced = set_parts_aside(result) if options.force else None
    progress(0, len(images), "reading images")
    parts = [images[k : k + job.part_size] for k in range(0, len(images), job.part_size)]
    computed = 0
    with PartsWriter(result, _detect_identity(images, detector, job.part_size), len(parts)) as writer:
        missing = writer.missing()
        clock = _Clock(progress, len(images), len(images) - sum(len(parts[k]) for k in missing), "boxes")

        def compute(number: int):
            return detect_part(parts[number], detector, job.batch_size, clock.advance)

        for number, part in get_engine(options.engine)(compute, missing):
            if options.strict:
                _stop_at(part.failed)
            failed = [{"image_id": item.image_id, "reason": item.reason} for item in part.failed]
            writer.commit(number, part.detections, failed)
            computed += len(parts[number])
        writer.finish()
        paths = dict(images)
        failures = [
            FailedItem(item["image_id"], None, item["reason"], paths[item["image_id"]])
            for item in writer.failed
        ]
    seconds = time.perf_counter() - began
    return StepReport(
        "detect", result, len(images), computed, failures, result.stat().st_size, seconds, replaced
    )


def run_stats(
    job: StatsJob, options: RunOptions = RunOptions(), progress: Progress = no_progress
) -> StepReport:
    """Robust summaries of limb lengths, angles and visibility. One quick pass: made anew or not at all."""
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
            raise SagecacheError(
                f"it was made from other labels ({describe(differences)})", file=result, fix=PARTS_FIX
            )
    else:
        stats = compute_stats(keypoints, bboxes, job.skeleton, provenance=provenance)
        replaced = set_parts_aside(result) if options.force else None
        stats.save(result)
        computed = len(labeled)
    progress(len(labeled), len(labeled), "statistics")
    seconds = time.perf_counter() - began
    return StepReport("stats", result, len(labeled), computed, [], result.stat().st_size, seconds, replaced)


def estimate_stats(job: StatsJob, options: RunOptions = RunOptions()) -> Estimate:
    """What ``run_stats`` would do: it is quick, so it is done, elsewhere. Writes nothing that stays."""
    result, instances = limited(Path(job.result), job.instances, options.limit)
    with tempfile.TemporaryDirectory() as folder:
        report = run_stats(replace(job, result=Path(folder) / result.name, instances=instances))
    missing = report.total if options.force or not result.exists() else 0
    return Estimate(report.total, missing, report.bytes, report.seconds)


class _Clock:
    """Counts items across shards for the progress callback."""

    def __init__(self, progress: Progress, total: int, done: int, message: str) -> None:
        self._progress, self._total, self._done, self._message = progress, total, done, message
        progress(done, total, message)

    def advance(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total, self._message)


def _plan(job: GeoJob, teacher: Teacher, options: RunOptions, progress: Progress) -> tuple[Path, GeoPlan]:
    root, instances = limited(Path(job.root), job.instances, options.limit)
    progress(0, len(instances), "reading images")
    return root, plan_geo(instances, teacher.spec, teacher.fingerprint(), job.crop, job.codec)


def _detect_identity(images: Sequence[tuple[int, Path]], detector: Detector, part_size: int) -> dict:
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


def _failures(root: Path, plan: GeoPlan, details: Mapping) -> list[FailedItem]:
    paths = {one.key: one.path for one in plan.instances}
    items = []
    for failure in StoreReader(root).failures():
        key = (failure.image_id, failure.instance)
        if key in paths:  # a store may hold instances that the split no longer has
            items.append(details.get(key) or FailedItem(*key, failure.reason, paths[key]))
    return items


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
