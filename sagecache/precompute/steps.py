"""The work itself: each shard and each part a function of its number. Reads images, and writes nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagecache.data.coco import read_image
from sagecache.data.views import warp_image
from sagecache.errors import SagecacheError
from sagecache.precompute.pipeline import ordered_map
from sagecache.precompute.plan import BORDERS, GeoPlan
from sagecache.store.codec import EncodedRow, NotEncodable, encode_row, failed_row, require_bounds
from sagecache.store.spec import NO_BODY, OK, STATUS_TEXT, UNREADABLE, UNUSABLE

if TYPE_CHECKING:
    from sagecache.teachers.base import Detector, Teacher

MASK_THRESHOLD = 0.5
CHECK_EVERY = 64  # of so many rows one is decoded again and held against the codec's stated error
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
    seconds: float  # spent in the teacher


@dataclass(frozen=True)
class GeoWork:
    """The shards of one store, each a function of its number; can be pickled, so that any process may do it.

    rows: shard -> positions in the plan of the instances to be made. workers: threads that read and crop
    images ahead of the teacher.
    """

    plan: GeoPlan
    teacher: Teacher
    rows: Mapping[int, Sequence[int]]
    batch_size: int
    workers: int = 2

    def count(self, number: int) -> int:
        return len(self.rows[number])

    def __call__(
        self, numbers: Sequence[int], advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[int, GeoShard]]:
        """Shards in the order of numbers. Reading, the teacher and encoding overlap, across shards too.

        Batches are cut from the rows of one shard alone, and an instance whose image cannot be read is left
        out of its batch. advance(count) is called after each batch. Raises SagecacheError for a teacher that
        breaks its own spec.
        """
        read = ordered_map(self._read, self._batches(numbers), self.workers, 2 * self.workers)
        taught = map(self._teach, read)  # in this thread, one after the other: the teacher is what is scarce
        encoded = ordered_map(self._encode, taught, workers=1, ahead=2)
        for number, batches in itertools.groupby(encoded, key=lambda batch: batch.shard):
            rows, failed, seconds = [], [], 0.0
            for batch in batches:
                rows += batch.encoded
                failed += batch.failed
                seconds += batch.seconds
                advance(len(batch.encoded))
            yield number, GeoShard(rows, failed, seconds)

    def _batches(self, numbers: Sequence[int]) -> Iterator[_Batch]:
        for number in numbers:
            rows = self.rows[number]
            for start in range(0, len(rows), self.batch_size):
                yield _Batch(number, rows[start : start + self.batch_size])

    def _read(self, batch: _Batch) -> _Batch:
        crops, unreadable = _read_crops(self.plan, batch.rows)
        return replace(batch, crops=crops, unreadable=unreadable)

    def _teach(self, batch: _Batch) -> _Batch:
        began = time.perf_counter()
        outputs = _run_teacher(self.plan, self.teacher, batch.crops)
        return replace(batch, outputs=outputs, seconds=time.perf_counter() - began)

    def _encode(self, batch: _Batch) -> _Batch:
        maps = {name: _as_numpy(values) for name, values in batch.outputs.items()}
        results = {
            row: encode_maps(self.plan, row, {name: values[place] for name, values in maps.items()})
            for place, row in enumerate(batch.crops)
        }
        encoded, failed = [], []
        for row in batch.rows:
            result = results.get(row) or failed_row(self.plan.fields, self.plan.spec.map_size, UNREADABLE)
            encoded.append(result)
            if result.status != OK:
                reason = batch.unreadable.get(row, STATUS_TEXT[result.status])
                one = self.plan.instances[row]
                failed.append(FailedItem(one.image_id, one.instance, reason, one.path))
        # the pixels are no longer needed
        return replace(batch, encoded=encoded, failed=failed, crops={}, outputs={})


@dataclass(frozen=True)
class _Batch:
    """What one pass of the teacher takes and gives, filled stage by stage."""

    shard: int
    rows: Sequence[int]
    crops: Mapping[int, np.ndarray] = field(default_factory=dict)
    unreadable: Mapping[int, str] = field(default_factory=dict)
    outputs: Mapping[str, object] = field(default_factory=dict)
    seconds: float = 0.0
    encoded: Sequence[EncodedRow] = ()
    failed: Sequence[FailedItem] = ()


def geo_shard(
    plan: GeoPlan,
    teacher: Teacher,
    rows: Sequence[int],
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> GeoShard:
    """Targets of some rows of the plan, in their order."""
    if not len(rows):
        return GeoShard([], [], 0.0)
    ((_, shard),) = GeoWork(plan, teacher, {0: rows}, batch_size)([0], advance)
    return shard


@dataclass(frozen=True)
class DetectPart:
    """Detections of some images, as COCO result records, in the order of the images."""

    detections: list[dict]
    failed: list[FailedItem]


@dataclass(frozen=True)
class DetectWork:
    """The parts of one detection file, as ``GeoWork``. parts: images of each, given as (image_id, path)."""

    parts: Sequence[Sequence[tuple[int, Path]]]
    detector: Detector
    batch_size: int
    workers: int = 2

    def count(self, number: int) -> int:
        return len(self.parts[number])

    def __call__(
        self, numbers: Sequence[int], advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[int, DetectPart]]:
        """Parts in the order of numbers. Boxes without area or not finite are left out.

        bbox is x, y, w, h in image pixels, rounded to .01; score to .00001. An image that the detector
        refuses fails alone; raises SagecacheError for a detector that refuses a plain one too.
        """
        read = ordered_map(self._read, self._batches(numbers), self.workers, 2 * self.workers)
        for number, batches in itertools.groupby(read, key=lambda batch: batch[0]):
            detections, failed = [], []
            for _, readable, unreadable in batches:
                failed += unreadable
                found, refused = self._detect(readable)
                failed += refused
                for image_id, boxes, scores in found:
                    detections += _records(image_id, np.asarray(boxes, float), np.asarray(scores, float))
                advance(len(readable) + len(unreadable))
            yield number, DetectPart(detections, failed)

    def _batches(self, numbers: Sequence[int]) -> Iterator[tuple[int, Sequence[tuple[int, Path]]]]:
        for number in numbers:
            images = self.parts[number]
            for start in range(0, len(images), self.batch_size):
                yield number, images[start : start + self.batch_size]

    def _detect(
        self, images: Sequence[tuple[int, Path, np.ndarray]]
    ) -> tuple[list[tuple[int, np.ndarray, np.ndarray]], list[FailedItem]]:
        """(image_id, boxes, scores) of a batch, and what the detector refuses, asked one by one."""
        if not images:
            return [], []
        try:
            found = self.detector([pixels for _, _, pixels in images])
            return [(one[0], *answer) for one, answer in zip(images, found, strict=True)], []
        except SagecacheError as error:
            try:
                self.detector([np.full((256, 256, 3), 128, np.uint8)])
            except SagecacheError:
                raise error from None  # not the pictures' fault
            if len(images) == 1:
                image_id, path, _ = images[0]
                return [], [FailedItem(image_id, None, error.message, path)]
        alone = [self._detect([one]) for one in images]
        return [one for found, _ in alone for one in found], [one for _, failed in alone for one in failed]

    def _read(self, batch: tuple[int, Sequence[tuple[int, Path]]]) -> tuple[int, list, list[FailedItem]]:
        """Part, (image_id, path, pixels) of what can be read, and what can't."""
        number, images = batch
        readable, failed = [], []
        for image_id, path in images:
            try:
                readable.append((image_id, path, read_image(path)))
            except SagecacheError as error:
                reason = f"{STATUS_TEXT[UNREADABLE]}: {error.message}"
                failed.append(FailedItem(image_id, None, reason, path))
        return number, readable, failed


def detect_part(images: Sequence[tuple[int, Path]], detector: Detector, batch_size: int) -> DetectPart:
    """Person boxes of images given as (image_id, path)."""
    ((_, part),) = DetectWork([images], detector, batch_size)([0])
    return part


def _read_crops(plan: GeoPlan, rows: Sequence[int]) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Row -> the teacher's input, RGB uint8 (H, W, 3); row -> why it has none."""
    crops, unreadable, border = {}, {}, BORDERS[plan.crop.border]
    path, image = None, None
    for row in rows:
        try:
            if plan.instances[row].path != path:  # instances of one image stand side by side in the plan
                path, image = None, None
                image = read_image(plan.instances[row].path)
                path = plan.instances[row].path
        except SagecacheError as error:
            unreadable[row] = f"{STATUS_TEXT[UNREADABLE]}: {error.message}"
            continue
        crops[row] = warp_image(image, plan.crop_from_image[row], plan.spec.input_size, border)
    return crops, unreadable


def _run_teacher(plan: GeoPlan, teacher: Teacher, crops: Mapping[int, np.ndarray]) -> dict[str, object]:
    """The teacher's maps (B, C, h, w) of all crops, their shapes checked against its spec."""
    if not crops:
        return {}
    outputs = teacher(np.stack(list(crops.values())))
    if not isinstance(outputs, Mapping):
        raise SagecacheError(
            f"teacher '{plan.spec.name}' gave {type(outputs).__name__}, not a dict of maps",
            fix="Return {output: maps (B, C, h, w)}.",
        )
    width, height = plan.spec.map_size
    for one in plan.fields:
        channels = 3 if one.name == "normal" else 1
        values, shape = outputs.get(one.name), (len(crops), channels, height, width)
        if values is None or tuple(values.shape) != shape:
            found = "nothing" if values is None else f"shape {tuple(values.shape)}"
            raise SagecacheError(
                f"teacher '{plan.spec.name}' gave {found} for '{one.name}', its spec says {shape}",
                fix="Correct its 'outputs' or 'map_size'.",
            )
    return {one.name: outputs[one.name] for one in plan.fields}


def _as_numpy(values: object) -> np.ndarray:
    """Float32 on the CPU; of a tensor on another device this waits for what is under way there."""
    return np.float32(values) if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()


def encode_maps(plan: GeoPlan, row: int, maps: dict[str, np.ndarray]) -> EncodedRow:
    """Maps of an instance, (C, h, w) float32, 'mask' a probability, as a row of the store; failed or not."""
    size = plan.spec.map_size
    if "mask" in maps:
        if not np.isfinite(maps["mask"]).all():
            return failed_row(plan.fields, size, UNUSABLE)
        maps["mask"] = maps["mask"] > MASK_THRESHOLD
        if not maps["mask"].any():
            return failed_row(plan.fields, size, NO_BODY)
    try:
        encoded = encode_row(plan.fields, maps)
    except NotEncodable:
        return failed_row(plan.fields, size, UNUSABLE)
    if row % CHECK_EVERY == 0:
        require_bounds(plan.fields, size, maps, encoded)
    return encoded


def _records(image_id: int, boxes: np.ndarray, scores: np.ndarray) -> list[dict]:
    records = []
    for (left, top, right, bottom), score in zip(boxes.reshape(-1, 4), scores, strict=True):
        bbox = [round(float(value), 2) for value in (left, top, right - left, bottom - top)]
        if np.isfinite([*bbox, score]).all() and bbox[2] > 0 and bbox[3] > 0:
            record = {"image_id": image_id, "category_id": PERSON_CATEGORY, "bbox": bbox}
            records.append({**record, "score": round(float(score), 5)})
    return records
