"""The contact sheet shows which pictures there are, and each joint where the file says it is."""

import cv2
import numpy as np
import pytest
from formats import write_image

from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import COCO17
from sagecache.visualization.annotations import annotation_sheet
from sagecache.visualization.draw import BOX, LEFT, RIGHT

NAMES = COCO17.names


def coco_of(*labels: dict, folder) -> dict:
    """A picture a label ({joint: (x, y)}, empty for one without a person), 200x100, all black."""
    images, annotations = [], []
    for i, joints in enumerate(labels, 1):
        write_image(folder / f"{i}.png", (200, 100), shade=0)
        images.append(dict(id=i, file_name=f"{i}.png"))
        if joints:
            points = np.zeros((17, 3))
            for name, (x, y) in joints.items():
                points[NAMES.index(name)] = x, y, 2
            keypoints = points.ravel().tolist()
            annotations.append(dict(image_id=i, bbox=[20, 10, 160, 80], keypoints=keypoints))
    return dict(images=images, annotations=annotations)


def places(sheet: np.ndarray, colour) -> np.ndarray:
    """(N, 2) x, y of the pixels of a colour."""
    return np.argwhere((sheet == colour).all(-1))[:, ::-1]


def test_joints_and_box_stand_where_the_file_says(tmp_path):
    coco = coco_of({"left_wrist": (60, 40), "right_wrist": (120, 70)}, folder=tmp_path)
    sheet = annotation_sheet(coco, tmp_path, COCO17, cell=(400, 400))
    left, right, box = (places(sheet, colour) for colour in (LEFT, RIGHT, BOX))
    apart = right.mean(0) - left.mean(0)
    np.testing.assert_allclose(apart, [2 * 60, 2 * 30], atol=1)  # enlarged twice
    corner = left.mean(0) - box.min(0)
    np.testing.assert_allclose(corner, [2 * 40, 2 * 30], atol=4)  # the line has a width
    np.testing.assert_allclose(np.ptp(box, axis=0), [2 * 160, 2 * 80], atol=6)


def test_pictures_with_persons_come_first_evenly(tmp_path):
    labels = [{} if i % 2 else {"nose": (50, 50)} for i in range(10)]
    coco = coco_of(*labels, folder=tmp_path)
    one = annotation_sheet(coco, tmp_path, COCO17, count=1, cell=(200, 200))
    five = annotation_sheet(coco, tmp_path, COCO17, count=12, cell=(200, 200))
    assert five.shape[1] > 3 * one.shape[1] and five.shape[0] > 1.5 * one.shape[0]  # 5 pictures in rows of 4


def test_a_file_without_persons_shows_its_pictures(tmp_path):
    sheet = annotation_sheet(coco_of({}, {}, folder=tmp_path), tmp_path, COCO17)
    assert (sheet == 0).all(-1).sum() > 2 * 100 * 200 and not len(places(sheet, BOX))


def test_persons_without_keypoints_have_their_box(tmp_path):
    coco = coco_of({"nose": (50, 50)}, folder=tmp_path)
    del coco["annotations"][0]["keypoints"]
    assert len(places(annotation_sheet(coco, tmp_path, COCO17), BOX))


def test_what_can_not_be_shown(tmp_path):
    coco = coco_of({"nose": (50, 50)}, folder=tmp_path)
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(SagecacheError, match="1.png"):
        annotation_sheet(coco, tmp_path, COCO17)
    with pytest.raises(ValueError, match="tiles"):
        annotation_sheet(dict(images=[], annotations=[]), tmp_path, COCO17)


def test_the_picture_is_rgb(tmp_path):
    coco = coco_of({}, folder=tmp_path)
    red = np.zeros((100, 200, 3), np.uint8)
    red[..., 2] = 255
    cv2.imwrite(str(tmp_path / "1.png"), red)
    assert len(places(annotation_sheet(coco, tmp_path, COCO17, cell=(200, 200)), (255, 0, 0)))
