"""Targets out of a store, decoded, for tools that know nothing of it: npz, Parquet, pictures.

Depth and normals are float32 in the store's units and frame, NaN where there is none. An export stands there
whole or not at all.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store.codec import decode_depth, decode_normal
from sagecache.store.files import unused_name
from sagecache.store.reader import StoreReader

BATCH = 32  # instances decoded at once
FILE_BYTES = 256 << 20  # of values in one Parquet file
Key = tuple[int, int]
Instance = dict[str, np.ndarray]  # as ``decoded`` gives it


def export(
    reader: StoreReader,
    keys: Sequence[Key],
    folder: Path,
    format: str,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path | None:
    """Write the targets of instances that have some; returns where a former export was moved, or None.

    format: a key of FORMATS. force: a folder that is not empty is set aside under another name; without it
    that is an error. Raises SagecacheError.
    """
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not force:
        raise SagecacheError(
            "it is there and not empty",
            file=folder,
            fix="Name another folder, or --force: it sets this one aside under another name.",
        )
    folder = folder.absolute()
    with _whole(folder) as making:
        FORMATS[format](making, reader, _counted(decoded(reader, keys), len(keys), progress))
        replaced = folder.rename(unused_name(folder.with_name(f"{folder.name}.replaced"))) if taken else None
    return replaced


def decoded(reader: StoreReader, keys: Sequence[Key]) -> Iterator[Instance]:
    """Of each instance what the store has of depth (h, w), normal (3, h, w) float32 and mask (h, w) bool; and
    target_from_image (3, 3), bbox (4,) xywh float64, image_id, instance () int64."""
    for start in range(0, len(keys), BATCH):
        some = keys[start : start + BATCH]
        stored = reader.read_many(some)
        maps = {name: stored[name] for name in reader.fields}
        if "depth" in maps:
            maps["depth"] = decode_depth(maps["depth"], stored.get("depth_range"))
        if "normal" in maps:
            maps["normal"] = decode_normal(maps["normal"])
        if "mask" in maps:
            for name in {"depth", "normal"} & set(maps):
                on = maps["mask"] if name == "depth" else maps["mask"][:, None]
                maps[name] = np.where(on, maps[name], np.float32(np.nan))
        maps |= {"target_from_image": stored["target_from_image"], "bbox": reader.boxes(some)}
        maps["image_id"], maps["instance"] = np.asarray(some, np.int64).T
        yield from ({name: values[k] for name, values in maps.items()} for k in range(len(some)))


def write_npz(folder: Path, reader: StoreReader, instances: Iterable[Instance]) -> None:
    """``<image_id>_<instance>.npz`` with the keys of ``decoded``."""
    for instance in instances:
        np.savez(folder / f"{_name(instance)}.npz", **instance)


def write_parquet(folder: Path, reader: StoreReader, instances: Iterable[Instance]) -> None:
    """``targets-00000.parquet``, …: what pandas.read_parquet and datasets.load_dataset("parquet") read."""
    writer = ParquetWriter(folder, reader)
    for instance in instances:
        writer.add(instance)
    writer.close()


class ParquetWriter:
    """A row an instance; arrays are flat lists of fixed length, their shapes in the schema's metadata."""

    def __init__(self, folder: Path, reader: StoreReader) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise SagecacheError(
                "exporting to Arrow needs the package pyarrow", fix="pip install 'sagecache[arrow]'"
            ) from error
        self._arrow, self._folder, self._reader = pyarrow, folder, reader
        self._rows: list[Instance] = []
        self._file, self._files, self._held = None, 0, 0

    def add(self, instance: Instance) -> None:
        self._rows.append(instance)
        if len(self._rows) == BATCH:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._next()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = {name: np.stack([row[name] for row in self._rows]) for name in self._rows[0]}
        shapes = {name: list(values.shape[1:]) for name, values in columns.items() if values.ndim > 1}
        arrays = {name: self._column(values) for name, values in columns.items()}
        about = {"sagecache": json.dumps({"shapes": shapes, "fields": _about(self._reader)})}
        table = self._arrow.table(arrays).replace_schema_metadata(about)
        if self._file is None:
            path = self._folder / f"targets-{self._files:05d}.parquet"
            self._file = self._arrow.parquet.ParquetWriter(path, table.schema)
            self._files += 1
        self._file.write_table(table)
        self._rows, self._held = [], self._held + table.nbytes
        if self._held >= FILE_BYTES:
            self._next()

    def _next(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._held = None, 0

    def _column(self, values: np.ndarray):
        flat = self._arrow.array(values.reshape(-1))
        if values.ndim == 1:
            return flat
        return self._arrow.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))


def write_images(folder: Path, reader: StoreReader, instances: Iterable[Instance]) -> None:
    """Pictures to look at: ``<image_id>_<instance>_depth.png`` (16 bits), ``_normal.png``, ``_mask.png``.

    Beside them ``<image_id>_<instance>.json`` says what their values mean.
    """
    fields = _about(reader)
    for instance in instances:
        name, about = _name(instance), {"fields": fields}
        for key in ("image_id", "instance", "bbox", "target_from_image"):
            about[key] = instance[key].tolist()
        if "depth" in instance:
            levels, about["depth"] = _depth_levels(instance["depth"])
            _write_png(folder / f"{name}_depth.png", levels)
        if "normal" in instance:
            about["normal"] = {"formula": "n = value / 127.5 - 1, R G B = x y z; black: none"}
            normal = instance["normal"]  # of a lossless store as the teacher gave it, of any length
            normal = normal / np.linalg.norm(normal, axis=0)
            levels = np.rint(np.nan_to_num((normal + 1) * 127.5, nan=0.0)).astype(np.uint8)
            _write_png(folder / f"{name}_normal.png", levels.transpose(1, 2, 0)[..., ::-1])  # OpenCV: BGR
        if "mask" in instance:
            _write_png(folder / f"{name}_mask.png", instance["mask"].astype(np.uint8) * 255)
        (folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


def _write_png(path: Path, pixels: np.ndarray) -> None:
    import cv2

    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())  # imwrite tells no full disk


def _counted(
    instances: Iterable[Instance], count: int, progress: Callable[[int, int], None]
) -> Iterator[Instance]:
    for done, instance in enumerate(instances, 1):
        yield instance
        progress(done, count)


FORMATS: dict[str, Callable[[Path, StoreReader, Iterable[Instance]], None]] = {
    "npz": write_npz,
    "arrow": write_parquet,
    "images": write_images,
}


def _depth_levels(depth: np.ndarray) -> tuple[np.ndarray, dict[str, object]]:
    """Depth over its own range in 1..65535, 0 where there is none, and how to come back."""
    there = np.isfinite(depth)
    lo, hi = (float(depth[there].min()), float(depth[there].max())) if there.any() else (0.0, 0.0)
    step = (hi - lo) / 65534
    levels = np.zeros(depth.shape, np.uint16)
    levels[there] = np.rint((depth[there].astype(float) - lo) / step if step else 0).astype(np.uint16) + 1
    formula = "depth = lo + (value - 1) * step for value > 0; 0: none"
    return levels, {"lo": lo, "hi": hi, "step": step, "formula": formula}


def _about(reader: StoreReader) -> dict[str, dict]:
    """What the values mean: kind and unit of depth, frame of normals, where a mask comes from."""
    known = ("kind", "unit", "frame", "made_by")
    about = {name: reader.field_attributes(name) for name in reader.fields}
    return {name: {key: facts[key] for key in known if key in facts} for name, facts in about.items()}


def _name(instance: Instance) -> str:
    return f"{int(instance['image_id'])}_{int(instance['instance'])}"


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name when all went well, and is removed otherwise."""
    making = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.sagecache-tmp")
    making.mkdir(parents=True)
    try:
        yield making
        making.replace(folder)
    except BaseException:
        shutil.rmtree(making)
        raise
