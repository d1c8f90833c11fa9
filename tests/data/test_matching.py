"""Detected boxes and the annotated persons that they show."""

from pathlib import Path

import numpy as np
import pytest

from sagecache.data.matching import joint_errors, overlap, with_annotation
from sagecache.structures import Instance

JOINTS = np.array([[10.0, 20, 2], [30, 40, 1], [0, 0, 0]])


def person(bbox=(0, 0, 30, 40), image_id=1, keypoints=None, number=7) -> Instance:
    return Instance(image_id, 0, Path("a.png"), bbox, keypoints=keypoints, annotation_id=number)


@pytest.mark.parametrize(
    "other, share", [((0, 0, 4, 2), 1.0), ((2, 0, 4, 2), 1 / 3), ((4, 0, 4, 2), 0.0), ((1, 1, 2, 2), 2 / 10)]
)
def test_overlap_of_boxes(other, share):
    assert overlap((0, 0, 4, 2), other) == overlap(other, (0, 0, 4, 2)) == pytest.approx(share)


def test_a_detected_box_takes_the_keypoints_of_the_annotation_that_it_covers_best():
    near = person((2, 0, 30, 40), keypoints=JOINTS, number=8)
    nearer = person((1, 0, 30, 40), keypoints=JOINTS + 1, number=9)
    elsewhere = person((0, 0, 30, 40), image_id=2, keypoints=JOINTS)
    without = person((0, 0, 30, 40))
    found = with_annotation(person(), [near, nearer, elsewhere, without])
    assert found.annotation_id == 9 and found.bbox == (0, 0, 30, 40)
    np.testing.assert_array_equal(found.keypoints, JOINTS + 1)


def test_a_box_that_covers_nobody_stays_without_and_one_with_keypoints_keeps_its_own():
    far = person((25, 30, 30, 40), keypoints=JOINTS)
    assert with_annotation(person(), [far]).keypoints is None
    own = person(keypoints=JOINTS)
    assert with_annotation(own, [person(keypoints=JOINTS + 1)]) is own


def test_errors_are_in_diagonals_and_only_where_something_is_annotated():
    points = JOINTS[:, :2] + [[3, 4], [0, -10], [1, 1]]
    np.testing.assert_allclose(joint_errors(points, person(keypoints=JOINTS)), [5 / 50, 10 / 50, np.nan])
    assert np.isnan(joint_errors(points, person())).all()
