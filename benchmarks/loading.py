"""(a) DataLoader throughput into batches in shared memory: 2 and 0 workers, page cache warm and cold.

Cold means: our own files, long written out (fsync), had their pages dropped (POSIX_FADV_DONTNEED) before
each epoch, with every reader newly opened, since mapped pages are never dropped. The machine below may still
cache: what the disk delivered is counted by the kernel (read_bytes) and stands in the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks import containers, readers
from benchmarks.material import Material
from benchmarks.results import Section, Table, at_least, short
from benchmarks.scale import LARGE, SMALL, title
from benchmarks.timing import Samples, interleaved

OWN, MEMMAP = "sagecache", "np.memmap, raw float16"
NAMES = [name for name in readers.WAYS if "arrays" not in name and "zstd" not in name]
QUICK_NAMES = (OWN, MEMMAP, "LMDB, same chunks", "one .npz an image")
REOPEN = np.empty(0, np.int64)  # a draw of nothing: the worker closes its reader and opens it again
LEAST = {"warm": 0.95, "cold": 5.0}
SETTLE_SECONDS = 0.3  # for workers to be open and waiting before pages are dropped


class Batches(Dataset):
    """dataset[rows] -> field -> tensor in shared memory, so that a worker hands it over without a copy."""

    def __init__(self, reader: readers.Reader) -> None:
        self.reader = reader

    def __getitem__(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        if len(rows) == 0:
            self.reader.close()
            _ = self.reader.handle
            return {}
        spec = self.reader.spec.items()
        tensors = {name: shared_tensor((len(rows), *shape), dtype) for name, (dtype, shape) in spec}
        self.reader.read(rows, {name: tensor.numpy() for name, tensor in tensors.items()})
        return tensors


def shared_tensor(shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
    """Uninitialised, in memory that other processes can map; made as torch's own collate makes it."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    size = int(np.prod(shape)) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)  # noqa: SLF001, no public name for it
    return torch.empty(0, dtype=kind).set_(storage, 0, shape)


class Draws(Sampler):
    """An epoch of batches of distinct rows; first, where the epoch is cold, a REOPEN for each worker."""

    def __init__(self, count: int, batch: int, batches: int, reopen: int) -> None:
        self.count, self.batch, self.batches, self.reopen = count, batch, batches, reopen
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.batches + self.reopen

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from [REOPEN] * self.reopen
        order = self.rng.permutation(self.count)[: self.batches * self.batch]
        yield from np.split(order, self.batches)


class Epochs:
    """One way's loader, and what an epoch of it costs."""

    def __init__(self, reader: readers.Reader, material: Material, size, workers: int, cold: bool) -> None:
        scale = material.scale
        count = scale.instances[size]
        batch, batches = (
            (scale.batch // 2, scale.cold_batches) if cold else (scale.batch, scale.epoch_batches)
        )
        batches = max(2, batches // reader.slowness)
        self.reader, self.workers = reader, workers
        self.draws = Draws(count, batch, batches, max(1, workers) if cold else 0)
        self.fetched: list[float] = []
        options = {}
        if workers:
            options = dict(
                persistent_workers=True,
                prefetch_factor=1 if cold else 2,  # 1: behind the REOPENs nothing runs ahead
                multiprocessing_context="fork" if reader.forks else "spawn",
            )
        self.loader = DataLoader(
            Batches(reader), batch_size=None, sampler=self.draws, num_workers=workers, **options
        )

    def epoch(self) -> int:
        """Read an epoch; returns its instances. Timed from the first batch asked for to the last had."""
        for _ in self.loader:
            pass
        return self.draws.batches * self.draws.batch

    def cold_epoch(self) -> tuple[float, int]:
        """Seconds an instance of an epoch whose pages were dropped before."""
        batches = iter(self.loader)
        if self.workers:
            time.sleep(SETTLE_SECONDS)
        else:
            next(batches)
        containers.drop_pages(self.reader.folder)
        before, began = disk_bytes(), time.perf_counter()
        for _ in batches:
            pass
        seconds, count = time.perf_counter() - began, self.draws.batches * self.draws.batch
        self.fetched.append((disk_bytes() - before) / count)
        return seconds / count

    def close(self) -> None:
        self.loader = None  # ends the workers
        self.reader.close()


def disk_bytes() -> int:
    """What this process had fetched from disk so far, its workers not included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def measure(material: Material) -> Section:
    tables, goals, values = [], [], {}
    full = material.scale.everything
    for size in (LARGE, SMALL) if full else (LARGE,):
        store = material.store(size)
        found, absent = readers.build(material.folder / title(size), store, NAMES if full else QUICK_NAMES)
        rates: dict[str, dict[str, Samples]] = {}
        for workers in (2, 0) if full else (2,):
            rates[f"{workers} workers, warm"] = _warm(found, material, size, workers)
            rates[f"{workers} workers, cold"], fetched = _cold(found, material, size, workers)
        tables.append(_table(size, rates, fetched, absent))
        for state, least in LEAST.items():
            one = rates[f"2 workers, {state}"]
            goals.append(
                at_least(
                    f"two-worker DataLoader, {state}, rate / raw float16 memmap's (wall, {title(size)})",
                    least,
                    one[MEMMAP].ratio_to(one[OWN], "wall"),
                )
            )
        values[title(size)] = {
            state: {name: 1 / one.median("wall") for name, one in samples.items()}
            for state, samples in rates.items()
        }
    scale = material.scale
    share = scale.cold_batches * scale.batch // 2 / scale.instances[LARGE]
    text = (
        f"Instances a second, batches of {scale.batch} in shared memory (cold: {scale.batch // 2}), epochs "
        "of distinct random rows, wall time. Memory-mapped values are 246 KB an instance at 256x192 (depth "
        "float16, normals as two bytes, mask), copied into the batch. A cold epoch reads a random "
        f"{100 * share:.0f} % of the rows at 256x192: in a store beyond the page cache, what is read ahead "
        "around a row is gone before it is wanted."
    )
    return Section("DataLoader", text, tables, goals, values)


def _warm(found: dict[str, readers.Reader], material: Material, size, workers: int) -> dict[str, Samples]:
    epochs = {name: Epochs(reader, material, size, workers, False) for name, reader in found.items()}
    for reader in found.values():
        for path in containers.files_below(reader.folder):
            path.read_bytes()
    rounds = material.scale.warm_rounds if workers else (material.scale.warm_rounds + 1) // 2
    samples = interleaved({name: one.epoch for name, one in epochs.items()}, rounds)
    for one in epochs.values():
        one.close()
    return samples


def _cold(
    found: dict[str, readers.Reader], material: Material, size, workers: int
) -> tuple[dict[str, Samples], dict[str, float]]:
    """Samples, and bytes fetched from disk an instance (by this process: those of workers are not seen)."""
    epochs = {name: Epochs(reader, material, size, workers, True) for name, reader in found.items()}
    samples = {name: Samples() for name in epochs}
    rng = np.random.default_rng(0)
    for number in range(-1, material.scale.cold_rounds):  # the first starts the workers
        for name in rng.permutation(list(epochs)).tolist():
            seconds = epochs[name].cold_epoch()
            if number >= 0:
                samples[name].wall.append(seconds)
    fetched = {
        name: float(np.median(one.fetched[1:])) if workers == 0 else np.nan for name, one in epochs.items()
    }
    for one in epochs.values():
        one.close()
    return samples, fetched


def _table(size, rates: dict[str, dict[str, Samples]], fetched: dict[str, float], absent: list[str]) -> Table:
    names = sorted(rates["2 workers, warm"], key=lambda name: rates["2 workers, warm"][name].median("wall"))
    rows = []
    for name in names:
        row = [name]
        for samples in rates.values():
            own, one = samples[OWN], samples[name]
            row.append(f"{1 / one.median('wall'):,.0f} ({short(own.ratio_to(one, 'wall'))})")
        rows.append([*row, f"{fetched[name] / 1e3:,.0f}"])
    columns = ["way", *rates, "KB from disk an instance (0 workers, cold)"]
    note = "In brackets: rate, sagecache = 1. "
    note += "Not installed: " + "; ".join(absent) if absent else ""
    return Table(f"DataLoader at {title(size)}, instances a second", columns, rows, note.strip())
