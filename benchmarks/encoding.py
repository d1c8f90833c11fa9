"""(b) Bytes an instance, error and speed of each codec setting, on real teacher output.

Encoded into a store and read back through the reader and ``data.targets.dequantise``, as training does;
compared with the teacher's own float32 maps, on the instance's mask.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import readers
from benchmarks.material import Material, fields_of, open_writer, plan_of, without_fsync
from benchmarks.results import Goal, Section, Table, at_most, short
from benchmarks.scale import LARGE, SMALL, title
from benchmarks.timing import Samples, interleaved
from sagecache.data.targets import dequantise
from sagecache.store import StoreReader
from sagecache.store.codec import encode_row
from sagecache.store.spec import SETTINGS

BYTES_LIMIT = {"fast": 55.0, "compact": 40.0}  # KB at 256x192
DEPTH_LIMIT, MEAN_LIMIT, MAX_LIMIT = 2e-4, 0.5, 1.0  # of the instance's range; degrees; degrees
INDEX_BYTES = 16  # of each chunk in its shard's index


def measure(material: Material) -> Section:
    tables, goals, values = [], [], {}
    for size in (LARGE, SMALL):
        maps = material.maps(size)
        spec = material.teacher_run(size).teacher.spec
        facts, writers, decoders = {}, {}, {}
        for setting in SETTINGS:
            fields = fields_of(spec, setting)
            root = material.folder / title(size) / f"setting-{setting}"
            facts[setting] = _bytes_and_errors(root, size, fields, maps)
            writers[setting] = _encoder(fields, maps)
            decoders[setting] = _decoder(root, min(len(maps), material.scale.batch))
        writing = interleaved(writers, max(3, material.scale.read_rounds // 3))
        reading = interleaved(decoders, material.scale.read_rounds)
        tables.append(_table(size, facts, writing, reading))
        values[title(size)] = facts
        if size == LARGE:
            goals = _goals(facts)
    text = (
        f"{len(maps)} persons in {material.scale.images} rendered images, as the demo teacher sees them; "
        "bytes with the index's. Depth error as a share of the instance's own range, normals in degrees. "
        "Raw, with depth in float16 and normals in two bytes: 245.8 KB (256x192), 15.4 KB (64x48)."
    )
    return Section("Codec settings", text, tables, goals, values)


def _bytes_and_errors(root, size, fields, maps) -> dict[str, float]:
    rows = [encode_row(fields, one) for one in maps]
    with without_fsync(), open_writer(root, plan_of(len(rows), size), fields) as store:
        for shard in store.missing():
            store.commit(shard, [rows[k] for k in store.rows(shard)])
        store.finish()
    parts = {
        field.name: sum(len(row.chunks[field.name]) for row in rows) / len(rows) + INDEX_BYTES
        for field in fields
    }
    depth, angles, worst = [], [], 0.0
    reader = StoreReader(root)
    for key, one in zip(reader.ids.tolist(), maps, strict=True):
        read = {name: torch.from_numpy(value) for name, value in reader.read_many([key]).items()}
        found, on = dequantise(read), torch.from_numpy(one["mask"][0])
        if not torch.equal(found["mask"][0, 0], on):
            raise ValueError("the mask that came back is another")
        depth.append(_depth_error(found["depth"][0, 0], torch.from_numpy(one["depth"][0]), on))
        angle = _angles(found["normal"][0], torch.from_numpy(one["normal"]), on)
        angles.append(float(angle.mean()))
        worst = max(worst, float(angle.max()))
    return {
        "bytes": sum(parts.values()),
        **{f"{name} bytes": value for name, value in parts.items()},
        "depth error": max(depth),
        "normal error mean": float(np.mean(angles)),
        "normal error max": worst,
    }


def _depth_error(found: torch.Tensor, true: torch.Tensor, on: torch.Tensor) -> float:
    """Largest |found - true| on the mask, over true's range there."""
    true, found = true[on].double(), found[on].double()
    return float((found - true).abs().max() / (true.max() - true.min()).clamp(min=1e-12))


def _angles(found: torch.Tensor, true: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
    """Degrees between (3, H, W) directions on the mask, by atan2: arccos has no digits near 0."""
    a, b = found[:, on].double(), true[:, on].double()
    return torch.rad2deg(torch.atan2(torch.linalg.cross(a, b, dim=0).norm(dim=0), (a * b).sum(0)))


def _encoder(fields, maps):
    chosen = maps[:16]

    def case() -> int:
        for one in chosen:
            encode_row(fields, one)
        return len(chosen)

    return case


def _decoder(root, count: int):
    reader, rng = StoreReader(root), np.random.default_rng(0)
    keys, out = [tuple(key) for key in reader.ids.tolist()], reader.allocate(count)
    out = {name: out[name] for name in readers.spec_of(root)}

    def case() -> int:
        for _ in range(4):
            reader.read_many([keys[k] for k in rng.integers(0, len(keys), count)], out)
        return 4 * count

    return case


def _table(size, facts: dict, writing: dict[str, Samples], reading: dict[str, Samples]) -> Table:
    rows = []
    for setting, one in facts.items():
        parts = " + ".join(f"{one[f'{name} bytes'] / 1e3:.1f}" for name in ("depth", "normal", "mask"))
        rows.append(
            [
                setting,
                f"{one['bytes'] / 1e3:.1f} ({parts})",
                short(one["depth error"]),
                f"{one['normal error mean']:.2f} / {one['normal error max']:.2f}",
                short(1e6 * writing[setting].median("cpu")),
                short(1e6 * reading[setting].median("cpu")),
            ]
        )
    columns = [
        "setting",
        "KB an instance (depth + normal + mask)",
        "largest depth error",
        "normals, mean / max degrees",
        "encode us",
        "read us",
    ]
    return Table(f"Settings at {title(size)}", columns, rows)


def _goals(facts: dict) -> list[Goal]:
    goals = [
        at_most(f"bytes an instance, {name} (256x192, real teacher)", limit, facts[name]["bytes"] / 1e3, "KB")
        for name, limit in BYTES_LIMIT.items()
    ]
    for name, one in facts.items():
        goals += [
            at_most(f"largest depth error, {name}, of the range", DEPTH_LIMIT, one["depth error"], ""),
            at_most(f"mean error of normals, {name}", MEAN_LIMIT, one["normal error mean"], "degrees"),
            at_most(f"largest error of normals, {name}", MAX_LIMIT, one["normal error max"], "degrees"),
        ]
    return goals
