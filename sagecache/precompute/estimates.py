"""What a run would do: counted, and measured on a few instances. Nothing is written that stays."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sagecache.data.splits import evenly
from sagecache.precompute.jobs import DEFAULTS, DetectJob, GeoJob, Progress, RunOptions, StatsJob, no_progress
from sagecache.precompute.parts import Parts
from sagecache.precompute.plan import limited
from sagecache.precompute.runner import detect_identity, lay_out, run_stats
from sagecache.precompute.steps import detect_part, geo_shard
from sagecache.store import pending

if TYPE_CHECKING:
    from sagecache.teachers.base import Detector, Teacher


@dataclass(frozen=True)
class Estimate:
    """What a run would do, measured on a few instances: bytes of the whole, seconds for what is missing."""

    total: int
    missing: int
    bytes: int
    seconds: float


def estimate_geo(
    job: GeoJob,
    teacher: Teacher,
    options: RunOptions = DEFAULTS,
    progress: Progress = no_progress,
    sample: int = 16,
) -> Estimate:
    """What ``run_geo`` would do; writes nothing, runs the teacher on ``sample`` instances of the whole."""
    root, plan = lay_out(job, teacher, options, progress)
    total = len(plan.instances)
    if total == 0:
        return Estimate(0, 0, 0, 0.0)
    missing = total
    if not options.force:
        missing = pending(root, plan.store, plan.fields, plan.fingerprint, job.shard_size)
    rows = evenly(range(total), sample)
    geo_shard(plan, teacher, rows[:1], job.batch_size)  # first pass: allocations, kernels chosen
    began = time.perf_counter()
    encoded = geo_shard(plan, teacher, rows, job.batch_size).rows
    seconds = (time.perf_counter() - began) / len(rows)
    chunk_bytes = sum(len(chunk) + 16 for row in encoded for chunk in row.chunks.values()) / len(rows)
    plan_bytes = 152 + 9  # ids, hash, box and affine; status and depth range
    return Estimate(total, missing, round((chunk_bytes + plan_bytes) * total), seconds * missing)


def estimate_detect(
    job: DetectJob, detector: Detector, options: RunOptions = DEFAULTS, sample: int = 16
) -> Estimate:
    """What ``run_detect`` would do; writes nothing, runs the detector on ``sample`` images of the whole."""
    result, images = limited(Path(job.result), job.images, options.limit)
    if not images:
        return Estimate(0, 0, 0, 0.0)
    parts = [images[k : k + job.part_size] for k in range(0, len(images), job.part_size)]
    numbers = range(len(parts))
    if not options.force:
        numbers = Parts(result, detect_identity(images, detector, job.part_size), len(parts)).missing()
    chosen = evenly(images, sample)
    detect_part(chosen[:1], detector, job.batch_size)  # first pass: allocations, kernels chosen
    began = time.perf_counter()
    found = detect_part(chosen, detector, job.batch_size).detections
    seconds = (time.perf_counter() - began) / len(chosen)
    missing = sum(len(parts[k]) for k in numbers)
    return Estimate(
        len(images), missing, round(len(json.dumps(found)) / len(chosen) * len(images)), seconds * missing
    )


def estimate_stats(job: StatsJob, options: RunOptions = DEFAULTS) -> Estimate:
    """What ``run_stats`` would do: it is quick, so it is done, elsewhere. Writes nothing that stays.

    Raises as ``run_stats`` does for statistics of other labels, which it would refuse.
    """
    result, instances = limited(Path(job.result), job.instances, options.limit)
    if result.exists() and not options.force:
        report = run_stats(job, options)  # compares, and writes nothing
        return Estimate(report.total, 0, report.bytes, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        report = run_stats(replace(job, result=Path(folder) / result.name, instances=instances))
    return Estimate(report.total, report.total, report.bytes, report.seconds)
