"""The made-up infant is consistent: what lies in its pictures agrees with its geometry."""

import numpy as np

from sagecache.skeleton import COCO17
from sagecache.visualization.sample import figure


def test_joints_lie_on_the_body_and_left_is_left():
    infant = figure()
    x, y = infant.keypoints[:, :2].astype(int).T
    assert infant.mask[y, x].all() and (infant.keypoints[:, 2] == 1).sum() == 1
    for left, right in COCO17.mirrored_joints:  # it lies on its back: its left is on the picture's right
        assert x[left] > x[right], COCO17.names[left]


def test_the_box_encloses_the_mask_tightly():
    infant = figure()
    left, top, width, height = map(int, infant.bbox)
    assert infant.mask[top : top + height, left : left + width].sum() == infant.mask.sum()
    assert infant.mask[top].any() and infant.mask[top + height - 1].any()
    assert infant.mask[:, left].any() and infant.mask[:, left + width - 1].any()


def test_normals_are_those_of_the_head_which_is_a_ball():
    infant = figure()
    rows, columns = np.mgrid[:128, :96].astype(float)
    offset = np.stack([columns - 48, rows - 22])
    inner = (offset**2).sum(0) < 9**2
    ball = np.stack([*offset, -np.sqrt(np.clip(15**2 - (offset**2).sum(0), 1, None))]) / 15
    cosine = (infant.normal * ball).sum(0)[inner]
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 4
    np.testing.assert_allclose(np.linalg.norm(infant.normal, axis=0), 1)
    assert (infant.normal[2] < 0).all(), "towards the camera"
