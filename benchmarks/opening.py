"""(d) Taking up an unfinished store, and (e) opening a finished one, by its size.

The stores hold tiny maps (16x12, a few encoded rows again and again), so that a million instances take
seconds to write; plan, ids, journal, shards and indices are of the full number, in shards of the size that
maps of 256x192 get.
Opening is measured in fresh processes that import the reader and nothing else, page cache warm.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from benchmarks.material import Material, fields_of, open_writer, plan_of, without_fsync
from benchmarks.results import Section, Table, at_most, short
from benchmarks.scale import LARGE
from sagecache.store.codec import encode_row
from sagecache.store.shard import default_shard_size
from sagecache.teachers.demo import DemoGeometry

SIZE = (12, 16)
SHARD_SIZE = default_shard_size(LARGE)
OPEN_LIMIT, MEMORY_LIMIT = 0.5, 100.0  # seconds, MB resident
PROBE = Path(__file__).with_name("opening_probe.py")


def measure(material: Material) -> Section:
    rows = _tiny_rows(material)
    found = {}
    for count in material.scale.opening:
        folder = material.folder / f"opening-{count}"
        resume = _write(folder, count, rows, material.scale.open_rounds)
        probes = [_probe(folder) for _ in range(material.scale.open_rounds + 1)][1:]  # the first warms up
        found[count] = _medians(probes) | {"resume s": resume}
        shutil.rmtree(folder)
    largest = max(found)
    goals = [
        at_most(f"opening {largest:,} instances (wall)", OPEN_LIMIT, found[largest]["open s"], "s"),
        at_most(
            f"resident memory of a process that opened {largest:,} instances",
            MEMORY_LIMIT,
            found[largest]["open rss"] * 1.048576,
            "MB",
        ),
    ]
    columns = [
        "instances",
        "open s",
        "first batch of 64, s",
        "MiB resident before / open / after the batch",
        "MiB unique, after the batch",
        "resume s (writer: open, list what is missing)",
    ]
    lines = [
        [
            f"{count:,}",
            short(one["open s"]),
            short(one["first batch s"]),
            f"{one['before rss']:.0f} / {one['open rss']:.0f} / {one['read rss']:.0f}",
            f"{one['read uss']:.0f}",
            short(one["resume s"]),
        ]
        for count, one in found.items()
    ]
    text = (
        f"Maps of 16x12, shards of {SHARD_SIZE}. 'Before' is the interpreter with the reader's imports; "
        f"importing takes {short(found[largest]['import s'])} s. Resuming: all shards are there but the last."
    )
    values = {str(count): one for count, one in found.items()}
    return Section("Opening and resuming", text, [Table("By size", columns, lines)], goals, values)


def _tiny_rows(material: Material) -> list:
    teacher = DemoGeometry(map_size=SIZE)
    run = material.run_teacher(teacher, material.folder / "tiny", split="labeled", keep=True)
    batch = run.teacher.outputs[0]
    maps = {name: values.numpy() for name, values in batch.items()}
    maps["mask"] = maps["mask"] > 0.5
    rows = [{name: values[k] for name, values in maps.items()} for k in range(len(maps["mask"]))]
    return [encode_row(fields_of(teacher.spec), row) for row in rows if row["mask"].any()]


def _write(folder: Path, count: int, rows: list, rounds: int) -> float:
    """Make a complete store; returns the median seconds of taking it up with its last shard missing."""
    fields, plan = fields_of(DemoGeometry(map_size=SIZE).spec), plan_of(count, SIZE)
    supply = cycle(rows)
    with without_fsync(), open_writer(folder, plan, fields, SHARD_SIZE) as store:
        for shard in range(store.shards - 1):
            store.commit(shard, list(islice(supply, len(store.rows(shard)))))
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        with open_writer(folder, plan, fields, SHARD_SIZE) as store:
            missing = store.missing()
        seconds.append(time.perf_counter() - began)
    with without_fsync(), open_writer(folder, plan, fields, SHARD_SIZE) as store:
        for shard in missing:
            store.commit(shard, list(islice(supply, len(store.rows(shard)))))
        store.finish()
    return median(seconds)


def _probe(folder: Path) -> dict:
    """What a fresh process says; flat: 'open rss' and so on."""
    command = [sys.executable, str(PROBE), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(PROBE.parents[1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result = json.loads(done.stdout)
    flat = {key: value for key, value in result.items() if not isinstance(value, dict)}
    for when in ("before", "open", "read"):
        flat |= {f"{when} {kind}": value for kind, value in result[when].items()}
    return flat


def _medians(probes: list[dict]) -> dict:
    return {key: median(probe[key] for probe in probes) for key in probes[0]}
