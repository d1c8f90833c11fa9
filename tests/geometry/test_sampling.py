"""Sampling and warps against slow loops, cv2, and shapes whose depth and normals have formulas."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import oracles
from sagecache.geometry import heatmap, sampling
from sagecache.geometry.affine import augment_affine, compose, invert_affine, swap_mirrored, transform_points

SIZE = (48, 64)
VIEWS = {
    "turn": augment_affine(SIZE, rotation=37),
    "mirror": augment_affine(SIZE, flip=True),
    "turn, mirror, zoom, shift": augment_affine(SIZE, -70, 1.2, (0.04, -0.06), True),
    "shrink": augment_affine(SIZE, 10, 0.7),
}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def as_batch(matrix):
    return torch.from_numpy(matrix).unsqueeze(0)


def pixels(size=SIZE):
    """x and y of every pixel, (H, W) each, float64."""
    y, x = torch.meshgrid(*(torch.arange(float(n), dtype=torch.float64) for n in size[::-1]), indexing="ij")
    return x, y


def shape(name, view_from_map):
    """Depth, normals and mask of a solid whose outline is carried by a similarity of the image plane.

    Written in the map's frame and evaluated at the view's pixels; weak perspective, so a zoom by s stretches
    depth by s as well and normals stay; what turns them is the in-plane turn, applied here to the tangent
    slopes by finite differences of depth in the view itself: no use is made of the code under test.
    """
    scale = math.sqrt(abs(np.linalg.det(view_from_map[:2, :2])))

    def depth_at(x, y):
        back = np.linalg.inv(view_from_map)
        u, v = (back[i, 0] * x + back[i, 1] * y + back[i, 2] for i in (0, 1))
        u, v = u - 23, v - 30
        if name == "sphere":
            inside = 17.0**2 - u**2 - v**2
            return -inside.clamp_min(0).sqrt(), inside > 9
        if name == "plane":
            return 0.5 * u - 0.8 * v, (u.abs() < 15) & (v.abs() < 20)
        across = 0.8 * u + 0.6 * v  # cylinder about the direction (-.6, .8), rising along it
        inside = 12.0**2 - across**2
        along = -0.6 * u + 0.8 * v
        return -inside.clamp_min(0).sqrt() + 0.4 * along, (inside > 9) & (along.abs() < 18)

    x, y = pixels()
    depth, mask = depth_at(x, y)
    step = 1e-4
    slope_x = scale * (depth_at(x + step, y)[0] - depth_at(x - step, y)[0]) / (2 * step)
    slope_y = scale * (depth_at(x, y + step)[0] - depth_at(x, y - step)[0]) / (2 * step)
    normals = torch.stack([slope_x, slope_y, -torch.ones_like(depth)])
    normals = normals / normals.norm(dim=0)
    return depth[None, None], torch.where(mask, normals, 0)[None], mask[None, None]


def eroded(mask, radius=3):
    return -torch.nn.functional.max_pool2d(-mask.double(), 2 * radius + 1, 1, radius) > 0.5


def angle(first, second, mask):
    """Largest and mean angle in degrees between normals (1, 3, H, W) where mask is true."""
    first, second = (torch.nn.functional.normalize(n, dim=1) for n in (first, second))
    degrees = torch.rad2deg(2 * ((first - second).norm(dim=1) / 2).clamp(max=1).asin())[mask[:, 0]]
    return degrees.max().item(), degrees.mean().item()


def test_sample_maps_is_the_loop_inside_across_and_beyond_the_border(generator):
    maps = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    points = torch.rand(2, 50, 2, generator=generator, dtype=torch.float64) * 9 - 2
    found = sampling.sample_maps(maps, points)
    assert found.shape == (2, 50, 3)
    for b, n, c in np.ndindex(2, 50, 3):
        assert found[b, n, c].item() == pytest.approx(
            oracles.bilinear(maps[b, c].numpy(), *points[b, n].tolist())
        )


def test_pixel_centres_read_their_pixels_and_bool_maps_are_read_too():
    mask = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    mask[0, 0, 2, 3] = True
    points = torch.tensor([[[3.0, 2.0], [2.0, 2.0], [3.5, 2.0]]])
    assert_close(sampling.sample_maps(mask, points)[0, :, 0], torch.tensor([1.0, 0.0, 0.5]))


def test_inside_ends_at_the_outer_pixel_centres():
    points = torch.tensor(
        [[0.0, 0.0], [4.0, 3.0], [-0.01, 1.0], [4.01, 1.0], [1.0, 3.01], [float("nan"), 1.0]]
    )
    assert sampling.inside(points, (5, 4)).tolist() == [True, True, False, False, False, False]


def test_sample_maps_gradients(generator):
    maps = torch.randn(1, 2, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(1, 4, 2, generator=generator, dtype=torch.float64) * 3 + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(sampling.sample_maps, (maps, points))


@pytest.mark.parametrize("view", VIEWS)
def test_warp_heatmaps_is_the_loop_and_cv2(view, generator):
    matrix = VIEWS[view]
    maps = torch.rand(1, 2, 64, 48, generator=generator, dtype=torch.float64)
    warped = sampling.warp_heatmaps(maps, as_batch(matrix))
    for k in range(2):
        image = maps[0, k].numpy()
        np.testing.assert_allclose(warped[0, k].numpy(), oracles.warp(image, matrix, SIZE), atol=1e-9)
        coarse = cv2.warpAffine(image, matrix[:2], SIZE, flags=cv2.INTER_LINEAR)  # 1/32 pixel steps
        assert np.abs(warped[0, k].numpy() - coarse).mean() < 0.01


@pytest.mark.parametrize("view", VIEWS)
def test_warp_moves_the_peak_where_the_matrix_says(view):
    keypoints = torch.tensor([[[20.3, 30.8], [27.0, 35.5]]])
    matrix = as_batch(VIEWS[view]).float()
    warped = sampling.warp_heatmaps(heatmap.gaussian(keypoints, SIZE, 2.0), matrix)
    centres = [oracles.window_centroid(image, 7) for image in warped[0].double().numpy()]
    np.testing.assert_allclose(centres, transform_points(matrix, keypoints)[0].numpy(), atol=2e-2)


def test_identity_is_exact_and_each_sample_has_its_own_matrix(generator):
    maps = torch.rand(2, 3, 10, 8, generator=generator)
    matrices = torch.stack([torch.eye(3), torch.from_numpy(augment_affine((8, 10), flip=True)).float()])
    warped = sampling.warp_heatmaps(maps, matrices)
    assert_close(warped[0], maps[0], atol=1e-5, rtol=0)
    assert_close(warped[1], maps[1].flip(-1), atol=1e-5, rtol=0)


def test_two_warps_are_about_the_warp_by_the_product():
    maps = heatmap.gaussian(torch.tensor([[[22.0, 33.0]]], dtype=torch.float64), SIZE, 3.0)
    first, second = as_batch(VIEWS["turn"]), as_batch(VIEWS["turn, mirror, zoom, shift"])
    twice = sampling.warp_heatmaps(sampling.warp_heatmaps(maps, first), second)
    assert_close(twice, sampling.warp_heatmaps(maps, compose(second, first)), atol=0.05 * maps.max(), rtol=0)


def test_a_joint_outside_the_view_leaves_nothing():
    maps = heatmap.gaussian(torch.tensor([[[40.0, 30.0]]]), SIZE, 2.0)
    matrix = as_batch(augment_affine(SIZE, shift=(0.5, 0))).float()
    assert sampling.warp_heatmaps(maps, matrix).sum() < 1e-4


def test_mirrored_view_needs_the_channel_swap():
    """Warping and swapping equals drawing the mirrored person's own labels."""
    matrix, flip_indices = as_batch(VIEWS["mirror"]).float(), [1, 0]
    keypoints = torch.tensor([[[15.0, 20.0], [30.0, 25.0]]])
    mirrored = torch.tensor([True])
    warped = sampling.warp_heatmaps(heatmap.gaussian(keypoints, SIZE, 2.0), matrix)
    expected = swap_mirrored(transform_points(matrix, keypoints), mirrored, flip_indices)
    assert_close(swap_mirrored(warped, mirrored, flip_indices), heatmap.gaussian(expected, SIZE, 2.0))


def test_warp_heatmaps_gradient(generator):
    maps = torch.rand(2, 1, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    matrices = torch.stack([torch.from_numpy(augment_affine((4, 5), a, 1.1)) for a in (20, -50)])
    assert torch.autograd.gradcheck(lambda m: sampling.warp_heatmaps(m, matrices), (maps,))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["sphere", "plane", "cylinder"])
def test_warped_maps_are_the_maps_of_the_warped_shape(name, view):
    matrix = as_batch(VIEWS[view])
    depth, normals, mask = shape(name, np.eye(3))
    true_depth, true_normals, true_mask = shape(name, VIEWS[view])
    warped_depth, valid = sampling.warp_depth(depth, mask, matrix)
    warped_normals, normal_valid = sampling.warp_normals(normals, mask, matrix)
    assert torch.equal(valid, normal_valid) and torch.equal(valid, sampling.warp_mask(mask, matrix))
    differ = (eroded(valid, 1) & ~true_mask) | (eroded(true_mask, 1) & ~valid)
    assert not differ[..., 1:-1, 1:-1].any()
    core = eroded(true_mask & valid)
    assert core.sum() > 100
    assert_close(warped_depth[core], true_depth[core], atol=0.1, rtol=0)
    largest, mean = angle(warped_normals, true_normals, core)
    assert largest < 3 and mean < 0.4
    assert (warped_depth[~valid] == 0).all() and (warped_normals.norm(dim=1)[~valid[:, 0]] == 0).all()


def test_flip_twice_is_the_identity():
    depth, normals, mask = shape("sphere", np.eye(3))
    flip = as_batch(VIEWS["mirror"])
    once, once_mask = sampling.warp_normals(normals, mask, flip)
    assert_close(once[:, 0][once_mask[:, 0]], -normals.flip(-1)[:, 0][once_mask[:, 0]], atol=1e-6, rtol=0)
    twice, twice_mask = sampling.warp_normals(once, once_mask, flip)
    assert torch.equal(twice_mask, mask)
    assert_close(twice, torch.where(mask, normals, 0), atol=1e-6, rtol=0)
    again = sampling.warp_depth(*sampling.warp_depth(depth, mask, flip), flip)[0]
    assert_close(again, torch.where(mask, depth, 0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["sphere", "cylinder"])
def test_turning_there_and_back_changes_normals_by_less_than_a_degree(name):
    _, normals, mask = shape(name, np.eye(3))
    there = as_batch(VIEWS["turn"])
    back, valid = sampling.warp_normals(*sampling.warp_normals(normals, mask, there), invert_affine(there))
    core = eroded(mask & valid, 4)
    assert core.sum() > 200
    assert angle(back, normals, core)[0] < 1


def test_background_values_do_not_bleed_in_even_when_they_are_not_numbers():
    depth = torch.full((1, 1, 64, 48), float("nan"))
    mask = torch.zeros(1, 1, 64, 48, dtype=torch.bool)
    depth[..., 20:40, 15:30], mask[..., 20:40, 15:30] = 3.0, True
    warped, valid = sampling.warp_depth(depth, mask, as_batch(VIEWS["turn"]).float())
    assert valid.sum() > 250
    assert_close(warped[valid], torch.full_like(warped[valid], 3.0))


def test_view_of_another_size():
    depth, normals, mask = shape("plane", np.eye(3))
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)).unsqueeze(0)
    small, valid = sampling.warp_normals(normals, mask, half, size=(24, 32))
    assert small.shape == (1, 3, 32, 24) and valid.shape == (1, 1, 32, 24)
    assert sampling.warp_depth(depth, mask, half, size=(24, 32))[0].shape == (1, 1, 32, 24)
    assert angle(small, normals[:, :, ::2, ::2], eroded(valid, 1))[0] < 1e-4


def test_a_stretch_turns_nothing_and_a_sheared_turn_turns_by_its_nearest_rotation():
    _, normals, mask = shape("plane", np.eye(3))
    stretch = as_batch(np.diag([1.1, 0.9, 1.0]))
    warped, valid = sampling.warp_normals(normals, mask, stretch)
    where = valid[:, 0]
    assert angle(warped, normals[:, :, 30:31, 23:24].expand_as(warped), valid)[0] < 1e-4
    turned = torch.from_numpy(augment_affine(SIZE, 30, flip=True)) @ stretch
    warped, valid = sampling.warp_normals(normals, mask, turned)
    u, _, vt = np.linalg.svd(turned[0, :2, :2].numpy())
    expected = torch.from_numpy(u @ vt) @ normals[0, :2, 30, 23]
    where = valid[:, 0]
    assert_close(warped[:, :2].movedim(1, -1)[where], expected.expand(int(where.sum()), 2))
