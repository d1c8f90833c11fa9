"""Before the first teacher pass: which instances, cropped how, in which rows; what decides the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import crop_affine, resize_affine
from sagecache.store.fingerprint import file_sha256
from sagecache.store.growth import begun, grow
from sagecache.store.ids import IdIndex
from sagecache.store.layout import read_plan
from sagecache.store.spec import SETTINGS, StorePlan, TargetField, build_fields
from sagecache.structures import Instance

if TYPE_CHECKING:
    from sagecache.teachers.base import TeacherSpec

# By step, raised by hand whenever a change of this package could change the values that it writes.
CODE_FORMAT = {"geo": 3, "detect": 1, "stats": 2}
BORDERS = {"constant": (0, 0, 0), "replicate": None}  # as data.views.warp_image takes them


@dataclass(frozen=True)
class CropRule:
    """How an instance becomes a teacher's input.

    The box grown to the teacher's aspect, times padding (``geometry.affine.crop_affine``), resampled
    bilinearly and without aliasing (``data.views.warp_image``); outside the image it is black ('constant')
    or the nearest edge pixel ('replicate').
    """

    padding: float = 1.25
    border: str = "constant"

    def __post_init__(self) -> None:
        if self.border not in BORDERS:
            raise SagecacheError(f"unknown border '{self.border}'", fix=f"Known: {', '.join(BORDERS)}")


@dataclass(frozen=True)
class GeoPlan:
    """All that the shards of one store are a function of, beside the teacher itself."""

    instances: tuple[Instance, ...]
    crop_from_image: np.ndarray  # (N, 3, 3) float64: image pixels -> pixels of the teacher's input
    store: StorePlan  # of these instances; the store itself may have others before and among them
    fields: tuple[TargetField, ...]
    fingerprint: Mapping
    spec: TeacherSpec
    crop: CropRule


def plan_geo(
    instances: Sequence[Instance],
    spec: TeacherSpec,
    teacher_fingerprint: Mapping,
    crop: CropRule,
    codec: str = "fast",
) -> GeoPlan:
    """Lay out a store for instances ordered by (image_id, instance). Reads every image file once, to hash it.

    codec: a key of ``store.spec.SETTINGS``. Raises SagecacheError for a box without area, and for ids that
    are not unique and ordered.
    """
    crops = np.array([_crop_from_image(one, spec, crop) for one in instances]).reshape(-1, 3, 3)
    hashes = hash_images([one.path for one in instances])
    store = StorePlan(
        ids=np.array([one.key for one in instances], np.int64).reshape(-1, 2),
        image_sha256=np.array([hashes[one.path] for one in instances], np.uint8).reshape(-1, 32),
        bbox=np.array([one.bbox for one in instances], np.float64).reshape(-1, 4),
        target_from_image=resize_affine(spec.input_size, spec.map_size) @ crops,
        size=spec.map_size,
    )
    fields = build_fields(spec.outputs, spec.depth_kind, spec.unit, spec.mask_from, codec)
    fingerprint = geo_fingerprint(spec, teacher_fingerprint, crop, codec)
    return GeoPlan(tuple(instances), crops, store, fields, fingerprint, spec, crop)


def geo_fingerprint(
    spec: TeacherSpec, teacher_fingerprint: Mapping, crop: CropRule, codec: str
) -> dict[str, object]:
    """What decides the numbers in a geo store; compare a store's with ``store.fingerprint.diff``.

    Images and boxes are not in it: the plan has them, instance by instance, so that a split may grow. Of the
    codec only whether it is exact: how hard chunks are compressed changes no number.
    """
    return {
        **settings_fingerprint(crop, codec),
        "teacher": dict(teacher_fingerprint),
        "targets": {key: value for key, value in spec.as_dict().items() if key != "name"},
    }


def settings_fingerprint(crop: CropRule, codec: str) -> dict[str, object]:
    """The part of ``geo_fingerprint`` that is a project's own, whoever computed the targets."""
    return {
        "code_format": CODE_FORMAT["geo"],
        "crop": {
            "rule": "box to aspect, times padding; edges on the centres of the border pixels (UDP)",
            "padding": crop.padding,
            "border": crop.border,
            "interpolation": "bilinear after area averages",
            "exif_orientation": "ignored",
        },
        "exact": SETTINGS[codec].exact,
    }


def outgrown(root: Path, instances: Sequence[Instance]) -> tuple[int, str]:
    """How many instances the store in root lacks, and '' or what of the others has changed since.

    The comparison of a run, without reading images: hashes and crops are taken as the store has them, so that
    of what it has only boxes can differ. Raises SagecacheError for a plan that is damaged.
    """
    old = begun(root) or read_plan(root)
    ids = np.array([one.key for one in instances], np.int64).reshape(-1, 2)
    rows = IdIndex(old.ids).find(ids)
    kept = np.maximum(rows, 0)  # of new instances nothing is compared
    bbox = np.array([one.bbox for one in instances], np.float64).reshape(-1, 4)
    fresh = int((rows < 0).sum())
    if not len(ids):
        return 0, "the split has no instances"
    try:
        grow(old, StorePlan(ids, old.image_sha256[kept], bbox, old.target_from_image[kept], old.size), root)
    except SagecacheError as error:
        return fresh, error.message
    return fresh, ""


def hash_images(paths: Sequence[Path]) -> dict[Path, np.ndarray]:
    """Path -> sha256 of the file as 32 uint8; zeros where it cannot be read (the shard then says why)."""
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(unique, pool.map(_hash, unique), strict=True))


def limited(root: Path, items: Sequence, limit: int | None) -> tuple[Path, Sequence]:
    """The first ``limit`` items and the name of their own store, ``<root>-first<limit>``.

    A trial run never stands where the whole is looked for, and the whole never resumes a trial's shards.
    Without a limit, or with one that cuts nothing off, root and items as they are.
    """
    if limit is not None and limit < 1:
        raise SagecacheError(f"--limit must be at least 1, not {limit}")
    if limit is None or limit >= len(items):
        return root, items
    return root.with_name(f"{root.stem}-first{limit}{root.suffix}"), items[:limit]


def _crop_from_image(instance: Instance, spec: TeacherSpec, crop: CropRule) -> np.ndarray:
    try:
        return crop_affine(instance.bbox, spec.input_size, crop.padding)
    except ValueError as error:
        raise SagecacheError(
            str(error),
            file=instance.path,
            record=f"image_id {instance.image_id}, instance {instance.instance}",
            fix="Leave this box out of the split; 'sagecache data check' lists all such boxes.",
        ) from error


def _hash(path: Path) -> np.ndarray:
    try:
        return np.frombuffer(bytes.fromhex(file_sha256(path)), np.uint8)
    except OSError:
        return np.zeros(32, np.uint8)
