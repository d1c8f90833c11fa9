"""Labels of other formats become a COCO keypoint file: the part that all formats share.

A reader (`mini_rgbd`, `coco_variants`, `cvat`, `label_studio`) gives a `Reading`: pictures and persons, the
joints already those of our skeleton. `to_coco` hides what lies outside a picture, gives each person a box and
an area by a stated rule, numbers the records, and counts what it did. Knows no format and opens no image.

Coordinates are taken as they are. Browser tools count from a pixel's corner and COCO's files do not say; the
half pixel between the two is kept by no converter that we know of, and not by this one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError, counted
from sagecache.skeleton.definition import COCO17, Skeleton
from sagecache.store.files import write_whole

BOX_MARGIN = (
    0.1  # of a box made from joints, on each side: no joint lies on the crown, at heels or fingertips
)
BOX_RULE = f"the joints inside the picture, widened on each side by {BOX_MARGIN:g} of the longer side"
AREA_RULES = {
    "bbox53": ".53 * w * h of the box, mmpose's rule for files without an area",
    "bbox": "w * h of the box",
    "annotation": "as the file says; .53 * w * h of the box where it says nothing",
}
OUTSIDE = "joints outside their picture (visibility 0 now)"


@dataclass(frozen=True, eq=False)
class Person:
    """keypoints (K, 3) float64: x, y in image pixels and COCO's v (0 not labeled, 1 occluded, 2 visible).

    bbox: x, y, w, h in image pixels; None, or one without area: made from the joints. area: in square pixels.
    id: the record's own number, where it has one.
    """

    keypoints: np.ndarray
    bbox: tuple[float, float, float, float] | None = None
    area: float | None = None
    iscrowd: int = 0
    id: int | None = None


@dataclass(frozen=True)
class Picture:
    """An image and its persons. file_name: relative to the image folder, with '/'; other_names: where else it
    may lie, for formats that rename files. size: (width, height), None where the format does not say.
    fields: more keys of the COCO record, such as 'sequence'.
    """

    file_name: str
    size: tuple[int, int] | None
    persons: tuple[Person, ...] = ()
    id: int | None = None
    other_names: tuple[str, ...] = ()
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a reader found. dropped: {what and why: how many}; notes: what was detected or decided, in words.

    file: what it was read from, for errors. turned: whether its labels are made on the picture as a browser
    shows it, which turns it by its EXIF orientation. licences: COCO's records of those of the images.
    """

    format: str
    file: Path
    pictures: tuple[Picture, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    turned: bool = False
    licences: tuple[Mapping, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a conversion kept, and what it dropped. joints: {name: persons that have it labeled}."""

    format: str
    images: int
    persons: int
    joints: Mapping[str, int]
    dropped: Mapping[str, int]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return dict(
            format=self.format,
            images=self.images,
            persons=self.persons,
            joints=dict(self.joints),
            dropped=dict(self.dropped),
            notes=list(self.notes),
        )


def to_coco(reading: Reading, skeleton: Skeleton = COCO17, area: str = "bbox53") -> tuple[dict, Report]:
    """The COCO dict that `load_coco` takes, and the report. area: a key of AREA_RULES.

    Ids: those of the images are kept where they are unique; those of the annotations where they are unique
    and start at 1, because pycocotools counts a match with annotation id 0 as a miss. Raises SagecacheError
    where no person is left, or a picture has no size.
    """
    dropped, notes = Counter(reading.dropped), list(reading.notes)
    _require_different_files(reading)
    image_ids, told = _image_ids([picture.id for picture in reading.pictures])
    notes += told
    images, annotations = [], []
    for image_id, picture in zip(image_ids, reading.pictures, strict=True):
        if picture.size is None:
            raise SagecacheError(
                f"does not say how large '{picture.file_name}' is",
                file=reading.file,
                fix="Give the folder of the images: --images",
            )
        width, height = picture.size
        images.append(
            dict(id=image_id, file_name=picture.file_name, width=width, height=height, **picture.fields)
        )
        for person in picture.persons:
            record = _annotation(person, picture.size, area, dropped)
            if record is not None:
                annotations.append((person.id, dict(record, image_id=image_id)))
    if not annotations:
        told = f": {counted(len(images), 'picture')} and no person" if images else ""
        raise SagecacheError(f"nothing is left of it{told}", file=reading.file, fix=_reasons(dropped, images))
    ids, told = _annotation_ids([own for own, _ in annotations])
    notes += told
    notes.append(f"area: {AREA_RULES[area]}")
    records = [dict(id=i, **record) for i, (_, record) in zip(ids, annotations, strict=True)]
    coco = dict(
        info=dict(description=f"Converted from {reading.format}", notes=list(notes)),
        licenses=list(reading.licences),
        images=images,
        annotations=records,
        categories=[person_category_of(skeleton)],
    )
    return coco, _report(reading.format, coco, dropped, skeleton)


def person_category_of(skeleton: Skeleton) -> dict:
    """COCO's category record: names, and edges that count from 1."""
    edges = (skeleton.edges + 1).tolist()
    return dict(id=1, name="person", supercategory="person", keypoints=list(skeleton.names), skeleton=edges)


def hide_outside(keypoints: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """keypoints (K, 3) with x = y = v = 0 where v was 0 or the point lies outside a picture (width, height).

    Inside is [-.5, width] by [-.5, height]: the picture by either convention of pixel positions. Also returns
    how many labeled joints were hidden.
    """
    labeled = keypoints[:, 2] > 0
    points = keypoints[:, :2]
    inside = ((points >= -0.5) & (points <= np.array(size))).all(axis=1)  # False for NaN
    kept = labeled & inside
    return np.where(kept[:, None], keypoints, 0.0), int((labeled & ~inside).sum())


def box_around(points: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x, y, w, h of a person's box from its joints (N, 2), N > 0, by BOX_RULE, cut at the picture's edges.

    The margin is 2 px at least, so that a single joint has a box too.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    margin = max(BOX_MARGIN * float((high - low).max()), 2.0)
    low = np.round(np.clip(low - margin, 0, size), 2)
    high = np.round(np.clip(high + margin, 0, size), 2)
    x, y, w, h = (round(float(value), 2) for value in (*low, *(high - low)))
    return x, y, w, h


def area_by(rule: str, bbox: Sequence[float], stated: float | None = None) -> float:
    """A person's area in square pixels by a rule of AREA_RULES. stated: what the file says."""
    if rule == "annotation" and stated is not None and stated > 0:
        return float(stated)
    share = 1.0 if rule == "bbox" else 0.53
    return share * float(bbox[2]) * float(bbox[3])


def require_free(path: Path, source: Path, force: bool) -> None:
    """Raise SagecacheError where path can't be written: it is there (and not force), or is the source."""
    if path.exists() and source.exists() and path.samefile(source):
        raise SagecacheError("is what would be read", file=path, fix="Give the result another name")
    if path.exists() and not force:
        raise SagecacheError("is already there", file=path, fix="Give another name, or --force to replace it")


def write_coco(path: Path, coco: Mapping) -> None:
    """Write the whole file or nothing; folders above it are made. Raises SagecacheError for NaN, which JSON
    does not have and which some files hold all the same.
    """
    try:
        text = json.dumps(coco, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise SagecacheError(
            "would hold a number that is not finite",
            file=path,
            fix="Look for NaN or Infinity in the file that is converted",
        ) from None
    write_whole(path, text.encode())


def _report(format: str, coco: Mapping, dropped: Mapping[str, int], skeleton: Skeleton) -> Report:
    records = coco["annotations"]
    labeled = Counter(k for one in records for k, v in enumerate(one["keypoints"][2::3]) if v)
    return Report(
        format=format,
        images=len(coco["images"]),
        persons=len(records),
        joints={name: labeled[k] for k, name in enumerate(skeleton.names)},
        dropped={reason: count for reason, count in dropped.items() if count},
        notes=tuple(coco["info"]["notes"]),
    )


def _require_different_files(reading: Reading) -> None:
    names = Counter(picture.file_name for picture in reading.pictures)
    name, count = max(names.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise SagecacheError(
            f"{count} of its pictures are the file '{name}'",
            file=reading.file,
            fix="Keep one of them, or give the folder above: --images",
        )


def _annotation(person: Person, size: tuple[int, int], area: str, dropped: Counter) -> dict | None:
    """The record without its ids; None, and counted, for a person of whom nothing is to be seen."""
    keypoints, hidden = hide_outside(person.keypoints, size)
    dropped[OUTSIDE] += hidden
    labeled = keypoints[:, 2] > 0
    bbox = person.bbox
    if bbox is None or bbox[2] <= 0 or bbox[3] <= 0:
        if not labeled.any():
            dropped["persons without a box and without a joint inside the picture"] += 1
            return None
        bbox = box_around(keypoints[labeled, :2], size)
    values = [value for x, y, v in keypoints.tolist() for value in (x, y, int(v))]
    return dict(
        category_id=1,
        iscrowd=person.iscrowd,
        bbox=[float(value) for value in bbox],
        area=area_by(area, bbox, person.area),
        keypoints=values,
        num_keypoints=int(labeled.sum()),
    )


def _image_ids(own: Sequence[int | None]) -> tuple[list[int], list[str]]:
    if all(number is not None and number >= 0 for number in own) and len(set(own)) == len(own):
        return list(own), []
    told = ["image ids are numbered from 1: those of the file are not unique"] if any(own) else []
    return list(range(1, len(own) + 1)), told


def _annotation_ids(own: Sequence[int | None]) -> tuple[list[int], list[str]]:
    fresh = list(range(1, len(own) + 1))
    if not own or any(number is None for number in own):
        return fresh, []
    if len(set(own)) < len(own) or min(own) < 0:
        return fresh, ["annotation ids are numbered from 1: those of the file are not unique"]
    if min(own) == 0:
        told = "annotation ids started at 0 and are larger by 1 now: pycocotools takes id 0 for no match"
        return [number + 1 for number in own], [told]
    return list(own), []


def _reasons(dropped: Mapping[str, int], images: Sequence[Mapping]) -> str:
    told = [f"{counted(count, 'record')}: {reason}" for reason, count in dropped.items() if count]
    if told:
        return f"Left out: {'; '.join(told)}"
    return "It labels nobody" if images else "It holds no pictures"
