import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sagecache.errors import SagecacheError
from sagecache.skeleton import COCO17, Skeleton
from sagecache.skeleton.measure import (
    NORMALISERS,
    all_visible,
    body_size,
    inversion,
    joint_angles,
    joint_offsets,
    limb_lengths,
    relative_size,
)

# Whole pixels, so that 'an end lies on the vertex' is exact for both ways of computing.
bodies = arrays(np.float64, (3, 17, 2), elements=st.integers(-500, 500).map(float))


@settings(max_examples=30, deadline=None)
@given(bodies)
def test_lengths_against_a_slow_loop(keypoints):
    lengths = limb_lengths(keypoints, COCO17.limb_edges)
    for n in range(3):
        for e, (a, b) in enumerate(COCO17.limb_edges):
            assert lengths[n, e] == pytest.approx(math.dist(keypoints[n, a], keypoints[n, b]))


@settings(max_examples=30, deadline=None)
@given(bodies)
def test_angles_against_directions(keypoints):
    angles = joint_angles(keypoints, COCO17.angle_triplets)
    for n in range(3):
        for t, (a, v, b) in enumerate(COCO17.angle_triplets):
            u, w = keypoints[n, a] - keypoints[n, v], keypoints[n, b] - keypoints[n, v]
            if not u.any() or not w.any():
                assert np.isnan(angles[n, t])
                continue
            turn = abs(math.atan2(u[1], u[0]) - math.atan2(w[1], w[0]))
            assert angles[n, t] == pytest.approx(min(turn, 2 * math.pi - turn), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(bodies, st.floats(0, 2 * math.pi), st.floats(0.1, 10), st.booleans())
def test_angles_and_ratios_ignore_rotation_scale_and_mirror(keypoints, turn, scale, mirror):
    c, s = math.cos(turn), math.sin(turn)
    moved = keypoints @ np.array([[c, s], [-s, c]]) * scale + [12, -7]
    if mirror:
        moved[..., 0] *= -1
    before = joint_angles(keypoints, COCO17.angle_triplets)
    after = joint_angles(moved, COCO17.angle_triplets)
    ends = limb_lengths(keypoints, COCO17.edges)
    measurable = np.isfinite(before)
    np.testing.assert_allclose(after[measurable], before[measurable], atol=1e-6)
    np.testing.assert_allclose(limb_lengths(moved, COCO17.edges), ends * scale, rtol=1e-9, atol=1e-7)


def test_known_angles():
    corner = np.array([[[1, 0], [0, 0], [0, 2]], [[1, 0], [0, 0], [-3, 0]], [[1, 0], [0, 0], [2, 0]]])
    angles = joint_angles(corner, np.array([[0, 1, 2]]))
    np.testing.assert_allclose(angles[:, 0], [math.pi / 2, math.pi, 0])


def standing():
    """A body 100 high: shoulders 20 apart at y 20, hips 10 apart at y 60, all 17 joints set."""
    keypoints = np.zeros((1, 17, 2))
    keypoints[0, :, 1] = 10
    keypoints[0, [5, 6]] = [[60, 20], [40, 20]]
    keypoints[0, [7, 8]] = [[65, 40], [35, 40]]
    keypoints[0, [9, 10]] = [[65, 60], [35, 60]]
    keypoints[0, [11, 12]] = [[55, 60], [45, 60]]
    keypoints[0, [13, 14]] = [[55, 80], [45, 80]]
    keypoints[0, [15, 16]] = [[55, 100], [45, 100]]
    return keypoints, np.ones((1, 17), bool), np.array([[30.0, 0, 40, 90]])


def test_body_sizes_by_hand():
    keypoints, visible, bbox = standing()
    sizes = {name: body_size(name, keypoints, visible, bbox, COCO17)[0] for name in NORMALISERS}
    assert sizes["sqrt_area"] == pytest.approx(60)
    assert sizes["diagonal"] == pytest.approx(math.hypot(40, 90))
    assert sizes["torso"] == pytest.approx(40)
    logs = [math.log(math.dist(keypoints[0, a], keypoints[0, b])) for a, b in COCO17.limb_edges]
    assert sizes["mean_log_limb"] == pytest.approx(math.exp(sum(logs) / 12))


def test_what_cannot_be_measured_is_nan():
    keypoints, visible, bbox = standing()
    visible[0, 11] = False  # a hip
    assert np.isnan(body_size("torso", keypoints, visible, bbox, COCO17)[0])
    assert np.isnan(body_size("mean_log_limb", keypoints, visible, bbox, COCO17)[0])
    assert np.isfinite(body_size("sqrt_area", keypoints, visible, bbox, COCO17)[0])
    for bad in ([0, 0, 0, 90], [0, 0, -40, -90]):
        assert np.isnan(body_size("sqrt_area", keypoints, visible, np.array([bad]), COCO17)[0])
    keypoints[0, 9] = keypoints[0, 7]  # a limb without length has no logarithm
    visible[:] = True
    assert np.isnan(body_size("mean_log_limb", keypoints, visible, bbox, COCO17)[0])


def test_a_body_without_torso_or_limbs_is_nan_and_no_body_is_empty():
    face = Skeleton("face", ("nose", "left_eye"), [[0, 1]], [0, 1], [0.1, 0.1])
    points, visible, bbox = np.ones((2, 2, 2)), np.ones((2, 2), bool), np.ones((2, 4))
    for name in ("torso", "mean_log_limb"):
        assert np.isnan(body_size(name, points, visible, bbox, face)).all()
    nobody = np.zeros((0, 17, 2)), np.zeros((0, 17), bool), np.zeros((0, 4))
    assert all(body_size(name, *nobody, COCO17).shape == (0,) for name in NORMALISERS)
    assert joint_angles(nobody[0], COCO17.angle_triplets).shape == (0, 8)


def test_all_visible():
    visible = np.array([[True, True, False]])
    assert all_visible(visible, np.array([[0, 1], [1, 2]])).tolist() == [[True, False]]


def test_an_unknown_normaliser_names_the_known_ones():
    with pytest.raises(SagecacheError, match="did you mean 'torso'"):
        body_size("torsos", *standing(), COCO17)


def test_offsets_are_from_the_mean_of_all_neighbours():
    """A chain of three and a joint without edges: known distances, NaN where a neighbour is not seen."""
    chain = Skeleton("chain", ("a", "b", "c", "d"), [[0, 1], [1, 2]], range(4), [0.1] * 4)
    points = np.array([[[0, 0], [3, 4], [6, 0], [50, 50]]] * 3, dtype=float)
    visible = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1]], dtype=bool)
    points[1, 0] = np.nan
    offsets = joint_offsets(points, visible, chain)
    nan = np.nan
    np.testing.assert_allclose(offsets, [[5, 4, 5, nan], [nan, nan, 5, nan], [nan, nan, nan, nan]])


def test_relative_size_is_the_lower_median_of_the_limbs_there_are():
    nan = np.nan
    typical = np.array([1.0, 2.0, 4.0, nan])
    lengths = np.array([[2, 2, 40, 9], [3, nan, 4, 9], [nan, nan, nan, 9], [nan, 5, nan, nan]])
    np.testing.assert_allclose(relative_size(lengths, typical), [2, 1, nan, 2.5])
    assert np.isnan(relative_size(np.zeros((2, 0)), np.zeros(0))).all()


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 2 * math.pi), st.floats(0.1, 10))
def test_inversion_of_known_bodies(turn, scale):
    points = np.zeros((3, 17, 2))
    points[:, 5], points[:, 6], points[:, 11], points[:, 12] = (-2, 0), (2, 0), (-1, 6), (1, 6)
    points[:, :5] = [0, -3]
    points[1, :5], points[2, :5] = (0, 8), (0, 3)
    points[:, 0] += 999  # not visible
    visible = np.arange(17) > 0
    c, s = math.cos(turn), math.sin(turn)
    moved = scale * points @ np.array([[c, s], [-s, c]]) + 7
    expected = [math.log(3 / 9), math.log(8 / 2), 0]
    np.testing.assert_allclose(inversion(moved, np.tile(visible, (3, 1)), COCO17), expected, atol=1e-9)
    for hidden in (5, 12, slice(0, 5)):
        seen = np.tile(visible, (3, 1))
        seen[:, hidden] = False
        assert np.isnan(inversion(moved, seen, COCO17)).all()
