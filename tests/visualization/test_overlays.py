"""Marks stand on their joints, and each fate has a sign of its own."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from sagecache.skeleton import COCO17
from sagecache.structures import Fate
from sagecache.visualization.draw import LEFT, RIGHT, joint_colours
from sagecache.visualization.overlays import (
    FATES,
    View,
    all_styles,
    data_uri,
    fate_style,
    joint_sides,
    overlay,
)
from sagecache.visualization.sample import figure

INFANT = figure()
TEXTS = [f"said of {k}" for k in range(17)]


def view(**changes) -> View:
    own = dict(title="weak", image=INFANT.image, joints=INFANT.keypoints[:, :2], marked=np.ones(17, bool))
    return View(**own | changes)


def drawn(fates=("kept",) * 17, **changes):
    return overlay(view(**changes), COCO17, fates, TEXTS)


def test_signs_can_be_told_apart_without_colour():
    styles = all_styles()
    assert len({(style.shape, style.learned) for style in styles}) >= len(styles) - 1  # "other" is a leftover
    assert len({style.name for style in styles}) == len({style.words for style in styles}) == len(styles)
    assert {name for name, style in FATES.items() if style.learned} == {
        "kept",
        "corrected",
        "rescued",
        "by_prior",
    }


def test_every_fate_of_a_joint_has_a_sign():
    assert {fate.name.lower() for fate in Fate} <= FATES.keys()


def test_a_reason_that_is_not_known_is_shown_under_its_own_name():
    style = fate_style("too_blurred")
    assert (style.name, style.words, style.learned) == ("other", "too blurred", False)
    assert fate_style("kept") is FATES["kept"]


def test_each_joint_has_its_mark_its_sign_and_its_text():
    fates = ["kept", "low_confidence"] + ["refused"] * 15
    done = drawn(fates)
    assert [(mark.x, mark.y) for mark in done.marks] == [tuple(p) for p in INFANT.keypoints[:, :2].tolist()]
    assert [mark.style.name for mark in done.marks] == fates
    assert done.marks[1].title == "left eye: said of 1"
    assert (done.width, done.height) == (96, 128) and done.label == "weak with 17 of 17 joints"


def test_what_is_not_marked_or_not_a_place_or_outside_has_no_mark():
    marked, joints = np.ones(17, bool), INFANT.keypoints[:, :2].copy()
    marked[0], joints[1], joints[2] = False, np.nan, (96.4, 5)
    done = drawn(joints=joints, marked=marked)
    assert len(done.marks) == 14 and done.label == "weak with 14 of 17 joints"
    ends = [point for limb in done.limbs for point in (limb[:2], limb[2:4])]
    assert np.isfinite(ends).all() and tuple(joints[0]) not in ends
    joints[2] = (1e9, 5)
    assert max(abs(v) for limb in drawn(joints=joints).limbs for v in limb[:4]) < 200


def test_limbs_have_the_persons_own_sides_as_in_other_pictures():
    names = {LEFT: "left", RIGHT: "right"}
    expected = [names.get(tuple(colour), "middle") for colour in joint_colours(COCO17).tolist()]
    assert joint_sides(COCO17) == expected
    assert {limb[4] for limb in drawn().limbs} == {"left", "right", "middle"}
    assert len(drawn().limbs) == len(COCO17.edges)


def test_true_joints_are_crosses_where_they_are_known():
    truth = INFANT.keypoints[:, :2].copy()
    truth[3:] = np.nan
    assert drawn(truth=truth).truth == [tuple(point) for point in truth[:3].tolist()]


def test_the_picture_is_in_the_page_itself():
    uri = data_uri(INFANT.image)
    head, _, data = uri.partition(",")
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert head == "data:image/jpeg;base64"
    assert np.abs(image.astype(int) - INFANT.image).mean() < 6
