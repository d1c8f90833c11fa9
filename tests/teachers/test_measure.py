"""Errors on shapes whose error is known, and AP50 on cases small enough to count by hand."""

import numpy as np
import pytest

from sagecache.teachers.measure import detection_ap50, geometry_errors, mean_errors

SIZE = 41


def tilted_plane(degrees, axis=0):
    """Depth and normals of a plane turned about the image's y (axis 0) or x (axis 1)."""
    angle = np.radians(degrees)
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)))[axis].astype(float)
    normals = np.zeros((3, SIZE, SIZE))
    normals[axis], normals[2] = np.sin(angle), -np.cos(angle)
    return np.tan(angle) * grid, normals


def everywhere():
    return np.ones((SIZE, SIZE), bool)


@pytest.mark.parametrize("angle", [0.0, 7.0, 25.0, 60.0])
def test_normal_error_is_the_angle_between_planes(angle):
    depth, normals = tilted_plane(10)
    _, turned = tilted_plane(10 + angle)
    row = geometry_errors(depth, turned, everywhere(), depth, normals, everywhere())
    assert row["normal_mean"] == pytest.approx(angle, abs=1e-4)
    assert row["normal_median"] == pytest.approx(angle, abs=1e-4)
    assert row["normal_under_30"] == (angle < 30)
    assert row["constant_normal_mean"] == pytest.approx(10, abs=1e-4)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (3.5, -7), (-0.2, 100)])
def test_depth_error_is_free_of_scale_and_offset(scale, offset):
    depth, normals = tilted_plane(30)
    row = geometry_errors(scale * depth + offset, normals, everywhere(), depth, normals, everywhere())
    assert row["depth_rmse"] == pytest.approx(0, abs=1e-6)
    assert abs(row["depth_correlation"]) == pytest.approx(1)


def test_depth_error_equals_a_least_squares_fit():
    rng = np.random.default_rng(0)
    true, normals = tilted_plane(30)
    guess = true + rng.normal(0, 5, true.shape)
    row = geometry_errors(guess, normals, everywhere(), true, normals, everywhere(), erosion=3)
    inner = slice(3, -3)
    p, t = guess[inner, inner].ravel(), true[inner, inner].ravel()
    design = np.stack([p, np.ones_like(p)], 1)
    residual = design @ np.linalg.lstsq(design, t, rcond=None)[0] - t
    extent = np.quantile(t, 0.98) - np.quantile(t, 0.02)
    assert row["depth_rmse"] == pytest.approx(np.sqrt((residual**2).mean()) / extent)
    assert row["constant_depth_rmse"] == pytest.approx(t.std() / extent)


def test_a_constant_prediction_has_the_constants_error():
    depth, normals = tilted_plane(30)
    facing = np.zeros_like(normals)
    facing[2] = -1
    row = geometry_errors(np.ones_like(depth), facing, everywhere(), depth, normals, everywhere())
    assert row["depth_rmse"] == pytest.approx(row["constant_depth_rmse"])
    assert row["normal_mean"] == pytest.approx(row["constant_normal_mean"])
    assert row["depth_correlation"] == 0


def test_a_tilt_about_the_other_axis_explains_nothing():
    across, normals = tilted_plane(30, axis=0)
    down, _ = tilted_plane(30, axis=1)
    row = geometry_errors(down, normals, everywhere(), across, normals, everywhere())
    assert row["depth_rmse"] == pytest.approx(row["constant_depth_rmse"])


def test_only_the_eroded_mask_counts():
    depth, normals = tilted_plane(20)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[10:31, 10:31] = True
    wrong_depth, wrong_normals = depth.copy(), normals.copy()
    outside = ~mask
    outside[10:12, 10:31] = True  # two rows inside the edge as well
    wrong_depth[outside] = 1e6
    wrong_normals[:, outside] = np.array([[0.0], [1.0], [0.0]])
    args = (wrong_depth, wrong_normals, mask, depth, normals, mask)
    assert geometry_errors(*args, erosion=2)["normal_mean"] == pytest.approx(0, abs=1e-4)
    assert geometry_errors(*args, erosion=2)["depth_rmse"] == pytest.approx(0, abs=1e-6)
    assert geometry_errors(*args, erosion=1)["normal_mean"] > 1


def test_the_margin_grows_with_the_maps():
    """A wrong outline two pixels wide counts at 64 rows, where one is cut off, and not at 128."""
    for rows, counts in ((64, True), (128, False)):
        shape = np.ones((rows, rows), bool)
        true = np.tile(np.array([0.0, 0.0, -1.0])[:, None, None], (1, rows, rows))
        guess, depth = true.copy(), np.random.default_rng(0).random((rows, rows))
        guess[:, :2] = np.array([1.0, 0.0, 0.0])[:, None, None]
        assert (geometry_errors(depth, guess, shape, depth, true, shape)["normal_mean"] > 0) == counts


def test_mask_iou_and_too_small_masks():
    depth, normals = tilted_plane(20)
    half = everywhere()
    half[:, SIZE // 2 :] = False
    row = geometry_errors(depth, normals, half, depth, normals, everywhere())
    assert row["mask_iou"] == pytest.approx((SIZE // 2) / SIZE)
    small = np.zeros((SIZE, SIZE), bool)
    small[:9, :9] = True
    assert geometry_errors(depth, normals, small, depth, normals, small, erosion=2) is None


def test_pixels_without_a_prediction_are_left_out_and_counted():
    depth, normals = tilted_plane(20)
    guess = depth.copy()
    guess[:, : SIZE // 2] = np.nan
    row = geometry_errors(guess, normals, everywhere(), depth, normals, everywhere(), erosion=0)
    assert row["covered"] == pytest.approx(1 - (SIZE // 2) / SIZE)
    assert row["depth_rmse"] == pytest.approx(0, abs=1e-6) and np.isfinite(row["constant_depth_rmse"])
    assert geometry_errors(depth, normals, everywhere(), depth, normals, everywhere())["covered"] == 1


def test_means_skip_instances_without_figures():
    assert mean_errors([dict(a=1.0), None, dict(a=2.0)]) == dict(a=1.5, count=2)
    assert mean_errors([None]) == dict(count=0)


def truth(*boxes, first_id=0):
    annotations = [
        dict(id=first_id + i, image_id=image, category_id=1, bbox=list(box), iscrowd=0, area=box[2] * box[3])
        for i, (image, box) in enumerate(boxes)
    ]
    images = [dict(id=image) for image in sorted({image for image, _ in boxes})]
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name="person")])


def found(image, box, score):
    return dict(image_id=image, category_id=1, bbox=list(box), score=score)


A, B = (10, 10, 20, 40), (60, 5, 30, 30)


def test_perfect_boxes_give_one_even_for_annotation_id_zero():
    ground = truth((1, A), (1, B), (2, A), first_id=0)
    hits = [found(1, A, 0.9), found(1, B, 0.8), found(2, A, 0.7)]
    assert detection_ap50(hits, ground) == pytest.approx(1)
    assert ground["annotations"][0]["id"] == 0  # input untouched


def test_a_better_scored_false_alarm_halves_the_precision():
    # One person; the false alarm comes first, so precision is 1/2 at every recall.
    assert detection_ap50([found(1, B, 0.9), found(1, A, 0.5)], truth((1, A))) == pytest.approx(0.5)
    assert detection_ap50([found(1, B, 0.4), found(1, A, 0.5)], truth((1, A))) == pytest.approx(1)


def test_half_of_the_people_found_is_about_half():
    # Recall .5 at precision 1: 51 of the 101 recall points.
    assert detection_ap50([found(1, A, 0.9)], truth((1, A), (2, B))) == pytest.approx(51 / 101)


def test_overlap_must_reach_one_half():
    exact = (10, 10, 40, 40)
    assert detection_ap50([found(1, (10, 10, 40, 21), 1.0)], truth((1, exact))) == pytest.approx(1)
    assert detection_ap50([found(1, (10, 10, 40, 19), 1.0)], truth((1, exact))) == 0
    assert detection_ap50([], truth((1, exact))) == 0
