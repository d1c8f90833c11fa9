"""Label Studio's JSON export: keypoints labeled by joint names, grouped into persons by rectangles.

Read here, because no light package does: label-studio-sdk, which has Label Studio's own converters, pins
an older OpenCV and brings some twenty packages, and its COCO writer makes one person of all keypoints of a
picture, rounded to whole pixels. The format is documented (labelstud.io, "KeyPointLabels"): positions are in
percent of the picture. A rectangle is a person; the keypoints moved below it in the region list (parentID)
are its joints, and a lone rectangle has all of them. Without rectangles a picture shows one person.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from sagecache.data.coco import load_json
from sagecache.data.convert import BOX_RULE, Person, Picture, Reading
from sagecache.data.picture_files import SUFFIXES
from sagecache.errors import SagecacheError
from sagecache.skeleton.convert import joints_by_name
from sagecache.skeleton.definition import COCO17, Skeleton

EXPORT = "Export it as 'JSON' (not JSON-MIN, CSV or COCO)"
UNFINISHED = "tasks without a finished annotation"
SECOND = "further annotations of a task (the one marked as ground truth counts, else the last)"
ROTATED = "tasks labeled on a picture that was turned in Label Studio"
NO_JOINTS = "rectangles without keypoints"
HIDDEN = frozenset(("occluded", "hidden", "invisible", "not visible"))


def read_label_studio(
    path: Path, skeleton: Skeleton = COCO17, renamed: Mapping[str, str] | None = None
) -> Reading:
    """One picture a task. renamed: {their joint name: ours, or 'none'}.

    A keypoint is visible, or occluded where a choice for its region says so (see HIDDEN). Predictions are not
    read. Raises SagecacheError for another export, unknown joint names, and joints that nobody's rectangle
    claims.
    """
    tasks = load_json(path)
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks
    ):
        raise SagecacheError("is not a list of tasks with 'data'", file=path, fix=EXPORT)
    dropped: Counter = Counter()
    chosen = [(task, _regions(path, i, task, dropped)) for i, task in enumerate(tasks)]
    names = list(
        dict.fromkeys(one.label for _, regions in chosen for one in regions if one.label is not None)
    )
    try:
        joints = joints_by_name(names, skeleton, renamed)
    except SagecacheError as error:
        raise SagecacheError(error.message, file=path, fix=error.fix) from None
    pictures = tuple(
        _picture(path, task, regions, joints, skeleton, dropped) for task, regions in chosen if regions
    )
    notes = (
        f"box: the rectangle, else {BOX_RULE}",
        "a keypoint counts as visible unless a choice for its region says that it is hidden",
    )
    return Reading("Label Studio", path, pictures, dropped, notes, turned=True)


class _Region:
    """One record of a result: a keypoint (label is its joint) or a rectangle (label is None)."""

    def __init__(self, path: Path, where: str, record: Mapping, size: tuple[int, int]) -> None:
        value = record.get("value")
        labels = _labels(value)
        keys = ("x", "y") if labels else ("x", "y", "width", "height")
        numbers = [value.get(key) for key in keys]
        if not all(isinstance(n, (int, float)) and abs(n) < 1e6 for n in numbers):
            raise SagecacheError(
                f"a region lacks {', '.join(keys)} in percent", file=path, record=where, fix=EXPORT
            )
        self.id, self.parent = _text(record, "id"), _text(record, "parentID")
        self.size = size
        self.pixels = tuple(n / 100 * size[i % 2] for i, n in enumerate(numbers))
        self.label = str(labels[0]) if labels else None
        self.tilted = bool(value.get("rotation"))
        self.occluded = False


def _regions(path: Path, index: int, task: Mapping, dropped: Counter) -> list[_Region]:
    """Keypoints and rectangles of the annotation that counts; [] for a task that is left out."""
    where = f"task {task.get('id', index)}"
    results = [one for one in _dicts(task.get("annotations")) if not one.get("was_cancelled")]
    results = [one for one in results if any(map(_is_region, _dicts(one.get("result"))))]
    if not results:
        dropped[UNFINISHED] += 1
        return []
    dropped[SECOND] += len(results) - 1
    best = next((one for one in results if one.get("ground_truth")), results[-1])
    records = [record for record in _dicts(best["result"]) if _is_region(record)]
    if any(record.get("image_rotation") for record in records):
        dropped[ROTATED] += 1
        return []
    regions = []
    for record in records:
        size = record.get("original_width"), record.get("original_height")
        if not all(isinstance(side, int) and 0 < side < 10**6 for side in size):
            raise SagecacheError(
                "a region lacks original_width and original_height", file=path, record=where, fix=EXPORT
            )
        regions.append(_Region(path, where, record, size))
    hidden = {_text(record, "id") for record in _dicts(best["result"]) if _says_hidden(record)}
    for region in regions:
        region.occluded = region.id is not None and region.id in hidden
    return regions


def _is_region(record: Mapping) -> bool:
    value = record.get("value")
    if not isinstance(value, Mapping):
        return False
    return bool(_labels(value)) or record.get("type") in ("rectanglelabels", "rectangle")


def _labels(value: Mapping) -> list:
    labels = value.get("keypointlabels")
    return labels if isinstance(labels, list) else []


def _text(record: Mapping, key: str) -> str | None:
    return None if record.get(key) is None else str(record[key])


def _says_hidden(record: Mapping) -> bool:
    value = record.get("value")
    choices = value.get("choices") if isinstance(value, Mapping) else None
    return isinstance(choices, list) and any(str(choice).strip().lower() in HIDDEN for choice in choices)


def _dicts(values: Any) -> list[Mapping]:
    return [one for one in values if isinstance(one, Mapping)] if isinstance(values, list) else []


def _picture(
    path: Path,
    task: Mapping,
    regions: list[_Region],
    joints: Mapping[str, int | None],
    skeleton: Skeleton,
    dropped: Counter,
) -> Picture:
    where = f"task {task.get('id')}"
    names = _file_names(path, where, task)
    points = [one for one in regions if one.label is not None]
    persons = []
    for box, mine in _persons(path, where, points, [one for one in regions if one.label is None]):
        if box is not None and not mine:
            dropped[NO_JOINTS] += 1
            continue
        keypoints = np.zeros((skeleton.num_keypoints, 3))
        for point in mine:
            joint = joints[point.label]
            if joint is None:
                continue
            if keypoints[joint, 2]:
                raise SagecacheError(
                    f"a person has '{skeleton.names[joint]}' twice",
                    file=path,
                    record=where,
                    fix="Draw a rectangle around each person and move its keypoints below it in the list",
                )
            keypoints[joint] = *point.pixels, 1 if point.occluded else 2
        persons.append(Person(keypoints, None if box is None or box.tilted else box.pixels))
    number = task.get("id") if isinstance(task.get("id"), int) else None
    return Picture(names[0], regions[0].size, tuple(persons), number, names[1:])


def _persons(
    path: Path, where: str, points: list[_Region], boxes: list[_Region]
) -> Iterable[tuple[_Region | None, list[_Region]]]:
    """(rectangle or None, its keypoints) of each person."""
    if len(boxes) <= 1:
        return [(boxes[0] if boxes else None, points)]
    known = {box.id for box in boxes}
    lost = [point for point in points if point.parent not in known]
    if lost:
        raise SagecacheError(
            f"{len(boxes)} rectangles, and '{lost[0].label}' is below none of them",
            file=path,
            record=where,
            fix="Move each keypoint below its person's rectangle in the region list, and export again",
        )
    return [(box, [point for point in points if point.parent == box.id]) for box in boxes]


def _file_names(path: Path, where: str, task: Mapping) -> tuple[str, ...]:
    """Where the image may lie: the whole path and then its ends, or the stored name and the one before."""
    data = task["data"]
    named = [data[key] for key in ("image", "img") if isinstance(data.get(key), str)]
    named = [text for text in named if PurePosixPath(_address(text)).name]
    named = named or [v for v in data.values() if isinstance(v, str) and _suffix(v) in SUFFIXES]
    if not named:
        raise SagecacheError(
            f"names no image; its data have {', '.join(map(str, data)) or 'no keys'}",
            file=path,
            record=where,
            fix="Name the image's key 'image' in the labeling setup",
        )
    address = PurePosixPath(_address(named[0]))
    parts = [part for part in address.parts if part not in ("/", "..", ".")]
    if parts[:2] == [
        "data",
        "upload",
    ]:  # the folder is Label Studio's own, as are eight digits before the name
        return tuple(dict.fromkeys((parts[-1], re.sub(r"^[0-9a-f]{8}-", "", parts[-1]))))
    return tuple("/".join(parts[i:]) for i in range(len(parts)))


def _address(text: str) -> str:
    """The path within an address: of a local file, an upload, a bucket, a server."""
    try:
        parts = urlsplit(text.replace("\\", "/"))
    except ValueError:
        return text
    local = parse_qs(parts.query).get("d")
    return unquote(local[0]) if local else unquote(parts.path or text)


def _suffix(text: str) -> str:
    return PurePosixPath(_address(text)).suffix.lower()
