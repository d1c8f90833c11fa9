import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sagecache.synth.body import unit
from sagecache.synth.pose import ARM_MODES, KINDS, LEGS, sample_pose, two_bone

directions = (
    st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(np.array).filter(lambda v: np.linalg.norm(v) > 0.2)
)


@settings(max_examples=60, deadline=None)
@given(upper=directions, lower=directions)
def test_two_bone_reaches_the_wanted_directions(upper, lower):
    upper, lower = unit(upper), unit(lower)
    # a limb folded onto itself or straight has no hinge of its own
    assume(upper @ lower > -0.95 and np.linalg.norm(np.cross(upper, lower)) > 0.1)
    rest = [unit(np.array([0.6, -0.1, -0.8])), unit(np.array([0.5, -0.6, -0.6]))]
    bend = np.array([0, -1.0, 0.15])
    assume(rest[0] @ upper > -0.99)
    first, twist, last = two_bone(rest, [upper, lower], bend)
    np.testing.assert_allclose(first @ rest[0], upper, atol=1e-6)
    np.testing.assert_allclose(twist @ rest[0], rest[0], atol=1e-6)  # the twist keeps the axis
    hinge = unit(np.cross(upper, lower))
    forearm = first @ twist @ last @ rest[1]
    # the forearm bends by the wanted angle; what the rest pose has out of the hinge plane stays
    out_of_plane = unit(np.cross(rest[0], bend)) @ rest[1]
    np.testing.assert_allclose(forearm @ hinge, out_of_plane, atol=1e-6)
    in_plane = unit(forearm - hinge * (forearm @ hinge))
    np.testing.assert_allclose(in_plane, lower, atol=1e-6)


def test_tables_cover_all_kinds():
    assert set(LEGS) == set(ARM_MODES) == set(KINDS)
    assert all(sum(modes) == pytest.approx(1) for modes in ARM_MODES.values())


def _joints(body, rng, kind, group="infant"):
    shape = body.sample_shape(rng, group)
    pose = sample_pose(body, shape.heads, rng, kind)
    return body.keypoints(body.posed(shape, pose.turns, pose.root))


def _chest(joints):
    """The direction the chest faces: right-to-left shoulders crossed with hips-to-shoulders is the back."""
    across = joints[5] - joints[6]
    up = joints[5:7].mean(0) - joints[11:13].mean(0)
    return unit(np.cross(up, across)) * -1


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("supine", 0.75, 1), ("prone", -1, -0.75), ("side", -0.6, 0.8)]
)
def test_chest_faces_where_the_kind_says(body, kind, low, high):
    rng = np.random.default_rng(1)
    for _ in range(6):
        assert low < _chest(_joints(body, rng, kind))[2] < high


def test_standing_people_are_upright(body):
    rng = np.random.default_rng(2)
    for _ in range(5):
        joints = _joints(body, rng, "stand", "older")
        assert joints[0, 2] > joints[5:7, 2].mean() > joints[11:13, 2].mean() > joints[15:17, 2].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_elbows_and_knees_stay_in_range(body, kind):
    rng = np.random.default_rng(3)
    for _ in range(3):
        joints = _joints(body, rng, kind)
        for a, b, c in ((5, 7, 9), (6, 8, 10), (11, 13, 15), (12, 14, 16)):
            upper, lower = unit(joints[b] - joints[a]), unit(joints[c] - joints[b])
            assert np.degrees(np.arccos(upper @ lower)) < 145  # human elbows and knees stop about there


def test_knees_bend_backwards(body):
    """Seen from the thigh, the shin of a kneeling crawler goes to the body's back, never to its front."""
    rng = np.random.default_rng(4)
    for _ in range(5):
        joints = _joints(body, rng, "crawl")
        chest = _chest(joints)
        for hip, knee, ankle in ((11, 13, 15), (12, 14, 16)):
            thigh, shin = unit(joints[knee] - joints[hip]), joints[ankle] - joints[knee]
            up = unit(joints[5:7].mean(0) - joints[11:13].mean(0))
            assert thigh @ chest > 0.5 and shin @ up < 0  # thigh under the belly, shin towards the feet
