"""Panels show the right person, from any picture, with whatever is known of it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from sagecache.geometry.affine import apply_affine, crop_affine
from sagecache.skeleton import COCO17, Skeleton
from sagecache.store.codec import encode_depth, encode_normal
from sagecache.structures import Instance
from sagecache.visualization.draw import LEFT, NOTHING, joint_colours
from sagecache.visualization.report import Predictions, inspect_panel, montage, person_tile
from sagecache.visualization.sample import figure
from sagecache.visualization.sheet import BACKGROUND

INFANT = figure()


def instance(**changes) -> Instance:
    return replace(Instance(12, 0, Path("infant.png"), INFANT.bbox, keypoints=INFANT.keypoints), **changes)


def targets(mask: np.ndarray = INFANT.mask, fields=("depth", "normal", "mask")) -> dict[str, np.ndarray]:
    codes, depth_range = encode_depth(INFANT.depth, mask)
    row = {
        "depth": codes,
        "normal": encode_normal(INFANT.normal, mask),
        "mask": mask,
    }
    kept = {name: row[name] for name in fields}
    return kept | {
        "depth_range": np.array(depth_range, np.float32),
        "status": np.uint8(1),
        "target_from_image": np.eye(3),
    }


def predictions(count: int = 17, **changes) -> Predictions:
    pose = np.c_[np.random.default_rng(0).uniform(20, 80, (count, 2)), np.linspace(0.05, 1, count)]
    return replace(Predictions(pose, pose, pose[:, 2] > 0.5, 0.7, True), **changes)


def test_the_panel_grows_with_what_is_known():
    alone = inspect_panel(INFANT.image, instance(), COCO17)
    known = inspect_panel(INFANT.image, instance(), COCO17, targets())
    predicted = inspect_panel(INFANT.image, instance(), COCO17, targets(), predictions())
    corrected = inspect_panel(
        INFANT.image, instance(), COCO17, targets(), predictions(corrected=INFANT.keypoints[:, :2])
    )
    assert alone.shape[1] < known.shape[1] and alone.shape[0] == known.shape[0] < predicted.shape[0]
    np.testing.assert_array_equal(predicted[: known.shape[0], : known.shape[1]], known)
    rows = [panel[known.shape[0] :, :1410] for panel in (predicted, corrected)]
    fewer, more = ((row != BACKGROUND).any(-1).sum() for row in rows)
    assert more > fewer + 270 * 300, "one tile more"


def test_all_tiles_show_the_same_frame():
    """Depth, normals and mask of the figure cover the same pixels of their tiles as its body in the crop."""
    height = 256
    panel = inspect_panel(INFANT.image, instance(), COCO17, targets(), height=height)
    width = height * 96 // 128
    tiles = [panel[32 : 32 + height, 10 + k * (width + 10) :][:, :width] for k in range(5)]
    share = cv2.resize(INFANT.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    share = cv2.GaussianBlur(share, (7, 7), 0)
    inside, outside = share > 0.99, share < 0.01  # its blurred contour left aside
    outside[-24:, :80] = False  # the colour bar
    for tile in tiles[2:4]:
        body = (np.abs(tile.astype(int) - NOTHING) > 12).any(-1)
        assert body[inside].mean() > 0.99 and not body[outside].any()
    lit = tiles[4].astype(int).sum(-1) > 250
    assert not lit[outside].any() and lit[inside].mean() > 0.5


def test_the_target_crop_follows_the_stored_matrix():
    """A store whose crop lies elsewhere shows elsewhere: nothing is recomputed from the box."""
    shifted = targets()
    shifted["target_from_image"] = np.array([[1.0, 0, 15], [0, 1.0, 0], [0, 0, 1.0]])
    bare = instance(keypoints=None)
    here = inspect_panel(INFANT.image, bare, COCO17, targets(), height=128)
    there = inspect_panel(INFANT.image, bare, COCO17, shifted, height=128)
    left = 10 + 96 + 10
    np.testing.assert_array_equal(
        there[32:160, left + 15 + 1 : left + 96], here[32:160, left + 1 : left + 96 - 15]
    )


def test_disparity_keeps_red_for_near():
    """Disparity is large where depth is small; the figure's nearest point must look the same."""
    disparity = targets()
    disparity["depth"], span = encode_depth(-INFANT.depth, INFANT.mask)
    disparity["depth_range"] = np.array(span, np.float32)
    one = inspect_panel(INFANT.image, instance(), COCO17, targets(), depth_kind="affine")
    two = inspect_panel(INFANT.image, instance(), COCO17, disparity, depth_kind="disparity")
    tile = (slice(40, 360), slice(10 + 2 * 280, 10 + 3 * 280 - 10))
    assert np.abs(one[tile].astype(int) - two[tile]).mean() < 1


@pytest.mark.parametrize("fields", [("depth",), ("normal",), ("mask",), ("depth", "normal")])
def test_stores_with_fewer_fields(fields):
    panel = inspect_panel(INFANT.image, instance(), COCO17, targets(fields=fields))
    assert panel.shape[1] == 10 + (2 + len(fields)) * 280


def test_an_empty_mask_is_shown_as_nothing():
    empty = targets(mask=np.zeros_like(INFANT.mask))
    panel = inspect_panel(INFANT.image, instance(), COCO17, empty)
    tile = panel[32 : 32 + 360, 10 + 2 * 280 :][:, :270]
    assert (tile == NOTHING).all()


@pytest.mark.parametrize("shape", [(1, 1), (6, 4), (10, 900), (5000, 4000)])
def test_pictures_of_any_size(shape):
    height, width = shape
    image = np.full((*shape, 3), 120, dtype=np.uint8)
    box = (width * 0.1, height * 0.1, width * 0.8, height * 0.8)
    keypoints = INFANT.keypoints * [width / 96, height / 128, 1]
    panel = inspect_panel(image, instance(bbox=box, keypoints=keypoints), COCO17, predictions=predictions())
    assert panel.shape[0] < 1000 and panel.shape[1] < 1600


@pytest.mark.parametrize("count", [1, 13, 133])
def test_any_number_of_joints(count):
    skeleton = Skeleton(
        "toy",
        tuple(f"joint_{k}" for k in range(count)),
        np.empty((0, 2)),
        np.arange(count),
        np.full(count, 0.1),
    )
    points = np.c_[np.random.default_rng(0).uniform(10, 90, (count, 2)), np.full(count, 2)]
    panel = inspect_panel(INFANT.image, instance(keypoints=points), skeleton, targets(), predictions(count))
    assert panel.std() > 10


def test_values_that_are_not_numbers_do_not_stop_the_panel():
    pose = predictions().student.copy()
    pose[3] = np.nan
    broken = predictions(student=pose, ema_teacher=pose, plausibility=float("nan"))
    assert inspect_panel(INFANT.image, instance(), COCO17, targets(), broken).ndim == 3


def test_bars_show_the_teachers_confidence():
    sure, unsure = (
        inspect_panel(
            INFANT.image,
            instance(),
            COCO17,
            targets(),
            predictions(ema_teacher=np.c_[np.zeros((17, 2)), np.full(17, value)], keep=np.ones(17, bool)),
        )
        for value in (0.9, 0.3)
    )
    chart = (slice(sure.shape[0] // 2, None), slice(10 + 2 * 280, None))
    amounts = [(panel[chart] == LEFT).all(-1).sum() for panel in (sure, unsure)]
    assert amounts[0] / amounts[1] == pytest.approx(3, rel=0.05)


def test_a_person_tile_puts_joints_where_the_crop_shows_them():
    size = (150, 200)
    tile = person_tile(INFANT.image, INFANT.bbox, size, COCO17, INFANT.keypoints)
    assert tile.shape == (200, 150, 3)
    moved = apply_affine(crop_affine(INFANT.bbox, size, 1.25), INFANT.keypoints[:, :2])
    for k in (9, 10, 15, 16):
        x, y = moved[k].round().astype(int)
        np.testing.assert_array_equal(tile[y, x], joint_colours(COCO17)[k])


def test_a_montage_fits_pictures_into_cells():
    pictures = [np.full((40, 30, 3), 99, np.uint8), np.full((600, 900, 3), 150, np.uint8)]
    sheet = montage(pictures, 2, ["small", "large"], cell=(120, 160))
    assert (sheet == 99).all(-1).sum() == 120 * 160
    assert (sheet == 150).all(-1).sum() == 120 * 80
    assert montage(pictures[:1], 1).shape == (60, 50, 3)
