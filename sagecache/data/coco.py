"""COCO files and the images beside them: annotations, detections, paths, pixels, and the list of instances.

`load_coco` and `load_detections` vouch for the shape of the records (keys and types); whether the values make
sense together (boxes inside, unique ids, files there) is the business of `sagecache.data.check`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from sagecache.errors import SagecacheError
from sagecache.skeleton.category import is_person, person_categories
from sagecache.structures import Instance

READ_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def read_image(path: str | Path) -> np.ndarray:
    """Pixels of a file as RGB uint8 (H, W, 3): grey, palette, 16-bit, CMYK and alpha are converted.

    EXIF orientation is ignored: annotations made on the raw pixels stay on them (OpenCV would turn the image
    by default). Raises SagecacheError for a file that is missing, truncated or no image.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        raise SagecacheError("image file is missing", file=path) from None
    except OSError as error:
        raise SagecacheError(f"can't be read: {error.strerror}", file=path) from None
    try:
        image = cv2.imdecode(data, READ_FLAGS) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise SagecacheError(
            f"holds no image that OpenCV can decode ({data.size} bytes)",
            file=path,
            fix="Replace it: it is empty, truncated, or of another format",
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_path(root: str | Path, record: dict) -> Path:
    """Where the image of a record lies: root / file_name, or root / {id:012d}.jpg where it has none.

    Raises SagecacheError for a file_name that is absolute or climbs out of root.
    """
    name = record.get("file_name") or f"{record['id']:012d}.jpg"
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or Path(name).is_absolute():
        raise SagecacheError(
            f"file_name '{name}' leaves the image folder",
            record=f"image {record['id']}",
            fix=f"Give it relative to {root}",
        )
    return Path(root) / pure


def load_coco(path: str | Path, boxes: bool = True) -> dict:
    """A COCO keypoint file as a dict with lists 'images', 'annotations', 'categories' (empty where absent).

    Every image has an int64 id; every annotation an int64 image_id and a bbox of four finite numbers;
    keypoints, where given, are flat triplets of finite numbers. Raises SagecacheError naming the file, the
    record and what it should be. Other keys are passed through. boxes False: an annotation may lack its bbox.
    """
    content = load_json(path)
    if not isinstance(content, dict) or "images" not in content:
        kind = "a list, as detection files are" if isinstance(content, list) else "no 'images'"
        raise SagecacheError(
            f"is not a COCO annotation file: it has {kind}",
            file=path,
            fix="It needs {'images': [...], 'annotations': [...]}",
        )
    for key in ("images", "annotations", "categories"):
        records = content.setdefault(key, [])
        if not isinstance(records, list):
            raise SagecacheError(f"'{key}' must be a list, not {_kind(records)}", file=path)
    for i, record in enumerate(content["images"]):
        _check_image(_Record(path, "images", i, record))
    for i, record in enumerate(content["annotations"]):
        _check_annotation(_Record(path, "annotations", i, record), boxes)
    for i, record in enumerate(content["categories"]):
        _Record(path, "categories", i, record).integer("id")
    return content


def load_detections(path: str | Path) -> list[dict]:
    """Person boxes in COCO's result format, as mmpose's bbox_file reads it: a list of
    {image_id: int, category_id: int, bbox: [x, y, w, h], score: number}. Raises SagecacheError.
    """
    fix = "Correct its path, which data.py gives in 'boxes'; or find persons: sagecache precompute detect"
    content = _load_list(path, "detections", "'category_id': 1, 'bbox': [x, y, w, h]", "detection file", fix)
    for i, value in enumerate(content):
        record = _Record(path, "detections", i, value)
        record.integer("image_id")
        record.integer("category_id")
        record.numbers("bbox", count=4)
        record.number("score")
    return content


def load_keypoint_results(path: str | Path, num_keypoints: int) -> list[dict]:
    """Poses in COCO's result format: a list of {image_id: int, keypoints: [x, y, score, ...], score: number};
    category_id is not used, annotation_id is where all have one. Raises SagecacheError.
    """
    content = _load_list(path, "results", "'keypoints': [x, y, score, ...]", "file of results")
    for i, value in enumerate(content):
        record = _Record(path, "predictions", i, value)
        record.integer("image_id")
        record.numbers("keypoints", count=3 * num_keypoints)
        record.number("score")
        if value.get("annotation_id") is not None:
            record.integer("annotation_id")
    return content


def _load_list(path: str | Path, what: str, keys: str, kind: str, fix: str = "Correct its path") -> list:
    """COCO's result format is a list; keys show in the error what a record needs. kind and fix: of a file
    that is missing.
    """
    content = load_json(path, kind, fix)
    if not isinstance(content, list):
        raise SagecacheError(
            f"must be a list of {what}, not {_kind(content)}",
            file=path,
            fix=f"It needs [{{'image_id': 1, {keys}, 'score': 0.9}}, ...]",
        )
    return content


def load_json(path: str | Path, kind: str = "annotation file", fix: str | None = None) -> Any:
    """The content of a JSON file. Raises SagecacheError that says where it is broken, or that it is cut.

    kind and fix: what is told of a file that is missing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SagecacheError(f"{kind} is missing", file=path, fix=fix) from None
    except UnicodeDecodeError:
        raise SagecacheError("is not JSON: it holds bytes that are not UTF-8 text", file=path) from None
    except OSError as error:
        raise SagecacheError(f"can't be read: {error.strerror}", file=path) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not text.strip():
            problem, fix = "is empty", "Write it again"
        elif error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            problem, fix = f"is truncated: JSON ends in the middle, at line {error.lineno}", "Copy it again"
        else:
            problem = f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
            fix = "Mend that place"
        raise SagecacheError(problem, file=path, fix=fix) from None
    except RecursionError:
        raise SagecacheError("nests its lists deeper than any annotation file", file=path) from None


def labeled_keypoints(annotation: dict) -> int:
    """How many keypoints have v > 0: counted, because num_keypoints may be missing or wrong."""
    return sum(1 for v in (annotation.get("keypoints") or [])[2::3] if v > 0)


def instances_from_annotations(
    coco: dict, image_root: str | Path, *, keep_unlabeled: bool = False, file: str | Path | None = None
) -> list[Instance]:
    """Persons of an annotation file, ordered by (image_id, order in the file).

    instance counts all of the image's annotations, the dropped ones too, so that a person keeps its number
    whatever is filtered. Dropped: crowds, other categories than persons, boxes without area and, unless
    keep_unlabeled, persons without a labeled keypoint. file is named in errors.
    """
    paths = _paths_by_id(coco, image_root, file)
    persons = person_categories(coco)
    instances, seen = [], Counter()
    for i, record in enumerate(coco["annotations"]):
        image_id = record["image_id"]
        _require_image(image_id, paths, f"annotations[{i}]", file)
        number = seen[image_id]
        seen[image_id] += 1
        if not is_person(record, persons) or record.get("iscrowd") or not _has_area(record["bbox"]):
            continue
        if not (keep_unlabeled or labeled_keypoints(record)):
            continue
        keypoints = record.get("keypoints")
        instances.append(
            Instance(
                image_id=image_id,
                instance=number,
                path=paths[image_id],
                bbox=tuple(float(v) for v in record["bbox"]),
                keypoints=np.array(keypoints, dtype=np.float64).reshape(-1, 3) if keypoints else None,
                area=None if record.get("area") is None else float(record["area"]),
                annotation_id=record.get("id"),
            )
        )
    return sorted(instances, key=lambda instance: instance.key)


def instances_from_detections(
    detections: Sequence[dict],
    coco: dict,
    image_root: str | Path,
    *,
    score_threshold: float = 0.0,
    max_per_image: int | None = None,
    category_id: int = 1,
    file: str | Path | None = None,
) -> list[Instance]:
    """Persons of a detection file in the images of coco, ordered by (image_id, order in the file).

    Kept: category_id (1 is COCO's person), score >= score_threshold, boxes with area, and of these the
    max_per_image best of each image. instance counts all of the image's detections, as for annotations.
    """
    paths = _paths_by_id(coco, image_root, file)
    kept: dict[int, list[Instance]] = {}
    seen = Counter()
    for i, record in enumerate(detections):
        image_id = record["image_id"]
        _require_image(image_id, paths, f"detections[{i}]", file)
        number = seen[image_id]
        seen[image_id] += 1
        if record["category_id"] != category_id or record["score"] < score_threshold:
            continue
        if _has_area(record["bbox"]):
            bbox = tuple(float(v) for v in record["bbox"])
            instance = Instance(image_id, number, paths[image_id], bbox, score=float(record["score"]))
            kept.setdefault(image_id, []).append(instance)
    best = (sorted(group, key=lambda one: -one.score)[:max_per_image] for group in kept.values())
    return sorted((one for group in best for one in group), key=lambda instance: instance.key)


class _Record:
    """One record of a file, with checks that say where it stands."""

    def __init__(self, file: str | Path, group: str, index: int, value: Any) -> None:
        self.file, self.value = file, value
        self.where = f"{group}[{index}]"
        if not isinstance(value, dict):
            self.fail(f"must be a dict, not {_kind(value)}")
        if isinstance(value.get("id"), int):
            self.where += f" (id {value['id']})"

    def fail(self, message: str) -> None:
        raise SagecacheError(message, file=self.file, record=self.where)

    def integer(self, key: str) -> None:
        value = self._required(key)
        if not _is_integer(value):
            self.fail(f"'{key}' must be an integer, not {_kind(value)} {value!r:.40}")
        if not -(2**63) <= value < 2**63:
            self.fail(f"'{key}' must be an integer of 64 bits, as stores hold it, not {value}")

    def number(self, key: str) -> None:
        value = self._required(key)
        if not _is_number(value):
            self.fail(f"'{key}' must be a finite number, not {value!r:.40}")

    def numbers(self, key: str, count: int | None = None) -> None:
        value = self._required(key)
        if not isinstance(value, list) or not all(map(_is_number, value)):
            self.fail(f"'{key}' must be a list of finite numbers, not {value!r:.60}")
        if count is not None and len(value) != count:
            self.fail(f"'{key}' must have {count} numbers, it has {len(value)}")

    def _required(self, key: str) -> Any:
        if key not in self.value:
            self.fail(f"lacks '{key}'")
        return self.value[key]


def _check_image(record: _Record) -> None:
    record.integer("id")
    name = record.value.get("file_name")
    if name is not None and not isinstance(name, str):
        record.fail(f"'file_name' must be a string, not {_kind(name)}")
    for key in ("width", "height"):
        if record.value.get(key) is not None:
            record.integer(key)


def _check_annotation(record: _Record, boxes: bool) -> None:
    record.integer("image_id")
    if boxes or record.value.get("bbox") is not None:
        record.numbers("bbox", count=4)
    for key in ("id", "category_id", "num_keypoints"):
        if key in record.value:
            record.integer(key)
    if record.value.get("area") is not None:
        record.number("area")
    if record.value.get("keypoints") is not None:
        record.numbers("keypoints")
        if len(record.value["keypoints"]) % 3:
            record.fail(
                f"'keypoints' must be triplets (x, y, v), it has {len(record.value['keypoints'])} numbers"
            )


def _paths_by_id(coco: dict, root: str | Path, file: str | Path | None) -> dict[int, Path]:
    paths: dict[int, Path] = {}
    for i, record in enumerate(coco["images"]):
        if record["id"] in paths:
            raise SagecacheError(
                f"image id {record['id']} is used twice",
                file=file,
                record=f"images[{i}]",
                fix="Give each its own",
            )
        paths[record["id"]] = image_path(root, record)
    return paths


def _require_image(image_id: int, paths: dict[int, Path], where: str, file: str | Path | None) -> None:
    if image_id not in paths:
        raise SagecacheError(
            f"image_id {image_id} is not among the split's {len(paths)} images",
            file=file,
            record=where,
            fix="These boxes belong to another set of images, or the image list is cut",
        )


def _has_area(bbox: Sequence[float]) -> bool:
    return bbox[2] > 0 and bbox[3] > 0


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # JSON has integers that no float holds


def _kind(value: Any) -> str:
    names = {dict: "a dict", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
