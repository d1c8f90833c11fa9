"""Boxes about keypoints: extent, padding, and joints that don't count."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sagecache.data.boxes import MIN_JOINTS, keypoint_boxes


def person(*points, confidence=1.0):
    return np.array([[x, y, confidence] for x, y in points])


def test_the_box_is_the_joints_extent_about_its_middle():
    one = person((10, 20), (30, 20), (20, 60))[None]
    np.testing.assert_allclose(keypoint_boxes(one, padding=1.0), [[10, 20, 20, 40]])
    np.testing.assert_allclose(keypoint_boxes(one, padding=1.5), [[5, 10, 30, 60]])


def test_doubtful_joints_do_not_count():
    one = np.concatenate([person((10, 20), (30, 20), (20, 60)), person((500, 500), confidence=0.2)])[None]
    np.testing.assert_allclose(keypoint_boxes(one, 1.0, threshold=0.3), [[10, 20, 20, 40]])


def test_too_few_joints_have_no_box():
    two = np.stack([person((1, 1), (2, 2), (0, 0)), person((1, 1), (2, 2), (5, 5))])
    two[0, 2, 2] = 0
    assert np.isnan(keypoint_boxes(two)[0]).all() and np.isfinite(keypoint_boxes(two)[1]).all()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrays(float, (4, 6, 2), elements=st.floats(-1e4, 1e4)), arrays(bool, (4, 6)))
def test_every_joint_that_counts_lies_in_its_box(points, counted):
    keypoints = np.concatenate([points, counted[..., None].astype(float)], 2)
    boxes = keypoint_boxes(keypoints)
    for box, joints, seen in zip(boxes, points, counted, strict=True):
        assert np.isnan(box).all() == (seen.sum() < MIN_JOINTS)
        if seen.sum() >= MIN_JOINTS:
            inside = (joints[seen] >= box[:2] - 1e-6) & (joints[seen] <= box[:2] + box[2:] + 1e-6)
            assert inside.all()
