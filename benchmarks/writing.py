"""(c) Writing one shard of real targets: ours against zarr-python's whole-shard writing and other containers.

All start from the stored values (uint16 depth, two bytes of normal, mask) of the same instances and write
the same codecs, where they have any; zarr-python writes the shard in one assignment an array, its fastest
way. Ours waits for the disk (fsync of each file and folder) and writes a journal, the others do not; so ours
is shown both ways, and the ratio quoted is without, like with like.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.containers import FIELDS
from benchmarks.material import Material, fields_of, open_writer, plan_of, without_fsync
from benchmarks.results import Section, Table, at_least, short
from benchmarks.scale import LARGE, title
from benchmarks.timing import Samples, interleaved
from sagecache.store import StoreReader
from sagecache.store.codec import EncodedRow, encode_row, pack
from sagecache.store.spec import OK

SHARD_SIZE = 256
OWN, OWN_SYNCED = "sagecache, no fsync", "sagecache, fsync"
FROM_FLOATS = "sagecache from float32 maps, fsync"
ZARR = "zarr-python, whole shard"


def measure(material: Material) -> Section:
    """At 256x192, one shard of SHARD_SIZE (fewer rows in a quick run)."""
    store = StoreReader(material.store(LARGE))
    count = min(SHARD_SIZE, len(store))
    stored = {name: values for name, values in store.read_many(store.ids[:count].tolist()).items()}
    ways = _ways(material, stored, count)
    folder = material.folder / "writing"
    samples = interleaved(
        {name: _case(folder, way, count) for name, way in ways.items()}, material.scale.shard_writes
    )
    goal = at_least(
        "zarr-python's whole-shard writing / shard writing (wall, no fsync on either side)",
        2.5,
        samples[ZARR].ratio_to(samples[OWN], "wall"),
    )
    synced = at_least(
        "zarr-python's whole-shard writing / shard writing with fsync and journal (wall)",
        2.5,
        samples[ZARR].ratio_to(samples[OWN_SYNCED], "wall"),
    )
    table = _table(samples, count)
    values = {name: 1 / one.median("wall") for name, one in samples.items()}
    text = (
        f"One shard of {count} instances at {title(LARGE)}, from stored values in memory to files. From "
        "float32 maps: quantising depth and normals included, which is what precompute does for each batch."
    )
    return Section("Writing", text, [table], [goal, synced], values)


Way = Callable[[Path], None]


def _ways(material: Material, stored: dict[str, np.ndarray], count: int) -> dict[str, Way]:
    spec = material.teacher_run(LARGE).teacher.spec
    fields, plan = fields_of(spec), plan_of(count, LARGE)
    maps = material.maps(LARGE)

    def own(folder: Path) -> None:
        rows = [
            EncodedRow(OK, tuple(stored["depth_range"][k]), {name: pack(stored[name][k]) for name in FIELDS})
            for k in range(count)
        ]
        with open_writer(folder, plan, fields, SHARD_SIZE) as writer:
            writer.commit(0, rows)

    def own_unsynced(folder: Path) -> None:
        with without_fsync():
            own(folder)

    def from_floats(folder: Path) -> None:
        rows = [encode_row(fields, maps[k % len(maps)]) for k in range(count)]
        with open_writer(folder, plan, fields, SHARD_SIZE) as writer:
            writer.commit(0, rows)

    def npz(folder: Path) -> None:
        folder.mkdir(parents=True)
        for k in range(count):
            np.savez(folder / f"{k:07d}.npz", **{name: stored[name][k] for name in FIELDS})

    def memmap(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in FIELDS:
            np.save(folder / f"{name}.npy", stored[name])

    def zarr_python(folder: Path) -> None:
        _write_by_zarr(folder, material.store(LARGE), stored, count)

    ways = {OWN: own_unsynced, OWN_SYNCED: own, FROM_FLOATS: from_floats, ZARR: zarr_python}
    return ways | {"one .npz an image": npz, "raw .npy a field": memmap}


def _write_by_zarr(folder: Path, store: Path, stored: dict[str, np.ndarray], count: int) -> None:
    """Arrays like those of the store, each filled by one assignment."""
    import zarr

    source = zarr.open_group(str(store / "targets.zarr"), mode="r")
    group = zarr.create_group(str(folder), zarr_format=3)
    for name in FIELDS:
        like = source[name]
        array = group.create_array(
            name,
            shape=(count, *like.shape[1:]),
            dtype=like.dtype,
            chunks=like.chunks,
            shards=(SHARD_SIZE, *like.shape[1:]),
            compressors=like.compressors,
            filters=None,
        )
        array[:] = stored[name]


def _case(folder: Path, way: Way, count: int):
    def case() -> int:
        way(folder)
        shutil.rmtree(folder)
        return count

    return case


def _table(samples: dict[str, Samples], count: int) -> Table:
    own = samples[OWN]
    rows = [
        [
            name,
            short(1e6 * one.median("wall")),
            short(1e6 * one.median("cpu")),
            f"{1 / one.median('wall'):,.0f}",
            short(one.ratio_to(own, "wall")),
        ]
        for name, one in sorted(samples.items(), key=lambda item: item[1].median("wall"))
    ]
    columns = ["way", "wall us an instance", "CPU us", "instances a second", f"wall, {OWN} = 1"]
    return Table(f"Writing {count} instances at {title(LARGE)}", columns, rows)
