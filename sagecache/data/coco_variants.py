"""Files that are COCO's format already, but for their joints or their numbers: COCO-WholeBody, SyRIP, and any
COCO keypoint file whose joints have other names or another order (CVAT's export among them).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sagecache.data.coco import load_coco
from sagecache.data.convert import Person, Picture, Reading
from sagecache.errors import SagecacheError
from sagecache.skeleton.category import is_person, person_categories
from sagecache.skeleton.convert import COCO17_FROM_WHOLEBODY133, JointMap, map_by_name
from sagecache.skeleton.definition import COCO17, Skeleton

BODY = len(COCO17_FROM_WHOLEBODY133.index)
WHOLE = COCO17_FROM_WHOLEBODY133.source_count
IDENTITY = JointMap(BODY, COCO17, np.arange(BODY))
OTHER_CATEGORY = "annotations of other categories than person"
UNKNOWN_IMAGE = "annotations of images that the file does not list"


def read_wholebody(path: Path) -> Reading:
    """COCO-WholeBody: the 17 body joints, boxes, areas and crowds; feet, face and hands are left out.

    A person's 'keypoints' are the 17 of the body (the published files, with foot_kpts, face_kpts, … beside
    them) or all 133 in one list, of which the body is the first 17 (mmpose's order). A reliability between 0
    and 2, as the face and hands have, counts as labeled and visible.
    """

    def joints_of(annotation: dict, count: int, where: str) -> JointMap:
        if count not in (BODY, WHOLE):
            raise SagecacheError(
                f"has {count} keypoints, COCO-WholeBody has {BODY} of the body or {WHOLE} in all",
                file=path,
                record=where,
                fix="Give one of its annotation files",
            )
        return IDENTITY if count == BODY else COCO17_FROM_WHOLEBODY133

    reading = _read(path, "COCO-WholeBody", joints_of)
    licence = "licence: the annotations are for non-commercial research; read the data set's own"
    return replace(reading, notes=(*reading.notes, "feet, face and hands are left out", licence))


def read_syrip(path: Path) -> Reading:
    """SyRIP (Huang et al., FG 2021): COCO's joints; ids from 0, an area of another rule in each file.

    Its 'image_source', a video that several pictures are from, becomes the 'sequence' of the leak guard: its
    own train and validation files share videos. Joints at (-45, -45) are its unlabeled ones.
    """

    def joints_of(annotation: dict, count: int, where: str) -> JointMap:
        if count != BODY:
            raise SagecacheError(f"has {count} keypoints, SyRIP has {BODY}", file=path, record=where)
        return IDENTITY

    reading = _read(path, "SyRIP", joints_of)
    pictures = tuple(_with_recording(picture) for picture in reading.pictures)
    recordings = Counter(picture.fields.get("sequence") for picture in pictures)
    shared = sum(count > 1 for name, count in recordings.items() if name)
    notes = [*reading.notes]
    if shared:
        notes.append(f"{shared} videos gave several pictures each; the leak guard knows them as sequences")
    notes.append("licence: non-commercial research; read the data set's own")
    return replace(reading, pictures=pictures, notes=tuple(notes))


def read_named(
    path: Path, skeleton: Skeleton = COCO17, renamed: Mapping[str, str] | None = None, format: str = "COCO"
) -> Reading:
    """Any COCO keypoint file that names its joints in its categories, each found in the skeleton by its name.

    Annotations may lack a bbox. renamed: {their name: ours, or 'none'}. Raises SagecacheError for names that
    are unknown, and for a file without names.
    """
    content = load_coco(path, boxes=False)
    maps = {}
    for category in content["categories"]:
        names = category.get("keypoints")
        if names:
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise SagecacheError(
                    "'keypoints' must be a list of names", file=path, record=f"category {category['id']}"
                )
            maps[category["id"]] = _named(path, names, skeleton, renamed)
    if not maps:
        raise SagecacheError(
            "no category names its keypoints", file=path, fix="Export the skeleton's points with their names"
        )

    def joints_of(annotation: dict, count: int, where: str) -> JointMap:
        only = next(iter(maps.values())) if len(maps) == 1 else None
        joints = maps.get(annotation.get("category_id"), only)
        if joints is None or joints.source_count != count:
            named = "no joints" if joints is None else f"{joints.source_count}"
            raise SagecacheError(
                f"has {count} keypoints, its category names {named}", file=path, record=where
            )
        return joints

    return _read(path, format, joints_of, content, skeleton.num_keypoints)


def _named(path: Path, names: list[str], skeleton: Skeleton, renamed: Mapping[str, str] | None) -> JointMap:
    try:
        return map_by_name(names, skeleton, renamed)
    except SagecacheError as error:
        raise SagecacheError(error.message, file=path, fix=error.fix) from None


def _read(
    path: Path,
    format: str,
    joints_of: Callable[[dict, int, str], JointMap],
    content: dict | None = None,
    num_keypoints: int = BODY,
) -> Reading:
    """Persons by image. joints_of(annotation, its number of keypoints, where it stands) gives its map."""
    content = load_coco(path) if content is None else content
    persons = person_categories(content)
    by_image: dict[int, list[Person]] = {record["id"]: [] for record in content["images"]}
    dropped = Counter()
    for i, annotation in enumerate(content["annotations"]):
        if not is_person(annotation, persons):
            dropped[OTHER_CATEGORY] += 1
        elif annotation["image_id"] not in by_image:
            dropped[UNKNOWN_IMAGE] += 1
        else:
            where = f"annotations[{i}]"
            person = _person(annotation, joints_of, where, num_keypoints)
            by_image[annotation["image_id"]].append(person)
    pictures = [_picture(record, by_image[record["id"]]) for record in content["images"]]
    licences = content.get("licenses")
    return Reading(
        format, path, tuple(pictures), dropped, licences=tuple(licences) if isinstance(licences, list) else ()
    )


def _person(
    annotation: dict, joints_of: Callable[[dict, int, str], JointMap], where: str, num_keypoints: int
) -> Person:
    flat = np.array(annotation.get("keypoints") or [], dtype=np.float64).reshape(-1, 3)
    if len(flat):
        keypoints = joints_of(annotation, len(flat), where)(flat)
        v = keypoints[:, 2]
        keypoints[:, 2] = np.where(v <= 0, 0, np.where(v == 1, 1, 2))
    else:
        keypoints = np.zeros((num_keypoints, 3))
    area = annotation.get("area")
    return Person(
        keypoints,
        tuple(map(float, annotation["bbox"])) if annotation.get("bbox") else None,
        None if area is None else float(area),
        int(bool(annotation.get("iscrowd"))),
        annotation.get("id"),
    )


def _picture(record: dict, persons: list[Person]) -> Picture:
    size = (record["width"], record["height"]) if record.get("width") and record.get("height") else None
    name = record.get("file_name") or f"{record['id']:012d}.jpg"
    known = {"id", "file_name", "width", "height"}
    fields = {key: value for key, value in record.items() if key not in known}
    return Picture(name.replace("\\", "/"), size, tuple(persons), record["id"], fields=fields)


def _with_recording(picture: Picture) -> Picture:
    """The video's own address, without the moment that it is opened at (&t=88s)."""
    source = picture.fields.get("image_source")
    if not isinstance(source, str) or not source.strip():
        return picture
    address = re.sub(r"(?<=[?&])(t|start|list|index)=[^&#]*&?", "", source.strip()).rstrip("?&")
    return replace(picture, fields={**picture.fields, "sequence": address})
