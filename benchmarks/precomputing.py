"""(c) How much of ``run_geo``'s time the teacher works; (d) how long a run takes that has nothing left to do.

The teacher is the demo's, in the setting of the demo project (maps of 96x128, flip test), on all cores. Its
calls are timed by a wrapper. The share counts from the begin of its first call to the end of its last; that
of the whole run also has hashing the images, opening and finishing the store.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks.material import Material, TeacherRun
from benchmarks.results import Section, Table, at_least, short
from benchmarks.scale import LARGE, title
from sagecache.cli.jobs import geo_job
from sagecache.precompute.runner import run_geo
from sagecache.teachers.demo import DemoGeometry

LEAST = 90.0  # per cent


def measure(material: Material) -> Section:
    runs = [material.geometry("unlabeled")]
    teacher = runs[0].teacher.teacher
    runs += [
        material.run_teacher(teacher, material.folder / f"share-{number}")
        for number in range(1, material.scale.teacher_runs)
    ]
    large = material.run_teacher(DemoGeometry(map_size=LARGE), material.folder / "share-large")
    again = [_resume(material, teacher) for _ in range(3)]
    rows = [
        _row(f"demo project's setting, maps {title(teacher.spec.map_size)}", runs),
        _row(f"the same, maps {title(LARGE)}", [large]),
    ]
    columns = [
        "teacher",
        "instances",
        "teacher's share, first to last call",
        "share of the whole run",
        "seconds in the teacher",
        "seconds in all",
    ]
    share = 100 * median(run.share for run in runs)
    whole = 100 * median(run.share_of_all for run in runs)
    resume = Table(
        "A run with nothing left to do",
        ["instances", "seconds, median of 3"],
        [[str(runs[0].report.total), short(median(again))]],
        "Hashing the images, opening the store, looking whether all is there, finishing it.",
    )
    goals = [
        at_least("teacher's share of run_geo, first to last call (wall, two cores)", LEAST, share, "%"),
        at_least("teacher's share of the whole run_geo (wall, two cores)", LEAST, whole, "%"),
    ]
    values = {"share": share, "share of all": whole, "resume seconds": median(again)}
    text = f"Medians of {len(runs)} runs (the second row: one). Each starts with an empty folder."
    return Section("Precompute", text, [Table("Teacher's share", columns, rows), resume], goals, values)


def _row(name: str, runs: list[TeacherRun]) -> list[str]:
    return [
        name,
        str(runs[0].report.total),
        f"{100 * median(run.share for run in runs):.1f} %",
        f"{100 * median(run.share_of_all for run in runs):.1f} %",
        short(median(run.teacher.busy for run in runs)),
        short(median(run.report.seconds for run in runs)),
    ]


def _resume(material: Material, teacher) -> float:
    job = geo_job(material.project, "unlabeled")
    began = time.perf_counter()
    report = run_geo(job, teacher)
    if report.computed:
        raise ValueError("the run was to find all done")
    return time.perf_counter() - began
