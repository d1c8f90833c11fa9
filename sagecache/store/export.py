"""Targets out of a store, decoded, for tools that know nothing of it: npz, Parquet, pictures.

Depth and normals are float32 in the store's units and frame, NaN where there is none. An export stands there
whole or not at all.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store.codec import decode_depth, decode_normal
from sagecache.store.files import unused_name
from sagecache.store.reader import StoreReader

BATCH = 32  # instances decoded at once
FILE_BYTES = 256 << 20  # of values in one Parquet file
Key = tuple[int, int]


class Writer(Protocol):
    """Takes instances one by one, as ``decoded`` gives them."""

    def add(self, instance: dict[str, np.ndarray]) -> None: ...

    def close(self) -> None: ...


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
        writer = FORMATS[format](making, reader)
        for done, instance in enumerate(decoded(reader, keys), 1):
            writer.add(instance)
            progress(done, len(keys))
        writer.close()
        replaced = folder.rename(unused_name(folder.with_name(f"{folder.name}.replaced"))) if taken else None
    return replaced


def decoded(reader: StoreReader, keys: Sequence[Key]) -> Iterator[dict[str, np.ndarray]]:
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


class NpzWriter:
    """``<image_id>_<instance>.npz`` with the keys of ``decoded``."""

    def __init__(self, folder: Path, reader: StoreReader) -> None:
        self._folder = folder

    def add(self, instance: dict[str, np.ndarray]) -> None:
        np.savez(self._folder / f"{_name(instance)}.npz", **instance)

    def close(self) -> None:
        pass


class ParquetWriter:
    """``targets-00000.parquet``, …: what pandas.read_parquet and datasets.load_dataset("parquet") read.

    A row an instance; arrays are flat lists of fixed length, their shapes stand in the schema's metadata.
    """

    def __init__(self, folder: Path, reader: StoreReader) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise SagecacheError(
                "exporting to Arrow needs the package pyarrow", fix="pip install 'sagecache[arrow]'"
            ) from error
        self._arrow, self._folder, self._reader = pyarrow, folder, reader
        self._rows: list[dict[str, np.ndarray]] = []
        self._file, self._files, self._held = None, 0, 0

    def add(self, instance: dict[str, np.ndarray]) -> None:
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


class ImageWriter:
    """Pictures to look at: ``<image_id>_<instance>_depth.png`` (16 bits), ``_normal.png``, ``_mask.png``.

    Beside them ``<image_id>_<instance>.json`` says what their values mean.
    """

    def __init__(self, folder: Path, reader: StoreReader) -> None:
        self._folder, self._about = folder, _about(reader)

    def add(self, instance: dict[str, np.ndarray]) -> None:
        name, about = _name(instance), {"fields": self._about}
        for key in ("image_id", "instance", "bbox", "target_from_image"):
            about[key] = instance[key].tolist()
        if "depth" in instance:
            levels, about["depth"] = _depth_levels(instance["depth"])
            self._write(f"{name}_depth.png", levels)
        if "normal" in instance:
            about["normal"] = {"formula": "n = value / 127.5 - 1, R G B = x y z; black: none"}
            normal = instance["normal"]  # of a lossless store as the teacher gave it, of any length
            normal = normal / np.linalg.norm(normal, axis=0)
            levels = np.rint(np.nan_to_num((normal + 1) * 127.5, nan=0.0)).astype(np.uint8)
            self._write(f"{name}_normal.png", levels.transpose(1, 2, 0)[..., ::-1])  # OpenCV takes BGR
        if "mask" in instance:
            self._write(f"{name}_mask.png", instance["mask"].astype(np.uint8) * 255)
        (self._folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")

    def close(self) -> None:
        pass

    def _write(self, name: str, pixels: np.ndarray) -> None:
        import cv2

        path = self._folder / name
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())  # imwrite tells no full disk


FORMATS: dict[str, Callable[[Path, StoreReader], Writer]] = {
    "npz": NpzWriter,
    "arrow": ParquetWriter,
    "images": ImageWriter,
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


def _name(instance: dict[str, np.ndarray]) -> str:
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
