"""Checks of what the records of a split say: ids, names, boxes, keypoints, areas, detections.

Each function takes parsed files (their shape is vouched for by `sagecache.data.coco`) and image sizes, and
writes findings; nothing here opens a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from sagecache.data.coco import labeled_keypoints
from sagecache.data.findings import FindingList, some
from sagecache.skeleton.category import (
    UNKNOWN_CATEGORY_FIX,
    is_person,
    person_categories,
    unknown_categories,
)
from sagecache.skeleton.definition import Skeleton

MARGIN = 1.0  # px: labels count from pixel corners or from centres, and are rounded
OVERSHOOT = 0.05  # of an image's side: so far a detector's box may well reach beyond it
SMALLEST = 2.0  # px: a narrower box shows nobody, and is more likely of other units
PLAUSIBLE_AREA = (0.2, 0.98)  # median area / (w h): COCO's segmentations give about .5


def check_images(coco: Mapping, log: FindingList) -> None:
    """Ids and file names of the images."""
    for image_id, n in _repeated(image["id"] for image in coco["images"]):
        log.error("duplicate_image_id", f"{n} images have this id", f"image {image_id}", "Give each its own")
    for name, n in _repeated(image["file_name"] for image in coco["images"] if image.get("file_name")):
        log.error("duplicate_file_name", f"{n} images name this file", name, "Keep one record a file")
    unnamed = [image["id"] for image in coco["images"] if not image.get("file_name")]
    if unnamed:
        log.note("no_file_name", f"images without file_name, read as {{id:012d}}.jpg: {some(unnamed)}")
    other = []
    for image in coco["images"]:
        stem = re.split(r"[/\\]", image.get("file_name") or "")[-1].rsplit(".", 1)[0]
        if re.fullmatch(r"\d{12}", stem) and int(stem) != image["id"]:
            log.warning(
                "name_not_id",
                f"file_name '{image['file_name']}' is the number of another image",
                f"image {image['id']}",
                "file_name is what is read: make sure that the annotations are this file's",
            )
        elif stem and stem != f"{image['id']:012d}":
            other.append(image["id"])
    if other:
        total = len(coco["images"])
        log.note(
            "file_name_rule",
            f"{len(other):,} of {total:,} file names are not {{id:012d}}: file_name is what is read",
        )


def check_annotations(
    coco: Mapping, sizes: Mapping[int, tuple[int, int]], log: FindingList, skeleton: Skeleton | None = None
) -> None:
    """Ids, boxes and keypoints of the persons. sizes: {image_id: (width, height)} as far as known."""
    known = {image["id"] for image in coco["images"]}
    persons = person_categories(coco)
    for key, n in _repeated(a.get("id") for a in coco["annotations"]):
        if key is None:
            log.warning("no_annotation_id", f"{n:,} annotations have no id")
        else:
            log.error("duplicate_annotation_id", f"{n} annotations have this id", f"annotation {key}")
    for i, annotation in enumerate(coco["annotations"]):
        where = _where(i, annotation)
        if annotation["image_id"] not in known:
            log.error("unknown_image", f"image_id {annotation['image_id']} is not among the images", where)
            continue
        if not is_person(annotation, persons):
            continue
        if annotation.get("id") == 0:
            log.warning(
                "annotation_id_0",
                "pycocotools counts a match with id 0 as a miss",
                where,
                "Number from 1; sagecache's own evaluation renumbers",
            )
        size = sizes.get(annotation["image_id"])
        _check_box(annotation["bbox"], size, where, log, margin=(MARGIN, MARGIN))
        _check_keypoints(annotation, size, where, log)
    if any(is_person(one, persons) for one in coco["annotations"]) and (
        strangers := unknown_categories(coco)
    ):
        log.warning("unknown_category", f"{strangers}: they are left out", fix=UNKNOWN_CATEGORY_FIX)
    _check_lengths(coco, skeleton, log)
    _count_persons(coco, persons, log)
    _check_area(coco, persons, sizes, log)


def check_not_empty(coco: Mapping, log: FindingList, labeled: bool) -> None:
    """A split has images and, where it is read for them, keypoints."""
    if not coco["images"]:
        log.error("no_images", "has no images", fix="Name another annotation file in data.py")
        return
    persons = person_categories(coco)
    people = [a for a in coco["annotations"] if is_person(a, persons) and not a.get("iscrowd")]
    if labeled and not any(labeled_keypoints(a) for a in people):
        strangers = "" if people else unknown_categories(coco)
        log.error(
            "no_labels",
            f"{strangers}: no person is left"
            if strangers
            else "has no keypoints, and is trained or measured by them",
            fix=UNKNOWN_CATEGORY_FIX if strangers else "Name a file with keypoints in data.py",
        )


def check_detections(
    detections: Sequence[Mapping],
    coco: Mapping,
    sizes: Mapping[int, tuple[int, int]],
    log: FindingList,
    category_id: int = 1,
    min_score: float = 0.0,
) -> None:
    """Boxes of a detection file against the images of the split.

    min_score: the split's own; boxes of persons from there on are used, and looked at more closely.
    """
    known = {image["id"] for image in coco["images"]}
    strangers = sorted({d["image_id"] for d in detections} - known)
    if strangers:
        log.error(
            "unknown_image",
            f"detections of images that are not in the split: {some(strangers)}",
            fix="Take the detections of this split, or list these images",
        )
    shares = bool(detections) and all(max(map(abs, one["bbox"])) <= 1 for one in detections)
    if shares:
        log.error(
            "normalised_boxes",
            f"no number of any bbox is above 1: these are shares of the image, as {detections[0]['bbox']}",
            fix="Write them in pixels: x and w times the width, y and h times the height",
        )
    for i, detection in enumerate(detections):
        where = f"detections[{i}]"
        if not 0 <= detection["score"] <= 1:
            log.warning("score_range", f"score {detection['score']} is not in [0, 1]", where)
        size = sizes.get(detection["image_id"])
        used = detection["category_id"] == category_id and detection["score"] >= min_score
        if _check_box(detection["bbox"], size, where, log) and used and not shares:
            _check_used_box(detection["bbox"], size, where, log)
    found = {d["image_id"] for d in detections if d["category_id"] == category_id}
    if detections and not found:
        kinds = sorted({d["category_id"] for d in detections})
        log.error("no_person_category", f"no box of category {category_id} (person): {some(kinds)}")
    empty = sorted(known - found)
    if empty:
        log.warning("no_person_found", f"images without a person box, never trained on: {some(empty)}")


def _check_box(
    bbox: Sequence[float],
    size: tuple[int, int] | None,
    where: str,
    log: FindingList,
    margin: tuple[float, float] | None = None,
    fix: str | None = None,
) -> bool:
    """Whether a box has an area and touches its image.

    margin: px beyond the image's sides, in x and in y, that are no fault; None: any.
    """
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        log.error("empty_box", f"bbox {bbox} has no area", where, "It would be left out: mend or remove it")
        return False
    if size is None:
        return True
    width, height = size
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        log.error("box_outside", f"bbox {bbox} lies outside its image ({width}x{height})", where)
        return False
    if margin is None:
        return True
    beyond = max(-x, x + w - width) > margin[0] or max(-y, y + h - height) > margin[1]
    if beyond:
        log.warning("box_over_edge", f"bbox {bbox} reaches beyond its image ({width}x{height})", where, fix)
    return True


def _check_used_box(
    bbox: Sequence[float], size: tuple[int, int] | None, where: str, log: FindingList
) -> None:
    """A detected box that touches its image and will be cropped: is it of a person, in pixels, x y w h?"""
    if min(bbox[2:]) < SMALLEST:
        fix = "A higher min_score of the split leaves such out; if many are like this, they are not in pixels"
        log.warning("tiny_box", f"bbox {bbox} is less than {SMALLEST:g} pixels wide or high", where, fix)
    elif size is not None:
        margin = max(MARGIN, OVERSHOOT * size[0]), max(MARGIN, OVERSHOOT * size[1])
        fix = "A bbox is x, y, w, h in pixels: see that it is not x1, y1, x2, y2"
        _check_box(bbox, size, where, log, margin, fix)


def _check_keypoints(annotation: Mapping, size, where: str, log: FindingList) -> None:
    values = annotation.get("keypoints") or []
    points = [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]
    odd = sorted({v for _, _, v in points} - {0, 1, 2})
    if odd:
        log.error("visibility", f"v must be 0, 1 or 2, found {some(odd)}", where)
    labeled = [(x, y) for x, y, v in points if v > 0]
    stated = annotation.get("num_keypoints")
    if stated is not None and values and stated != len(labeled):
        log.warning("num_keypoints", f"num_keypoints is {stated}, {len(labeled)} have v > 0", where)
    if size is not None:
        width, height = size
        outside = [
            (x, y)
            for x, y in labeled
            if not (-MARGIN <= x <= width + MARGIN and -MARGIN <= y <= height + MARGIN)
        ]
        if outside:
            text = f"{len(outside)} labeled keypoints lie outside the image ({width}x{height}): "
            log.warning("keypoint_outside", text + some(outside, 2), where, "Set v to 0 there")
    bx, by, bw, bh = annotation["bbox"]
    far = sum(
        not (-0.25 * bw <= x - bx <= 1.25 * bw and -0.25 * bh <= y - by <= 1.25 * bh) for x, y in labeled
    )
    if bw > 0 and bh > 0 and far > len(labeled) / 2:
        log.error(
            "box_not_of_person", f"{far} of {len(labeled)} labeled keypoints are far from the box", where
        )


def _check_lengths(coco: Mapping, skeleton: Skeleton | None, log: FindingList) -> None:
    lengths = Counter(len(a["keypoints"]) // 3 for a in coco["annotations"] if a.get("keypoints"))
    if not lengths:
        return
    expected = skeleton.num_keypoints if skeleton is not None else lengths.most_common(1)[0][0]
    for i, annotation in enumerate(coco["annotations"]):
        count = len(annotation.get("keypoints") or []) // 3
        if count not in (0, expected):
            log.error("keypoint_count", f"{count} keypoints, expected {expected}", _where(i, annotation))
    for category in coco["categories"]:
        names = tuple(category.get("keypoints") or ())
        if skeleton is not None and names and names != skeleton.names:
            log.error(
                "keypoint_names",
                f"keypoints {some(names, 3)} are not those of '{skeleton.name}': {some(skeleton.names, 3)}",
                f"category {category['id']}",
                "Name the data set's own dataset_info in data.py",
            )


def _count_persons(coco: Mapping, persons: set[int] | None, log: FindingList) -> None:
    annotations = [a for a in coco["annotations"] if is_person(a, persons)]
    crowds = [a.get("id") for a in annotations if a.get("iscrowd")]
    bare = [a.get("id") for a in annotations if not a.get("iscrowd") and not labeled_keypoints(a)]
    message = f"{len(coco['images']):,} images, {len(annotations):,} persons"
    log.note("contents", f"{message}, {len(annotations) - len(crowds) - len(bare):,} with keypoints")
    if crowds:
        log.note("crowd", f"crowds, left out of training and ignored in evaluation: {some(crowds)}")
    if bare:
        log.note("no_keypoints", f"persons without keypoints, ignored in evaluation: {some(bare)}")


def _check_area(coco: Mapping, persons: set[int] | None, sizes: Mapping, log: FindingList) -> None:
    ratios, larger, missing = [], 0, 0
    for annotation in coco["annotations"]:
        _, _, w, h = annotation["bbox"]
        if annotation.get("iscrowd") or w <= 0 or h <= 0 or not labeled_keypoints(annotation):
            continue
        if annotation.get("area") is None:
            missing += 1
            continue
        ratios.append(annotation["area"] / (w * h))
        width, height = sizes.get(annotation["image_id"], (None, None))
        larger += width is not None and annotation["area"] > width * height
    advice = "State the rule with every AP; 'bbox53' (.53 w h) is the default"
    if missing:
        log.note("no_area", f"{missing:,} labeled persons have no area", fix=advice)
    if not ratios:
        return
    middle = median(ratios)
    text = f"median area / (w h) is {middle:.3g} over {len(ratios):,} labeled persons"
    if larger:
        text += f"; the area of {larger:,} is larger than their image"
    plausible = PLAUSIBLE_AREA[0] <= middle <= PLAUSIBLE_AREA[1] and not larger
    (log.note if plausible else log.warning)("area_rule", text, fix=advice)


def _repeated(values) -> list[tuple]:
    counts = Counter(values)
    return [(value, n) for value, n in counts.items() if n > 1]


def _where(index: int, annotation: Mapping) -> str:
    return f"annotation {annotation['id']}" if "id" in annotation else f"annotations[{index}]"
