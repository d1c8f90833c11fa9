"""Affine maps against mmpose's own matrices, cv2's resampling, numpy's inverse and the laws of groups."""

import importlib.util
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sagecache.geometry import affine


def mmpose_udp(bbox, size, padding):
    """mmpose's own code, loaded as a file: importing the package would need its compiled relatives."""
    package = importlib.util.find_spec("mmpose")
    if package is None:
        pytest.skip("mmpose is not installed")
    path = Path(package.origin).parent / "structures" / "bbox" / "transforms.py"
    spec = importlib.util.spec_from_file_location("mmpose_bbox_transforms", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y, w, h = bbox
    center, scale = module.bbox_xyxy2cs(np.array([x, y, x + w, y + h], np.float64), padding=padding)
    aspect = size[0] / size[1]  # TopdownAffine._fix_aspect_ratio
    w, h = scale
    scale = np.array([w, w / aspect] if w > h * aspect else [h * aspect, h])
    return module.get_udp_warp_matrix(center, scale, 0.0, size)


def random_affines(count, generator, mirrored=None, dtype=torch.float64):
    angle = torch.rand(count, generator=generator, dtype=dtype) * 2 * math.pi
    scale = torch.rand(count, generator=generator, dtype=dtype) + 0.5
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0).to(dtype)
    if mirrored is not None:
        sign = torch.full((count,), -1.0 if mirrored else 1.0, dtype=dtype)
    shear = torch.rand(count, generator=generator, dtype=dtype) * 0.3
    matrix = torch.eye(3, dtype=dtype).repeat(count, 1, 1)
    matrix[:, 0, 0], matrix[:, 0, 1] = sign * scale * angle.cos(), -scale * angle.sin() + shear
    matrix[:, 1, 0], matrix[:, 1, 1] = sign * scale * angle.sin(), scale * angle.cos()
    matrix[:, :2, 2] = torch.rand(count, 2, generator=generator, dtype=dtype) * 40 - 20
    return matrix


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("size", [(96, 128), (192, 256), (256, 256), (768, 1024)])
@pytest.mark.parametrize("bbox", [(10, 20, 30, 80), (-5.5, 3.25, 200, 40), (0, 0, 96, 128)])
@pytest.mark.parametrize("padding", [1.0, 1.25, 1.875])
def test_crop_affine_is_mmposes_udp_matrix(bbox, size, padding):
    matrix = affine.crop_affine(bbox, size, padding)
    np.testing.assert_allclose(matrix[:2], mmpose_udp(bbox, size, padding), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(matrix[2], [0, 0, 1])


def test_edges_of_a_box_of_the_right_aspect_land_on_the_outer_pixel_centres():
    matrix = affine.crop_affine((7, 9, 30, 40), (96, 128), 1.0)
    corners = affine.apply_affine(matrix, np.array([[7.0, 9.0], [37.0, 49.0]]))
    np.testing.assert_allclose(corners, [[0, 0], [95, 127]], atol=1e-12)


@pytest.mark.parametrize(
    "bbox, size, padding",
    [
        ((0, 0, 0, 5), (96, 128), 1.25),
        ((0, 0, 5, -1), (96, 128), 1.25),
        ((0, 0, math.nan, 5), (96, 128), 1.25),
        ((0, math.inf, 5, 5), (96, 128), 1.25),
        ((0, 0, 5, 5), (1, 128), 1.25),
        ((0, 0, 5, 5), (96, 128), 0.0),
    ],
)
def test_crop_affine_refuses_what_has_no_inverse(bbox, size, padding):
    with pytest.raises(ValueError, match="needs"):
        affine.crop_affine(bbox, size, padding)


def test_flip_of_augment_affine_is_an_array_reversal():
    image = np.random.default_rng(0).integers(0, 255, (12, 9, 3), np.uint8)
    view_from_crop = affine.augment_affine((9, 12), flip=True)
    np.testing.assert_array_equal(cv2.warpAffine(image, view_from_crop[:2], (9, 12)), image[:, ::-1])


def test_quarter_turn_of_augment_affine_is_np_rot90():
    image = np.random.default_rng(0).integers(0, 255, (11, 11), np.uint8)
    turned = cv2.warpAffine(image, affine.augment_affine((11, 11), rotation=90)[:2], (11, 11))
    np.testing.assert_array_equal(turned, np.rot90(image, k=-1))  # clockwise: +x goes to +y


def test_augment_affine_flips_first_then_turns_zooms_and_shifts():
    size, point = (96, 128), np.array([20.0, 30.0])
    mirrored = np.array([95 - 20.0, 30.0])
    radius = mirrored - [47.5, 63.5]
    turned = np.array([-radius[1], radius[0]])  # 90 degrees, y down
    expected = [47.5, 63.5] + 1.5 * turned + [0.1 * 96, -0.2 * 128]
    matrix = affine.augment_affine(size, 90, 1.5, (0.1, -0.2), True)
    np.testing.assert_allclose(affine.apply_affine(matrix, point), expected, atol=1e-12)


def test_resize_affine_is_what_cv2_resize_does_to_positions():
    ramp = np.tile(np.arange(64, dtype=np.float32), (48, 1))
    small = cv2.resize(ramp, (16, 12), interpolation=cv2.INTER_LINEAR)  # value = x coordinate in the source
    to_small = affine.resize_affine((64, 48), (16, 12))
    back = affine.apply_affine(np.linalg.inv(to_small), np.stack([np.arange(16.0), np.zeros(16)], 1))
    np.testing.assert_allclose(small[0], back[:, 0], atol=1e-5)


def test_heatmap_affine_maps_outer_centres_to_outer_centres():
    matrix = affine.heatmap_affine((96, 128), (24, 32))
    corners = affine.apply_affine(matrix, np.array([[0.0, 0], [95, 127]]))
    np.testing.assert_allclose(corners, [[0, 0], [23, 31]], atol=1e-12)


def test_transform_points_and_compose_agree_with_matrix_products(generator):
    first, second = random_affines(5, generator), random_affines(5, generator)
    points = torch.randn(5, 7, 2, generator=generator, dtype=torch.float64) * 50
    homogeneous = torch.cat([points, torch.ones(5, 7, 1, dtype=torch.float64)], -1)
    expected = (homogeneous @ (second @ first).mT)[..., :2]
    assert_close(affine.transform_points(affine.compose(second, first), points), expected)
    assert_close(affine.transform_points(second, affine.transform_points(first, points)), expected)


def test_one_matrix_serves_a_batch(generator):
    matrix = random_affines(1, generator)[0]
    points = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)
    assert_close(
        affine.transform_points(matrix, points), affine.transform_points(matrix.expand(4, 3, 3), points)
    )


def test_numpy_and_torch_move_points_alike(generator):
    matrix, points = (
        random_affines(1, generator)[0],
        torch.randn(6, 2, generator=generator, dtype=torch.float64),
    )
    moved = affine.transform_points(matrix, points)
    np.testing.assert_allclose(affine.apply_affine(matrix.numpy(), points.numpy()), moved.numpy())


@settings(max_examples=60, deadline=None)
@given(
    angle=st.floats(-400, 400),
    scale=st.floats(0.05, 20),
    shear=st.floats(-1, 1),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    flip=st.booleans(),
)
def test_inverse_undoes_any_affine(angle, scale, shear, shift, flip):
    turn = affine.augment_affine((96, 128), angle, scale, shift, flip)
    matrix = torch.from_numpy(turn @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1.0]]))
    inverse = affine.invert_affine(matrix)
    assert_close(inverse, torch.linalg.inv(matrix), rtol=1e-8, atol=1e-8)
    assert_close(affine.compose(inverse, matrix), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-7)
    assert affine.is_mirrored(matrix).item() is flip
    assert_close(affine.linear_scale(matrix), torch.linalg.det(matrix).abs().sqrt())


def test_swap_mirrored_moves_only_mirrored_samples_and_undoes_itself():
    values = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    mirrored, flip_indices = torch.tensor([True, False]), [0, 2, 1, 3]
    swapped = affine.swap_mirrored(values, mirrored, flip_indices)
    expected = torch.stack([torch.stack([values[0, j] for j in flip_indices]), values[1]])
    assert_close(swapped, expected)
    assert_close(affine.swap_mirrored(swapped, mirrored, torch.tensor(flip_indices)), values)
    assert affine.swap_mirrored(values[..., 0], mirrored, flip_indices).shape == (2, 4)


def test_autocast_and_half_inputs_do_not_touch_coordinates(generator):
    matrix = random_affines(3, generator, dtype=torch.float32)
    points = torch.rand(3, 5, 2, generator=generator) * 700
    expected = affine.transform_points(matrix, points)
    with torch.autocast("cpu", torch.bfloat16):
        inside = affine.transform_points(matrix, points)
        assert affine.transform_points(matrix, points.bfloat16()).dtype == torch.float32
    assert inside.dtype == torch.float32
    assert_close(inside, expected, rtol=0, atol=0)


def test_gradients(generator):
    matrix = random_affines(2, generator).requires_grad_()
    points = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(affine.transform_points, (matrix, points))
    assert torch.autograd.gradcheck(lambda m: affine.invert_affine(m)[:, :2], (matrix,))
    assert torch.autograd.gradcheck(affine.compose, (matrix, matrix.detach().flip(0)))
    assert torch.autograd.gradcheck(affine.linear_scale, (matrix,))
