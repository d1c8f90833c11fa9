"""(a) A batch of random instances (depth, normal, mask) into memory that is there already: one process, warm.

Every file was just read, so pages come from the page cache; the stores are larger than the processor's own
caches. The ratio quoted is one of CPU time; wall time stands beside it.
"""

from __future__ import annotations

import numpy as np

from benchmarks import containers, readers
from benchmarks.material import Material
from benchmarks.results import Goal, Section, Table, at_least, at_most, short
from benchmarks.scale import LARGE, SMALL, title
from benchmarks.timing import Case, Samples, interleaved

DECODE_THREE = "in memory: three chunks decoded"
DECODE = "in memory: two decoded, mask derived"
DECODE_UNCHECKED = "in memory: two decoded unchecked, mask derived"
MEMMAP, ZARR = "np.memmap, raw float16", "zarr-python, same files"
# name -> least ratio to the direct reader, as the issue states it for both sizes
RIVALS = {
    "tensorstore, same files": 5.0,
    "one .npz an image": 4.0,
    "LMDB, same chunks": 3.0,
    "LMDB, zstd bitshuffle": 3.0,
    "Arrow (datasets), same chunks": 3.0,
    "Arrow (datasets), arrays": 3.0,
    "litData, same chunks": 10.0,
    "litData, arrays": 10.0,
}
QUICK_NAMES = ("sagecache", MEMMAP, "LMDB, same chunks", "one .npz an image", ZARR)
DECODE_LIMIT, ZARR_LEAST = {LARGE: 1.15, SMALL: 1.4}, {LARGE: 30.0, SMALL: 90.0}


def measure(material: Material) -> Section:
    tables, goals, values = [], [], {}
    for size in (LARGE, SMALL):
        samples, absent = _measure_size(material, size)
        tables.append(_table(size, samples, absent))
        goals += _goals(size, samples)
        values[title(size)] = {
            name: {
                "cpu_us": 1e6 * one.median("cpu"),
                "wall_us": 1e6 * one.median("wall"),
                "cpu_ratio": one.ratio_to(samples["sagecache"], "cpu"),
            }
            for name, one in samples.items()
        }
    text = (
        f"Batches of {material.scale.batch} random instances, depth + normal + mask in stored form, into "
        "arrays allocated before; one process, page cache warm. Real output of the demo teacher for "
        f"{material.scale.images} images, repeated to fill the stores. Every way was checked to give the "
        "same values. Decoding in memory draws its chunks from as large a set as the readers draw theirs "
        "from. By the format depth stands just where the mask is true, so ours, and every rival that reads "
        "our chunks or files, reads depth and normals only and derives the mask once a batch; decoding all "
        "three chunks, which the issue names, is measured beside that."
    )
    return Section("Random reads, one process", text, tables, goals, values)


def _measure_size(material: Material, size) -> tuple[dict[str, Samples], list[str]]:
    store = material.store(size)
    names = tuple(readers.WAYS) if material.scale.everything else QUICK_NAMES
    found, absent = readers.build(material.folder / title(size), store, names)
    spec = readers.spec_of(store)
    found[DECODE_THREE] = readers.InMemory(store, spec, containers.FIELDS)
    found[DECODE] = readers.InMemory(store, spec)
    found[DECODE_UNCHECKED] = readers.InMemory(store, spec, checked=False)
    rng, count, batch = np.random.default_rng(0), material.scale.instances[size], material.scale.batch
    for reader in found.values():  # fills the page cache, reads every index
        for path in containers.files_below(reader.folder):
            path.read_bytes()
        out = readers.allocate(reader.spec, batch)
        for start in range(0, count - batch + 1, batch * reader.slowness):
            reader.read(np.arange(start, start + batch), out)
    cases = {name: _case(reader, rng, count, batch) for name, reader in found.items()}
    samples = interleaved(cases, material.scale.read_rounds)
    for reader in found.values():
        reader.close()
    return samples, absent


def _case(reader: readers.Reader, rng: np.random.Generator, count: int, batch: int) -> Case:
    """Two batches for the fast, less for the slow: about as long for each."""
    rows = max(8, 2 * batch // reader.slowness)
    size = min(rows, batch)
    out = readers.allocate(reader.spec, size)

    def case() -> int:
        for _ in range(rows // size):
            reader.read(rng.integers(0, count, size), out)
        return rows

    return case


def _table(size, samples: dict[str, Samples], absent: list[str]) -> Table:
    own = samples["sagecache"]
    rows = [
        [
            name,
            short(1e6 * one.median("cpu")),
            short(1e6 * one.median("wall")),
            short(one.ratio_to(own, "cpu")),
            short(one.ratio_to(own, "wall")),
        ]
        for name, one in sorted(samples.items(), key=lambda item: item[1].median("cpu"))
    ]
    columns = ["way", "CPU us an instance", "wall us", "CPU, sagecache = 1", "wall, sagecache = 1"]
    note = "Not installed: " + "; ".join(absent) if absent else ""
    return Table(f"Random reads at {title(size)}", columns, rows, note)


def _goals(size, samples: dict[str, Samples]) -> list[Goal]:
    own, name = samples["sagecache"], title(size)
    decoding = {
        DECODE_THREE: "decoding the same three chunks in memory: depth, normal, mask; the issue's wording",
        DECODE: "decoding depth and normals in memory, mask derived; like with like",
    }
    goals = [
        at_most(f"random read / {work} (CPU, {name})", DECODE_LIMIT[size], own.ratio_to(samples[way], "cpu"))
        for way, work in decoding.items()
    ]
    rivals = {ZARR: ZARR_LEAST[size], **RIVALS}
    goals += [
        at_least(f"{rival} / random read (CPU, {name})", least, samples[rival].ratio_to(own, "cpu"))
        for rival, least in rivals.items()
        if rival in samples
    ]
    return goals
