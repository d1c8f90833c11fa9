"""Joint maps: what is common keeps its values, what is not is zero, and left stays left."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.errors import SagecacheError
from sagecache.skeleton.convert import (
    COCO17_FROM_SMIL25,
    COCO17_FROM_WHOLEBODY133,
    SMIL25,
    JointMap,
    find_joint,
    joints_by_name,
    map_by_name,
)
from sagecache.skeleton.definition import COCO17, Skeleton

# By number, as two public conversions have it: MINI-RGBD's ids of COCO's joints, nose to ankles.
SMIL_IDS = [24, -1, -1, -1, -1, 16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8]


def test_smil_is_mapped_as_others_map_it():
    assert COCO17_FROM_SMIL25.index.tolist() == SMIL_IDS
    assert len(COCO17_FROM_SMIL25.common) == 13
    assert not {"left_eye", "right_eye", "left_ear", "right_ear"} & set(COCO17_FROM_SMIL25.common)


def test_the_names_that_mislead():
    taken = {name: SMIL25[i] for name, i in zip(COCO17.names, SMIL_IDS, strict=True) if i >= 0}
    assert (taken["left_shoulder"], taken["left_hip"]) == ("leftUpperArm", "leftThigh")
    assert not {"leftShoulder", "rightShoulder"} & set(taken.values())  # the collar bones


@pytest.mark.parametrize("joints", [COCO17_FROM_SMIL25, COCO17_FROM_WHOLEBODY133])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.floats(1e-3, 1e5))
def test_common_joints_keep_their_values_and_others_are_zero(joints, seed, scale):
    source = scale * np.random.default_rng(seed).normal(size=(2, joints.source_count, 3))
    converted = joints(source)
    assert converted.shape == (2, 17, 3)
    for k, i in enumerate(joints.index):
        np.testing.assert_array_equal(converted[:, k], source[:, i] if i >= 0 else 0)


def test_mirrored_sources_give_mirrored_joints():
    """Swapping all of SMIL's sides swaps all of COCO's."""
    swapped = [name.replace("left", "#").replace("right", "left").replace("#", "right") for name in SMIL25]
    order = [SMIL25.index(name) for name in swapped]
    points = np.random.default_rng(0).normal(size=(25, 3))
    np.testing.assert_array_equal(
        COCO17_FROM_SMIL25(points[order]), COCO17_FROM_SMIL25(points)[COCO17.flip_indices]
    )


def test_a_map_checks_itself():
    with pytest.raises(SagecacheError, match="needs 17"):
        JointMap(3, COCO17, np.zeros(3))
    with pytest.raises(SagecacheError, match="joint 5 is not one of 5"):
        JointMap(5, COCO17, np.array([5] + [-1] * 16))
    with pytest.raises(SagecacheError, match="two joints"):
        JointMap(5, COCO17, np.array([1, 1] + [-1] * 15))
    with pytest.raises(ValueError, match="expected"):
        COCO17_FROM_SMIL25(np.zeros((17, 3)))


SPELLINGS = st.sampled_from(
    [
        "{side}_{rest}",
        "{side}-{rest}",
        "{side} {rest}",
        "{side}{rest}",
        "{rest}_{side}",
        "{rest} ({side})",
        "{first}_{rest}",
        "{first}{rest}",
        "{rest}.{first}",
    ]
)
CASES = st.sampled_from([str.lower, str.upper, str.title, str])


@settings(deadline=None)
@given(st.sampled_from(COCO17.names[1:]), SPELLINGS, CASES)
def test_a_joint_is_found_however_its_side_is_written(name, spelling, case):
    side, rest = name.split("_")
    written = case(spelling.format(side=side, rest=rest, first=side[0]))
    assert find_joint(written, COCO17) == COCO17.names.index(name)


def test_no_spelling_of_a_left_joint_finds_a_right_one():
    for side, rest in itertools.product(
        ("left", "right"), {name.split("_")[-1] for name in COCO17.names[1:]}
    ):
        for text in (side + rest, rest + side, side[0] + rest, rest + side[0]):
            assert COCO17.names[find_joint(text, COCO17)] == f"{side}_{rest}"


@pytest.mark.parametrize("name", ["", "_", "neck", "left", "left_eye_inner", "wrist", "3", "links", "左肩"])
def test_strangers_are_not_guessed(name):
    assert find_joint(name, COCO17) is None


def test_a_form_of_two_joints_means_neither():
    """'rear' could be r_ear or a joint of that name: the name in full wins."""
    names = ("right_ear", "rear", "left_hip", "l_hip")
    skeleton = Skeleton("odd", names, np.zeros((0, 2)), np.arange(4), np.ones(4))
    assert find_joint("rear", skeleton) == 1
    assert find_joint("left-hip", skeleton) == 2 and find_joint("LHip", skeleton) == 3


def test_unknown_names_are_told_all_at_once_with_the_way_out():
    with pytest.raises(SagecacheError) as told:
        joints_by_name(["nose", "Hals", "Kopf"], COCO17)
    text = str(told.value)
    assert "'Hals', 'Kopf'" in text and "--map 'Hals=nose'" in text and "right_ankle" in text


def test_names_can_be_given_or_left_out():
    joints = map_by_name(["Hals", "Nase", "LWrist"], COCO17, {"Hals": "none", "Nase": "nose"})
    assert joints.common == ("nose", "left_wrist")
    assert joints.index[0] == 1 and joints.index[9] == 2
    assert joints_by_name(["Hals"], COCO17, {"Hals": "none"}) == {"Hals": None}


def test_a_given_name_beats_the_one_that_it_looks_like():
    assert map_by_name(["leftShoulder"], COCO17, {"leftShoulder": "nose"}).common == ("nose",)


def test_names_that_contradict():
    with pytest.raises(SagecacheError, match="'L_Wrist' and 'left wrist' are both left_wrist"):
        map_by_name(["L_Wrist", "left wrist"], COCO17)
    with pytest.raises(SagecacheError, match="which is no joint.*did you mean 'nose'"):
        map_by_name(["n"], COCO17, {"n": "noze"})
    with pytest.raises(SagecacheError, match="no joint is named 'nosee'.*did you mean 'nose'"):
        map_by_name(["nose"], COCO17, {"nosee": "nose"})
