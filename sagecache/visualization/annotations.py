"""A contact sheet of a COCO dict: some of its pictures with their persons drawn on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sagecache.data.coco import image_path, labeled_keypoints, read_image
from sagecache.data.splits import evenly
from sagecache.errors import counted
from sagecache.geometry.affine import Size, apply_affine
from sagecache.skeleton.definition import Skeleton
from sagecache.visualization.draw import draw_box, draw_skeleton
from sagecache.visualization.sheet import Tile, fit, grid


def annotation_sheet(
    coco: Mapping, image_root: Path, skeleton: Skeleton, count: int = 12, cell: Size = (320, 320)
) -> np.ndarray:
    """At most count pictures, evenly over the file, those with persons before those without.

    cell (width, height) in pixels: what a picture is fitted into. Returns RGB uint8 (H, W, 3). Raises
    SagecacheError for an image that can't be read, ValueError for a dict without images.
    """
    persons = defaultdict(list)
    for annotation in coco["annotations"]:
        persons[annotation["image_id"]].append(annotation)
    shown = [record for record in coco["images"] if persons[record["id"]]] or coco["images"]
    tiles = [
        _tile(record, persons[record["id"]], image_root, skeleton, cell) for record in evenly(shown, count)
    ]
    return grid(tiles, columns=min(4, max(1, len(tiles))))


def _tile(record: Mapping, persons: Sequence[Mapping], root: Path, skeleton: Skeleton, cell: Size) -> Tile:
    path = image_path(root, dict(record))
    picture, shown_from_image = fit(read_image(path), cell)
    joints = 0
    for person in persons:
        x, y, w, h = person["bbox"]
        corners = apply_affine(shown_from_image, np.array([[x, y], [x + w, y + h]], dtype=float))
        picture = draw_box(picture, (*corners[0], *(corners[1] - corners[0])))
        values = np.array(person.get("keypoints") or [], dtype=float).reshape(-1, 3)
        if len(values):
            points = apply_affine(shown_from_image, values[:, :2])
            picture = draw_skeleton(picture, np.c_[points, values[:, 2]], skeleton)
        joints += labeled_keypoints(dict(person))
    caption = f"{counted(len(persons), 'person')}, {counted(joints, 'joint')}" if persons else ""
    return Tile(picture, record.get("file_name") or path.name, caption)
