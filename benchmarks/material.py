"""What is measured on: rendered images, the demo teacher's output for them, stores that hold it.

A small project of the demo's pages, with fewer images. Each piece is made on first use and kept for the
whole run; the timings of making it (the teacher's share) are a by-product.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.containers import settle
from benchmarks.scale import Scale, title
from sagecache.cli.jobs import geo_job
from sagecache.precompute.jobs import StepReport
from sagecache.precompute.runner import run_geo
from sagecache.project import Project
from sagecache.project.project import embedded_project
from sagecache.store import StorePlan, StoreWriter, TargetField, build_fields
from sagecache.store.codec import EncodedRow, encode_row
from sagecache.synth.looks import LOOKS
from sagecache.synth.write import write_split
from sagecache.teachers.base import Teacher
from sagecache.teachers.demo import DemoGeometry
from sagecache.teachers.registry import build_teacher


@dataclass
class WatchedTeacher:
    """A teacher whose calls are timed. keep: also keep its maps, batch after batch."""

    teacher: Teacher
    keep: bool = False
    calls: list[tuple[float, float]] = field(default_factory=list)  # begin, end
    outputs: list[dict] = field(default_factory=list)

    @property
    def spec(self):
        return self.teacher.spec

    def fingerprint(self) -> dict:
        return self.teacher.fingerprint()

    def __call__(self, crops: np.ndarray) -> dict:
        began = time.perf_counter()
        maps = self.teacher(crops)
        self.calls.append((began, time.perf_counter()))
        if self.keep:
            self.outputs.append({name: value.clone() for name, value in maps.items()})
        return maps

    @property
    def busy(self) -> float:
        """Seconds inside calls."""
        return sum(end - begin for begin, end in self.calls)

    @property
    def span(self) -> float:
        """Seconds from the begin of the first call to the end of the last."""
        return self.calls[-1][1] - self.calls[0][0]


@dataclass(frozen=True)
class TeacherRun:
    """One ``run_geo``: the store that it made, who ran in it, how long it took."""

    report: StepReport
    teacher: WatchedTeacher

    @property
    def share(self) -> float:
        """Of the time from the first call of the teacher to the end of its last, what it worked."""
        return self.teacher.busy / self.teacher.span

    @property
    def share_of_all(self) -> float:
        """The same of the whole run: reading and hashing images, opening and finishing the store included."""
        return self.teacher.busy / self.report.seconds


class Material:
    """Lives in ``folder``; see the methods."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder, self.scale = folder, scale
        self._runs: dict[tuple[int, int], TeacherRun] = {}
        self._geometry: dict[str, TeacherRun] = {}

    @cached_property
    def project(self) -> Project:
        """The demo project with rendered splits: labeled, unlabeled, and few (for the ViT)."""
        folder = self.folder / "project"
        shutil.copytree(embedded_project(), folder, ignore=shutil.ignore_patterns("data.py", "__pycache__"))
        counts = {"labeled": 24, "unlabeled": self.scale.images, "few": max(1, self.scale.vit_instances)}
        pages = {
            name: {"images": f"{name}/images", "annotations": f"{name}/annotations.json"} for name in counts
        }
        page = f"""splits = {pages!r}
teacher = dict(type="demo", flip_test=True, map_size=(96, 128))
"""
        (folder / "data.py").write_text(page, encoding="utf-8")
        for seed, (name, count) in enumerate(counts.items(), 101):
            write_split(folder / name, LOOKS["target"], count, seed, geometry=False)
        return Project.open(folder)

    def teacher_run(self, size: tuple[int, int]) -> TeacherRun:
        """The demo teacher over the unlabeled split with maps of size (width, height), its maps kept."""
        if size not in self._runs:
            root = self.folder / f"geo-{title(size)}"
            self._runs[size] = self.run_teacher(DemoGeometry(map_size=size), root, keep=True)
        return self._runs[size]

    def run_teacher(self, teacher: Teacher, root: Path, split: str = "unlabeled", keep=False) -> TeacherRun:
        """Make a store of a split at root, as ``sagecache precompute geo`` does."""
        job = replace(geo_job(self.project, split), root=root)
        width, height = teacher.spec.input_size
        batch = min(job.batch_size, len(job.instances))
        teacher(np.zeros((batch, height, width, 3), np.uint8))  # allocations, kernels chosen
        watched = WatchedTeacher(teacher, keep)
        return TeacherRun(run_geo(job, watched), watched)

    def geometry(self, split: str) -> TeacherRun:
        """The project's own store of a split, by the project's own teacher: what training reads."""
        if split not in self._geometry:
            teacher, root = build_teacher(self.project.data.teacher), self.project.geometry_store(split)
            self._geometry[split] = self.run_teacher(teacher, root, split)
        return self._geometry[split]

    def maps(self, size: tuple[int, int]) -> list[dict[str, np.ndarray]]:
        """What the teacher gave for each instance, as ``codec.encode_row`` takes it; without empty masks."""
        batches = self.teacher_run(size).teacher.outputs
        maps = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}
        maps["mask"] = maps["mask"] > 0.5
        rows = ({name: values[k] for name, values in maps.items()} for k in range(len(maps["mask"])))
        return [row for row in rows if row["mask"].any()]

    def rows(self, size: tuple[int, int]) -> list[EncodedRow]:
        """The teacher's output in the default setting, an encoded row an instance."""
        fields = fields_of(self.teacher_run(size).teacher.spec)
        return [encode_row(fields, maps) for maps in self.maps(size)]

    def store(self, size: tuple[int, int]) -> Path:
        """A store of ``scale.instances`` rows of real targets, repeated: each row has bytes of its own."""
        root = self.folder / title(size) / "store"
        if not root.exists():
            fields = fields_of(self.teacher_run(size).teacher.spec)
            write_store(root, size, fields, self.rows(size), self.scale.instances[size])
            settle(root)
        return root


def fields_of(spec, setting: str = "fast") -> tuple[TargetField, ...]:
    """The fields of a teacher's store in one setting, a key of ``store.spec.SETTINGS``."""
    return build_fields(spec.outputs, spec.depth_kind, spec.unit, spec.mask_from, setting)


def plan_of(count: int, size: tuple[int, int]) -> StorePlan:
    """A plan of count instances, one an image."""
    return StorePlan(
        ids=np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.int64),
        image_sha256=np.zeros((count, 32), np.uint8),
        bbox=np.ones((count, 4)),
        target_from_image=np.broadcast_to(np.eye(3), (count, 3, 3)).copy(),
        size=size,
    )


def open_writer(root: Path, plan: StorePlan, fields: Sequence, shard_size: int | None = None) -> StoreWriter:
    """shard_size: None for the default of the maps' size."""
    return StoreWriter.open(root, plan, fields, {"made_by": "benchmarks"}, {}, shard_size)


def write_store(root: Path, size: tuple[int, int], fields: Sequence, rows: Sequence[EncodedRow], count: int):
    """A complete store of count instances; rows are repeated until there are enough."""
    supply = cycle(rows)
    with without_fsync(), open_writer(root, plan_of(count, size), fields) as store:
        for shard in store.missing():
            store.commit(shard, list(islice(supply, len(store.rows(shard)))))
        store.finish()


@contextmanager
def without_fsync():
    """Nothing waits for the disk inside: for material, and to compare with writers that never do."""
    with mock.patch("os.fsync", lambda descriptor: None):
        yield
