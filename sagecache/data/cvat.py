"""CVAT exports: 'CVAT for images 1.1' (XML) and 'COCO Keypoints 1.0' (JSON).

Read here, because no light package does: datumaro, the library behind CVAT's exports, reads no skeletons
from this XML, and brings pandas, pyarrow, lxml and shapely. The format is documented (docs.cvat.ai, "XML
annotation format"). A person is a <skeleton>, its <points> labeled by joint names; or loose <points>, one a
joint, that share a group_id, or are the only ones of their picture. outside=1 is not labeled, occluded=1 is
occluded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from sagecache.data.coco_variants import read_named
from sagecache.data.convert import BOX_RULE, Person, Picture, Reading
from sagecache.errors import SagecacheError
from sagecache.skeleton.convert import joints_by_name
from sagecache.skeleton.definition import COCO17, Skeleton

Box = tuple[float, float, float, float]  # x, y, w, h
LONE_BOX = "boxes that belong to no joints"
EXPORT = "Export it as 'CVAT for images 1.1' or 'COCO Keypoints 1.0'"


def read_cvat(path: Path, skeleton: Skeleton = COCO17, renamed: Mapping[str, str] | None = None) -> Reading:
    """Both exports, told apart by their suffix; renamed: {their joint name: ours, or 'none'}.

    Raises SagecacheError for another format, for XML with a DOCTYPE, and for joint names that are unknown.
    """
    if path.suffix.lower() == ".json":
        return replace(read_named(path, skeleton, renamed, format="CVAT"), turned=True)
    if path.suffix.lower() != ".xml":
        raise SagecacheError("is neither .xml nor .json", file=path, fix=f"{EXPORT}, and unpack the zip")
    root = parse_xml(path)
    if root.tag != "annotations" or root.find("track") is not None:
        kind = "'CVAT for video'" if root.tag == "annotations" else f"<{root.tag}>, no <annotations>"
        raise SagecacheError(f"is {kind}", file=path, fix=EXPORT)
    images = root.findall("image")
    names = list(dict.fromkeys(_joint_labels(images)))
    if not names:
        raise SagecacheError("has no skeletons and no points", file=path, fix="Label joints by their names")
    try:
        joints = joints_by_name(names, skeleton, renamed)
    except SagecacheError as error:
        raise SagecacheError(error.message, file=path, fix=error.fix) from None
    videos, dropped = _recordings(root), Counter()
    pictures = tuple(_picture(path, image, joints, videos, skeleton, dropped) for image in images)
    notes = [f"box: the <box> of a person's group, else {BOX_RULE}"]
    if videos:
        named = ", ".join(f"'{name}'" for name in videos.values())
        notes.append(f"frames of {named}: the video is their sequence for the leak guard")
    return Reading("CVAT", path, pictures, dropped, tuple(notes), turned=True)


def parse_xml(path: Path) -> Element:
    """The root element. A DOCTYPE is an error before anything of it is read: entities that grow without end
    are declared there, and no export has one.
    """
    parser, builder = expat.ParserCreate(), TreeBuilder()

    def refuse(*_) -> None:
        raise SagecacheError(
            "declares a DOCTYPE, which no CVAT export has and which may be an attack",
            file=path,
            fix="Export it again from CVAT",
        )

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise SagecacheError(
            f"is not XML, or was cut: {expat.ErrorString(error.code)} at line {error.lineno}",
            file=path,
            fix="Export it again from CVAT",
        ) from None
    except LookupError as error:
        raise SagecacheError(f"is no XML: {error}", file=path, fix="Export it again from CVAT") from None
    except OSError as error:
        raise SagecacheError(f"can't be read: {error.strerror}", file=path) from None
    return builder.close()


def _joint_labels(images: Iterable[Element]) -> Iterable[str]:
    for image in images:
        for points in image.iter("points"):
            yield points.get("label", "")


def _recordings(root: Element) -> dict[str | None, str]:
    """{task id: name of the video that its frames are of}; the id is None but in the export of a project."""
    found: dict[str | None, str] = {}
    for task in root.iterfind("meta/project/tasks/task"):
        found[task.findtext("id")] = task.findtext("source") or ""
    places = ("meta/task/source", "meta/job/source", "meta/source")  # newer versions, and older ones
    found[None] = next((text for place in places if (text := root.findtext(place))), "")
    return {task: PurePosixPath(name.replace("\\", "/")).stem for task, name in found.items() if name}


def _picture(
    path: Path,
    image: Element,
    joints: Mapping[str, int | None],
    videos: Mapping[str | None, str],
    skeleton: Skeleton,
    dropped: Counter,
) -> Picture:
    name = image.get("name")
    where = f"image '{name}'"
    if not name:
        raise SagecacheError("an <image> has no name", file=path, record=f"image {image.get('id')}")
    try:
        size = int(image.get("width", "")), int(image.get("height", ""))
        number = int(image.get("id", ""))
    except ValueError:
        raise SagecacheError("lacks its id, width or height", file=path, record=where, fix=EXPORT) from None
    groups = _groups(image)
    boxes, lone = _own_boxes([key for key, _ in groups], _boxes(image, path, where))
    dropped[LONE_BOX] += lone
    persons = [
        Person(_keypoints(points, joints, skeleton, path, where), box)
        for (_, points), box in zip(groups, boxes, strict=True)
    ]
    video = videos.get(image.get("task_id"), videos.get(None))
    fields = {} if video is None else dict(sequence=video, frame=number)
    other = (PurePosixPath(name).name,)
    return Picture(name.replace("\\", "/"), size, tuple(persons), number, other, fields)


def _groups(image: Element) -> list[tuple[str | None, list[Element]]]:
    """(group id, points) of each person: skeletons, then loose points by their group."""
    persons = [(_group(one), one.findall("points")) for one in image.findall("skeleton")]
    loose: dict[str | None, list[Element]] = {}
    for points in image.findall("points"):
        loose.setdefault(_group(points), []).append(points)
    return persons + list(loose.items())


def _own_boxes(
    persons: Sequence[str | None], boxes: Sequence[tuple[str | None, Box]]
) -> tuple[list[Box | None], int]:
    """For each person (its group id) the box of its group; a picture's only box is of its only person. Also
    returns how many boxes are nobody's.
    """
    if len(persons) == len(boxes) == 1:
        return [boxes[0][1]], 0
    left = list(boxes)
    own: list[Box | None] = []
    for group in persons:
        mine = next((one for one in left if group is not None and one[0] == group), None)
        if mine is not None:
            left.remove(mine)
        own.append(None if mine is None else mine[1])
    return own, len(left)


def _boxes(image: Element, path: Path, where: str) -> list[tuple[str | None, Box]]:
    """(group id, box) of each <box>."""
    found = []
    for box in image.findall("box"):
        corners = [_numbers(box.get(key, ""), path, where) for key in ("xtl", "ytl", "xbr", "ybr")]
        if any(len(one) != 1 for one in corners) or corners[0] >= corners[2] or corners[1] >= corners[3]:
            told = ", ".join(box.get(key, "") for key in ("xtl", "ytl", "xbr", "ybr"))
            raise SagecacheError(f"'{told:.60}' are no corners of a box", file=path, record=where, fix=EXPORT)
        (left,), (top,), (right,), (bottom,) = corners
        found.append((_group(box), (left, top, right - left, bottom - top)))
    return found


def _group(element: Element) -> str | None:
    group = element.get("group_id")
    return None if group in (None, "", "0") else group


def _keypoints(
    points: Iterable[Element],
    joints: Mapping[str, int | None],
    skeleton: Skeleton,
    path: Path,
    where: str,
) -> np.ndarray:
    keypoints, seen = np.zeros((skeleton.num_keypoints, 3)), set()
    for point in points:
        label = point.get("label", "")
        joint = joints[label]
        if joint is None or point.get("outside") == "1":
            continue
        xy = [value for pair in point.get("points", "").split(";") for value in _numbers(pair, path, where)]
        if len(xy) != 2:
            raise SagecacheError(
                f"'{label}' has {len(xy) // 2} points, a joint is one", file=path, record=where, fix=EXPORT
            )
        if joint in seen:
            raise SagecacheError(
                f"a person has '{skeleton.names[joint]}' twice",
                file=path,
                record=where,
                fix="Label persons as skeletons, or give the points of each person a group of their own",
            )
        seen.add(joint)
        keypoints[joint] = *xy, 1 if point.get("occluded") == "1" else 2
    return keypoints


def _numbers(text: str, path: Path, where: str) -> list[float]:
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise SagecacheError(f"'{text:.40}' is no position", file=path, record=where, fix=EXPORT)
    return values
