"""The work itself: pure functions of one shard or one part. They read images, and write nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagecache.data.coco import read_image
from sagecache.data.views import warp_image
from sagecache.errors import SagecacheError
from sagecache.precompute.plan import BORDERS, GeoPlan
from sagecache.store.codec import EncodedRow, NotEncodable, encode_row, failed_row
from sagecache.store.spec import NO_BODY, OK, STATUS_TEXT, UNREADABLE, UNUSABLE

if TYPE_CHECKING:
    from sagecache.teachers.base import Detector, Teacher

MASK_THRESHOLD = 0.5
PERSON_CATEGORY = 1


@dataclass(frozen=True)
class FailedItem:
    """An instance (instance None: a whole image) that gave no result, and why."""

    image_id: int
    instance: int | None
    reason: str
    path: Path

    @property
    def nobody(self) -> bool:
        """The teacher saw no person in the box: an answer, and nothing to mend."""
        return self.reason == STATUS_TEXT[NO_BODY]


@dataclass(frozen=True)
class GeoShard:
    """One shard, ready to be committed."""

    rows: list[EncodedRow]
    failed: list[FailedItem]


def geo_shard(
    plan: GeoPlan,
    teacher: Teacher,
    rows: Sequence[int],
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> GeoShard:
    """Targets of some rows of the plan, in their order.

    Batches are cut from rows alone, so they never reach into another shard; an instance whose image cannot
    be read is left out of its batch. advance(count) is called after each batch. Raises SagecacheError for a
    teacher that breaks its own spec.
    """
    encoded, failed, images = [], [], _LastImage()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        crops, unreadable = _read_crops(plan, batch, images)
        results = _teach(plan, teacher, crops)
        for row in batch:
            result = results.get(row) or failed_row(plan.fields, plan.spec.map_size, UNREADABLE)
            encoded.append(result)
            if result.status != OK:
                reason = unreadable.get(row, STATUS_TEXT[result.status])
                one = plan.instances[row]
                failed.append(FailedItem(one.image_id, one.instance, reason, one.path))
        advance(len(batch))
    return GeoShard(encoded, failed)


@dataclass(frozen=True)
class DetectPart:
    """Detections of some images, as COCO result records, in the order of the images."""

    detections: list[dict]
    failed: list[FailedItem]


def detect_part(
    images: Sequence[tuple[int, Path]],
    detector: Detector,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> DetectPart:
    """Person boxes of images given as (image_id, path). Boxes without area or not finite are left out.

    bbox is x, y, w, h in image pixels, rounded to .01; score to .00001.
    """
    detections, failed = [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        readable = []
        for image_id, path in batch:
            try:
                readable.append((image_id, read_image(path)))
            except SagecacheError as error:
                reason = f"{STATUS_TEXT[UNREADABLE]}: {error.message}"
                failed.append(FailedItem(image_id, None, reason, path))
        found = detector([image for _, image in readable]) if readable else []
        for (image_id, _), (boxes, scores) in zip(readable, found, strict=True):
            detections += _records(image_id, np.asarray(boxes, float), np.asarray(scores, float))
        advance(len(batch))
    return DetectPart(detections, failed)


class _LastImage:
    """Keeps the image read last: instances of one image stand side by side in the plan."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._image: np.ndarray | None = None

    def read(self, path: Path) -> np.ndarray:
        if path != self._path:
            self._image = read_image(path)
            self._path = path
        return self._image


def _read_crops(
    plan: GeoPlan, rows: Sequence[int], images: _LastImage
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Row -> the teacher's input, RGB uint8 (H, W, 3); row -> why it has none."""
    crops, unreadable = {}, {}
    for row in rows:
        try:
            image = images.read(plan.instances[row].path)
        except SagecacheError as error:
            unreadable[row] = f"{STATUS_TEXT[UNREADABLE]}: {error.message}"
            continue
        border = BORDERS[plan.crop.border]
        crops[row] = warp_image(image, plan.crop_from_image[row], plan.spec.input_size, border)
    return crops, unreadable


def _teach(plan: GeoPlan, teacher: Teacher, crops: Mapping[int, np.ndarray]) -> dict[int, EncodedRow]:
    """Row -> encoded targets, or a failed row where the teacher gave nothing usable."""
    if not crops:
        return {}
    outputs = _run_teacher(plan, teacher, np.stack(list(crops.values())))
    return {
        row: _encode(plan, {name: values[position] for name, values in outputs.items()})
        for position, row in enumerate(crops)
    }


def _run_teacher(plan: GeoPlan, teacher: Teacher, crops: np.ndarray) -> dict[str, np.ndarray]:
    """The teacher's maps as float32 numpy (B, C, h, w), their shapes checked against its spec."""
    outputs = teacher(crops)
    width, height = plan.spec.map_size
    maps = {}
    for field in plan.fields:
        channels = 3 if field.name == "normal" else 1
        values = outputs.get(field.name)
        shape = (len(crops), channels, height, width)
        if values is None or tuple(values.shape) != shape:
            found = "nothing" if values is None else f"shape {tuple(values.shape)}"
            raise SagecacheError(
                f"teacher '{plan.spec.name}' gave {found} for '{field.name}', its spec says {shape}",
                fix="Correct its 'outputs' or 'map_size'.",
            )
        arrays = isinstance(values, np.ndarray)
        maps[field.name] = np.float32(values) if arrays else values.detach().float().cpu().numpy()
    return maps


def _encode(plan: GeoPlan, maps: dict[str, np.ndarray]) -> EncodedRow:
    size = plan.spec.map_size
    if "mask" in maps:
        if not np.isfinite(maps["mask"]).all():
            return failed_row(plan.fields, size, UNUSABLE)
        maps["mask"] = maps["mask"] > MASK_THRESHOLD
        if not maps["mask"].any():
            return failed_row(plan.fields, size, NO_BODY)
    try:
        return encode_row(plan.fields, maps)
    except NotEncodable:
        return failed_row(plan.fields, size, UNUSABLE)


def _records(image_id: int, boxes: np.ndarray, scores: np.ndarray) -> list[dict]:
    records = []
    for (left, top, right, bottom), score in zip(boxes.reshape(-1, 4), scores, strict=True):
        bbox = [round(float(value), 2) for value in (left, top, right - left, bottom - top)]
        if np.isfinite([*bbox, score]).all() and bbox[2] > 0 and bbox[3] > 0:
            record = {"image_id": image_id, "category_id": PERSON_CATEGORY, "bbox": bbox}
            records.append({**record, "score": round(float(score), 5)})
    return records
