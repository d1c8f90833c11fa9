"""Marks land where they should and in the right colour; maps keep their meaning when they become colours."""

import runpy
import sys

import cv2
import numpy as np
import pytest

from sagecache.skeleton import COCO17, Skeleton
from sagecache.visualization.draw import (
    BOX,
    LEFT,
    MIDDLE,
    NOTHING,
    RIGHT,
    colour_depth,
    colour_normals,
    depth_scale,
    draw_box,
    draw_heatmaps,
    draw_mask,
    draw_skeleton,
    joint_colours,
)

GREY = np.full((220, 200, 3), 90, dtype=np.uint8)


def spread_joints() -> np.ndarray:
    """COCO-17 joints on a coarse lattice, so that no disc covers another."""
    points = np.array([[20 + 35 * (k % 5), 20 + 45 * (k // 5)] for k in range(17)], dtype=float)
    return np.c_[points, np.full(17, 2)]


def only_joint(k: int, visibility: int = 2) -> np.ndarray:
    joints = spread_joints()
    joints[:, 2] = 0
    joints[k, 2] = visibility
    return joints


def test_each_side_has_its_colour():
    colours = joint_colours(COCO17)
    for k, name in enumerate(COCO17.names):
        expected = LEFT if name.startswith("left") else RIGHT if name.startswith("right") else MIDDLE
        assert tuple(colours[k]) == expected, name


def test_joints_are_centred_on_their_pixels():
    for k in (0, 9, 10):
        joints = only_joint(k)
        picture = draw_skeleton(GREY, joints, COCO17)
        changed = (picture != GREY).any(-1)
        rows, columns = np.nonzero(changed)
        np.testing.assert_allclose([columns.mean(), rows.mean()], joints[k, :2], atol=0.1)
        x, y = joints[k, :2].astype(int)
        np.testing.assert_array_equal(picture[y, x], joint_colours(COCO17)[k])


def test_joints_move_by_fractions_of_a_pixel():
    def centre(x: float) -> float:
        joints = only_joint(0)
        joints[0, :2] = x, 100.0
        weight = np.abs(draw_skeleton(GREY, joints, COCO17).astype(float) - 90).sum(-1)
        return (weight.sum(0) * np.arange(200)).sum() / weight.sum()

    assert centre(100.5) - centre(100.0) == pytest.approx(0.5, abs=0.1)


def test_limbs_join_their_joints_in_the_colour_of_their_side():
    joints = spread_joints()
    picture = draw_skeleton(GREY, joints, COCO17)
    index = COCO17.names.index
    for a, b, colour in (
        ("left_elbow", "left_wrist", LEFT),
        ("right_elbow", "right_wrist", RIGHT),
        ("left_hip", "right_hip", MIDDLE),
    ):
        alone = joints.copy()
        alone[:, 2] = 0
        alone[[index(a), index(b)], 2] = 2
        x, y = ((joints[index(a)] + joints[index(b)])[:2] / 2).round().astype(int)
        np.testing.assert_array_equal(draw_skeleton(GREY, alone, COCO17)[y, x], colour)
    assert (picture != GREY).any()


def test_unlabeled_joints_and_their_limbs_are_left_out():
    joints = only_joint(7)
    x, y = joints[9, :2].astype(int)
    picture = draw_skeleton(GREY, joints, COCO17)
    np.testing.assert_array_equal(picture[y, x], GREY[y, x])
    joints[:, 2] = 0
    np.testing.assert_array_equal(draw_skeleton(GREY, joints, COCO17), GREY)


def test_an_occluded_joint_is_a_ring():
    joints = only_joint(9, visibility=1)
    picture = draw_skeleton(GREY, joints, COCO17)
    x, y = joints[9, :2].astype(int)
    assert tuple(picture[y, x]) != LEFT
    assert (picture[y, x - 8 : x + 9] == LEFT).all(-1).any(), "its rim has the colour"


def test_confidence_fades_a_joint():
    joints = only_joint(0)
    x, y = joints[0, :2].astype(int)
    seen = [
        np.abs(draw_skeleton(GREY, joints, COCO17, np.full(17, c))[y, x].astype(int) - MIDDLE).sum()
        for c in (0.0, 0.4, 0.8, 1.0)
    ]
    assert seen[0] > seen[1] > seen[2] > seen[3] == 0
    np.testing.assert_array_equal(draw_skeleton(GREY, joints, COCO17, np.zeros(17)), GREY)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e12, -1e12])
def test_impossible_positions_are_left_out(value):
    joints = spread_joints()
    joints[9, 0] = value
    expected = spread_joints()
    expected[9, 2] = 0
    np.testing.assert_array_equal(draw_skeleton(GREY, joints, COCO17), draw_skeleton(GREY, expected, COCO17))


@pytest.mark.parametrize("count", [1, 3, 133])
def test_any_number_of_joints(count):
    skeleton = Skeleton(
        "toy",
        tuple(f"joint_{k}" for k in range(count)),
        np.array([[k, k + 1] for k in range(count - 1)]).reshape(-1, 2),
        np.arange(count),
        np.full(count, 0.05),
    )
    points = np.random.default_rng(0).uniform(20, 180, (count, 2))
    picture = draw_skeleton(GREY, points, skeleton)
    x, y = points[-1].round().astype(int)
    assert np.abs(picture[y, x].astype(int) - MIDDLE).max() < 60


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (40, 4000)])
def test_pictures_of_any_size(size):
    image = np.zeros((*size, 3), dtype=np.uint8)
    assert draw_skeleton(image, spread_joints(), COCO17).shape == image.shape
    assert draw_box(image, (0, 0, 5, 5)).shape == image.shape
    assert draw_mask(image, np.ones(size, bool)).shape == image.shape
    assert draw_heatmaps(image, np.ones((17, 4, 3)), COCO17).shape == image.shape


def test_a_box_has_its_edges_where_they_belong():
    picture = draw_box(GREY, (30, 40, 100, 120))
    for x, y in ((30, 100), (130, 100), (80, 40), (80, 160)):
        np.testing.assert_array_equal(picture[y, x], BOX)
    np.testing.assert_array_equal(picture[100, 80], GREY[100, 80])
    changed = np.nonzero((picture != GREY).any(-1))
    assert changed[0].min() in range(36, 40) and changed[1].max() in range(131, 135)


# --- maps ----------------------------------------------------------------------------------------


def hue(colour) -> float:
    return cv2.cvtColor(np.uint8([[colour]]), cv2.COLOR_RGB2HSV)[0, 0, 0]


def test_near_is_red_and_far_is_blue():
    depth = np.tile(np.linspace(1, 3, 50), (40, 1))
    picture, (near, far) = colour_depth(depth, np.ones_like(depth, bool))
    red, green, blue = (tuple(map(int, picture[20, x])) for x in (0, 25, 49))
    assert red[0] > 2 * red[2] and green[1] > max(green[0], green[2]) * 0.9 and blue[2] > 2 * blue[0]
    hues = [hue(picture[20, x]) for x in range(2, 48)]
    assert (np.diff(hues) >= -1).all(), "no colour comes twice"
    assert near == pytest.approx(np.percentile(depth, 2)) and far == pytest.approx(np.percentile(depth, 98))


def test_outliers_do_not_flatten_the_body():
    depth = np.tile(np.linspace(1, 3, 50), (40, 1))
    mask = np.ones_like(depth, bool)
    spoilt = depth.copy()
    spoilt[0, 0] = 1e6
    clean, with_outlier = colour_depth(depth, mask)[0], colour_depth(spoilt, mask)[0]
    assert np.abs(clean[1:].astype(int) - with_outlier[1:]).mean() < 8


def test_depth_shows_nothing_off_the_mask_or_without_values():
    depth = np.full((10, 10), 2.0)
    depth[0] = np.nan
    mask = np.zeros((10, 10), bool)
    picture, span = colour_depth(depth, mask)
    assert span is None and (picture == NOTHING).all()
    mask[:5] = True
    picture, span = colour_depth(depth, mask)
    assert (picture[0] == NOTHING).all() and (picture[5:] == NOTHING).all() and span == (2.0, 2.0)
    assert not (picture[2] == NOTHING).all()


def test_the_scale_shows_the_colours_of_the_map():
    ramp = np.tile(np.linspace(0, 1, 101), (30, 1))
    picture, (near, far) = colour_depth(ramp, np.ones_like(ramp, bool))
    inside = (ramp[0] >= near) & (ramp[0] <= far)
    scale = depth_scale(101)[0].astype(int)
    position = np.rint((ramp[0][inside] - near) / (far - near) * 100).astype(int)
    assert np.abs(picture[0][inside].astype(int) - scale[position]).max() <= 12


@pytest.mark.parametrize(
    "normal, colour",
    [
        ((0, 0, -1), (128, 128, 255)),  # to the camera
        ((1, 0, 0), (255, 128, 128)),  # right
        ((0, -1, 0), (128, 255, 128)),  # up: the camera's y points down
        ((0, 1, 0), (128, 0, 128)),
    ],
)
def test_normals_have_the_usual_colours(normal, colour):
    maps = np.tile(np.array(normal, float)[:, None, None], (1, 4, 5))
    mask = np.ones((4, 5), bool)
    mask[0] = False
    picture = colour_normals(maps, mask)
    assert np.abs(picture[2, 2].astype(int) - colour).max() <= 1
    assert (picture[0] == NOTHING).all()


def test_a_mask_darkens_its_surroundings_and_has_a_contour():
    mask = np.zeros(GREY.shape[:2], bool)
    mask[50:150, 60:140] = True
    picture = draw_mask(GREY, mask)
    np.testing.assert_array_equal(picture[100, 100], (90, 90, 90))
    np.testing.assert_array_equal(picture[10, 10], (30, 30, 30))
    np.testing.assert_array_equal(picture[100, 60], MIDDLE)
    assert (draw_mask(GREY, np.zeros_like(mask)) == 30).all()


def test_heatmaps_glow_at_their_peaks_in_the_colour_of_their_side():
    heatmaps = np.zeros((17, 22, 20), dtype=np.float32)
    left, right = COCO17.names.index("left_wrist"), COCO17.names.index("right_wrist")
    heatmaps[left, 5, 4], heatmaps[right, 15, 12] = 0.001, 7.0
    picture = draw_heatmaps(GREY, heatmaps, COCO17).astype(int)
    ratio = np.array([199 / 19, 219 / 21])  # UDP: corner centres coincide
    for (x, y), colour in (((4, 5), LEFT), ((12, 15), RIGHT)):
        column, row = np.rint(np.array([x, y]) * ratio).astype(int)
        brighter = picture[row, column] - picture[0, 0]
        assert np.abs(brighter - np.minimum(colour, 255 - picture[0, 0])).max() < 25


# --- for all -------------------------------------------------------------------------------------


def test_inputs_are_left_untouched():
    image, joints = GREY.copy(), spread_joints()
    draw_skeleton(image, joints, COCO17, np.linspace(0, 1, 17))
    draw_box(image, (1, 1, 50, 50))
    draw_mask(image, np.ones(GREY.shape[:2], bool))
    draw_heatmaps(image, np.ones((17, 5, 5)), COCO17)
    np.testing.assert_array_equal(image, GREY)
    np.testing.assert_array_equal(joints, spread_joints())


@pytest.mark.parametrize("module", ["draw", "report"])
def test_modules_that_draw_can_be_run(module, tmp_path, monkeypatch, capsys):
    target = tmp_path / "sample.png"
    monkeypatch.setattr(sys, "argv", ["prog", str(target)])
    monkeypatch.delitem(sys.modules, f"sagecache.visualization.{module}", raising=False)
    runpy.run_module(f"sagecache.visualization.{module}", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(target)
    assert cv2.imread(str(target)).std() > 20
