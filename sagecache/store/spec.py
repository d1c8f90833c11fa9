"""What a store holds: its fields, its statuses, its plan. Values only; nothing here touches a disk.

A field is one array of targets, one chunk an instance. The plan says which instance stands in which
row, and where the target map of that instance lies in its image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import numpy as np

from sagecache.errors import SagecacheError, nearest
from sagecache.store.ids import first_repeated

FORMAT = 1  # raised by hand whenever a reader of the older format would read wrong values
DEPTH_LEVELS = 4095

NOT_DONE, OK, UNUSABLE, UNREADABLE, NO_BODY = range(5)
STATUS_TEXT = {
    NOT_DONE: "not computed",
    OK: "ok",
    UNUSABLE: "the teacher's output held values that are not finite or normals without length",
    UNREADABLE: "the image could not be read",
    NO_BODY: "the teacher's mask was empty",
}


@dataclass(frozen=True)
class Setting:
    """How targets are stored: blosc's compressor and level; exact: in float32, as the teacher gave them."""

    compressor: str
    level: int
    exact: bool = False


# By bytes and time; errors: `codec.depth_error_bound`, `codec.NORMAL_ERROR_DEGREES`, none for 'lossless'.
SETTINGS = {
    "fast": Setting("lz4", 1),
    "compact": Setting("zstd", 3),
    "lossless": Setting("zstd", 1, exact=True),
}


@dataclass(frozen=True)
class TargetField:
    """One array of targets: stored dtype, encoding, and what a reader needs to understand the values.

    channels: length of the axis before (y, x), or None where there is no such axis.
    encoding: 'instance_levels' | 'oct8' | 'bool' | 'float32', a key of ``codec.ENCODERS``.
    setting: how chunks are compressed.
    attributes: written into the array's ``zarr.json`` as they are.
    """

    name: str
    dtype: str
    channels: int | None
    encoding: str
    setting: Setting = SETTINGS["fast"]
    attributes: Mapping[str, object] = dataclass_field(default_factory=dict)

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of one instance, (y, x) or (channels, y, x), for maps of size (width, height)."""
        width, height = size
        return (height, width) if self.channels is None else (self.channels, height, width)

    @property
    def dimensions(self) -> tuple[str, ...]:
        return ("instance", *_AXIS[self.channels], "y", "x")


_AXIS = {None: (), 2: ("uv",), 3: ("xyz",)}


def depth_field(setting: Setting, kind: str = "affine", unit: str | None = None) -> TargetField:
    """Depth in levels of the instance's own range, or as it is; kind 'metric' | 'affine' | 'disparity'."""
    meaning = {"kind": kind, "unit": unit}
    if setting.exact:
        about = {"encoding": "float32", "no_depth": "NaN", **meaning}
        return TargetField("depth", "float32", None, "float32", setting, about)
    about = {
        "encoding": "instance_levels",
        "levels": DEPTH_LEVELS,
        "no_depth": 0,
        "range_array": "depth_range",
        "formula": "depth = lo + (code - 1) * step for code > 0, with (lo, step) = depth_range[instance]",
        **meaning,
    }
    return TargetField("depth", "uint16", None, "instance_levels", setting, about)


def normal_field(setting: Setting) -> TargetField:
    """Unit normals as two octahedral bytes, (128, 128) facing the camera, or as they are."""
    frame = {"frame": "camera: x right, y down, z away; normals point to the camera (nz < 0)"}
    if setting.exact:
        about = {"encoding": "float32", "no_normal": "NaN", **frame}
        return TargetField("normal", "float32", 3, "float32", setting, about)
    about = {
        "encoding": "oct8",
        "formula": "u, v = (code - 128) / 127; t = 1 - |u| - |v|; f = max(-t, 0); "
        "n = normalise(u - sign(u) * f, v - sign(v) * f, -t) with sign(0) = 1",
        "no_normal": "where mask is false",
        **frame,
    }
    return TargetField("normal", "uint8", 2, "oct8", setting, about)


def mask_field(setting: Setting, made_by: str = "network") -> TargetField:
    """The instance's own pixels. made_by: 'network', 'threshold' or 'everything' (all ones)."""
    about = {"encoding": "bool", "true": "on the instance", "made_by": made_by}
    return TargetField("mask", "bool", None, "bool", setting, about)


def build_fields(
    outputs: Iterable[str],
    depth_kind: str = "affine",
    unit: str | None = None,
    mask_made_by: str = "network",
    setting: str = "fast",
) -> tuple[TargetField, ...]:
    """Fields for a teacher's outputs, in the order depth, normal, mask. setting: a key of SETTINGS.

    Raises SagecacheError for an unknown output or setting.
    """
    if setting not in SETTINGS:
        raise SagecacheError(f"unknown codec setting '{setting}'", fix=nearest(setting, SETTINGS))
    stored = SETTINGS[setting]
    builders: dict[str, Callable[[], TargetField]] = {
        "depth": lambda: depth_field(stored, depth_kind, unit),
        "normal": lambda: normal_field(stored),
        "mask": lambda: mask_field(stored, mask_made_by),
    }
    outputs = list(outputs)
    for name in outputs:
        if name not in builders:
            raise SagecacheError(f"no target field is called '{name}'", fix=nearest(name, builders))
    return tuple(build() for name, build in builders.items() if name in outputs)


@dataclass(frozen=True)
class StorePlan:
    """Which instance stands in which row; decided before any target is computed.

    ids (N, 2) int64: image_id, instance; unique, in the order in which they came into the store.
    image_sha256 (N, 32) uint8: hash of the image file's bytes; zeros where it could not be read.
    bbox (N, 4) float64: x, y, w, h in image pixels.
    target_from_image (N, 3, 3) float64: image pixels -> target-map pixels (centres at integers).
    size: (width, height) of the target maps.
    """

    ids: np.ndarray
    image_sha256: np.ndarray
    bbox: np.ndarray
    target_from_image: np.ndarray
    size: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.ids)
        for name, (dtype, shape) in PLAN_ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (count, *shape):
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {(count, *shape)}")
        if count == 0:
            raise SagecacheError("a store needs at least one instance", fix="Check the split and its boxes.")
        if (repeated := first_repeated(self.ids)) is not None:
            raise SagecacheError(
                "an instance stands twice in the plan",
                record=f"image_id {repeated[0]}, instance {repeated[1]}",
            )

    def __len__(self) -> int:
        return len(self.ids)


PLAN_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "ids": ("int64", (2,)),
    "image_sha256": ("uint8", (32,)),
    "bbox": ("float64", (4,)),
    "target_from_image": ("float64", (3, 3)),
}
