"""Gain, joint depth and limb lengths on surfaces with formulas, with noise, steps and holes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import oracles
from sagecache.geometry import depth as geometry

SIZE = (48, 64)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def ellipsoid(axes=(18.0, 25.0, 14.0), turn=30.0, centre=(23.0, 31.0)):
    """Depth in pixels (1, 1, H, W), normals (1, 3, H, W) and mask of the front of a turned ellipsoid."""
    y, x = torch.meshgrid(*(torch.arange(float(n), dtype=torch.float64) for n in SIZE[::-1]), indexing="ij")
    angle = math.radians(turn)
    matrix = torch.diag(torch.tensor(axes, dtype=torch.float64) ** -2)
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[1:, 1:] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = rotation @ matrix @ rotation.T
    u, v = x - centre[0], y - centre[1]
    # matrix form p' A p = 1 solved for z, the root nearer to the camera
    linear = matrix[0, 2] * u + matrix[1, 2] * v
    constant = matrix[0, 0] * u**2 + 2 * matrix[0, 1] * u * v + matrix[1, 1] * v**2 - 1
    root = linear**2 - matrix[2, 2] * constant
    mask = root > 0
    z = (-linear - root.clamp_min(0).sqrt()) / matrix[2, 2]
    points = torch.stack([u, v, z])
    normals = F.normalize(torch.einsum("ij,jhw->ihw", matrix, points), dim=0)
    return torch.where(mask, z, 0)[None, None], torch.where(mask, normals, 0)[None], mask[None, None]


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (200.0, -1.3), (0.004, 77.0)])
def test_gain_undoes_any_scale_and_shift(scale, shift):
    z, normals, mask = ellipsoid()
    depth = torch.where(mask, z / scale + shift, 0)
    gain = geometry.gain_from_normals(depth, normals, mask)
    assert gain.valid.all()
    assert_close(gain.value / scale, torch.ones(1, dtype=torch.float64), atol=0.01, rtol=0)
    assert gain.agreement.item() > 0.97
    assert_close(geometry.gain_from_normals(depth.float(), normals.float(), mask).value, gain.value.float())


def test_gain_survives_noise_that_halves_least_squares(generator):
    z, normals, mask = ellipsoid()
    z, normals, mask = (each.expand(24, -1, -1, -1) for each in (z, normals, mask))
    sd = z[0][mask[0]].std()
    noisy = z + 0.1 * sd * torch.randn(z.shape, generator=generator, dtype=torch.float64)
    bent = F.normalize(normals + 0.17 * torch.randn(normals.shape, generator=generator).double(), dim=1)
    gain = geometry.gain_from_normals(noisy, bent, mask)
    assert 0.9 < gain.value.median() < 1.1
    core = -F.max_pool2d(-(mask & (bent[:, 2:] < -0.35)).double(), 5, 1, 2) > 0.5
    steps = (noisy[..., 1:-1, 2:] - noisy[..., 1:-1, :-2])[core[..., 1:-1, 1:-1]] / 2
    slopes = (-bent[:, :1] / bent[:, 2:])[..., 1:-1, 1:-1][core[..., 1:-1, 1:-1]]
    assert (slopes * steps).sum() / steps.square().sum() < 0.6


def test_gain_ignores_a_step_between_two_parts():
    z, normals, mask = ellipsoid()
    stepped = z + 40 * (torch.arange(64).view(1, 1, 64, 1) > 36)
    gain = geometry.gain_from_normals(stepped, normals, mask)
    assert_close(gain.value, torch.ones(1, dtype=torch.float64), atol=0.06, rtol=0)


def test_gain_is_invalid_without_evidence():
    z, normals, mask = ellipsoid()
    flat = torch.tensor([0.0, 0.0, -1.0]).double().view(1, 3, 1, 1).expand_as(normals)
    few = torch.zeros_like(mask)
    few[..., 30:36, 20:26] = True
    cases = [(z, normals, torch.zeros_like(mask)), (-z, normals, mask), (z, flat, mask), (z, normals, few)]
    cases.append((torch.zeros_like(z), normals, mask))
    for depth, normal, where in cases:
        gain = geometry.gain_from_normals(depth, normal, where)
        assert not gain.valid.any() and gain.value.item() == 1 and gain.agreement.item() == 0


@pytest.mark.parametrize("size", [(1, 1), (4, 3), (6, 2), (3, 200), (260, 6)])
def test_maps_too_small_for_pairs_have_no_gain(size):
    depth, mask = torch.zeros(2, 1, *size), torch.ones(2, 1, *size, dtype=torch.bool)
    normals = torch.tensor([0.0, 0.0, -1.0]).view(3, 1, 1).expand(2, 3, *size)
    gain = geometry.gain_from_normals(depth, normals, mask)
    assert gain.value.tolist() == [1, 1] and not gain.valid.any() and not gain.agreement.any()


def test_agreement_tells_contradicting_maps():
    z, normals, mask = ellipsoid()
    turned = torch.cat([-normals[:, 1:2], normals[:, :1], normals[:, 2:]], 1)  # slopes of another surface
    gain = geometry.gain_from_normals(z, turned, mask)
    assert gain.agreement.item() < 0.5


def test_each_sample_has_its_own_gain_and_background_is_not_read():
    z, normals, mask = ellipsoid()
    depth = torch.cat([z / 3, z / 50 + 2])
    depth = torch.where(mask, depth, float("nan"))
    gain = geometry.gain_from_normals(depth, normals.expand(2, -1, -1, -1), mask.expand(2, -1, -1, -1))
    assert_close(gain.value, torch.tensor([3.0, 50.0], dtype=torch.float64), rtol=0.01, atol=0)


def test_gain_of_a_larger_map_of_the_same_scene_is_in_its_own_pixels():
    z, normals, mask = ellipsoid()
    doubled = [
        F.interpolate(each.double(), scale_factor=4, mode="nearest-exact") for each in (z, normals, mask)
    ]
    smooth = F.interpolate(z, scale_factor=4, mode="bilinear")
    gain = geometry.gain_from_normals(smooth, doubled[1], doubled[2] > 0)
    assert_close(gain.value, torch.tensor([4.0], dtype=torch.float64), rtol=0.05, atol=0)


def test_weighted_median_is_the_loop(generator):
    values = torch.randn(7, 9, generator=generator, dtype=torch.float64)
    weights = torch.rand(7, 9, generator=generator, dtype=torch.float64) * (values.abs() > 0.3)
    expected = [oracles.weighted_median(v.tolist(), w.tolist()) for v, w in zip(values, weights, strict=True)]
    assert_close(geometry.weighted_median(values, weights), torch.tensor(expected, dtype=torch.float64))
    assert geometry.weighted_median(values, torch.zeros_like(weights)).isfinite().all()


def test_joint_depth_reads_the_surface_and_drops_edges_and_outside():
    y, x = torch.meshgrid(*(torch.arange(float(n), dtype=torch.float64) for n in SIZE[::-1]), indexing="ij")
    depth = (0.1 * x - 0.2 * y)[None, None].clone()
    mask = ((x > 5) & (x < 40) & (y > 5) & (y < 60))[None, None]
    depth[..., 30:, :] += 30  # a second part, far behind
    names = {
        "inside": (20.3, 15.7),
        "beside the outline": (6.2, 15.0),
        "one pixel in": (7.0, 15.0),
        "off the mask": (45.0, 15.0),
        "off the map": (-30.0, 15.0),
        "far off": (1e9, 15.0),
        "on the step": (20.0, 30.0),
        "below the step": (20.0, 33.0),
    }
    points = torch.tensor([list(names.values())], dtype=torch.float64)
    value, valid = geometry.joint_depth(depth, mask, points)
    # three of the nine values across a step are in the minority: the median is theirs, not the edge's
    trusted = {"inside", "one pixel in", "on the step", "below the step"}
    assert {name for name, good in zip(names, valid[0].tolist(), strict=True) if good} == trusted
    for name, got in zip(names, value[0].tolist(), strict=True):
        column, row = names[name]
        expected = 0.1 * column - 0.2 * row + (30 if row >= 30 else 0)
        assert got == pytest.approx(expected if name in trusted else 0)


def test_joint_depth_drops_a_ridge_where_no_side_has_the_majority():
    depth = torch.zeros(1, 1, 64, 48)
    depth[..., 30:, :] = 10.0
    depth[..., 30, 20:] = 5.0  # a slope that only blending makes
    mask = torch.ones(1, 1, 64, 48, dtype=torch.bool)
    _, valid = geometry.joint_depth(depth, mask, torch.tensor([[[30.0, 30.0], [30.0, 40.0]]]))
    assert valid.tolist() == [[False, True]]


def test_joint_depth_tolerates_a_mask_of_numbers_and_nan_outside_it():
    z, _, mask = ellipsoid()
    points = torch.tensor([[[23.0, 31.0], [20.5, 25.25]]], dtype=torch.float64)
    expected = geometry.joint_depth(z, mask, points)
    holes = torch.where(mask, z, float("nan"))
    assert_close(geometry.joint_depth(holes, mask.double(), points), expected)
    assert expected[0][0, 0].item() == pytest.approx(oracles.bilinear(z[0, 0].numpy(), 23.0, 31.0))


def test_limb_length_is_pythagoras(generator):
    keypoints = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64) * 20
    z = torch.randn(3, 5, generator=generator, dtype=torch.float64) * 20
    edges = torch.tensor([[0, 1], [3, 2], [4, 4]])
    found = geometry.limb_length_3d(keypoints, z, edges)
    for b, e in np.ndindex(3, 3):
        i, j = edges[e].tolist()
        p, q = ([*keypoints[b, k].tolist(), z[b, k].item()] for k in (i, j))
        assert found[b, e].item() == pytest.approx(math.sqrt(math.dist(p, q) ** 2 + 1))


def test_gradients(generator):
    z, _, mask = ellipsoid()
    points = torch.tensor([[[20.3, 30.6], [25.4, 22.2], [2.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: geometry.joint_depth(z, mask, p)[0], (points,))
    heights = torch.randn(1, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    edges = torch.tensor([[0, 1], [1, 2], [2, 2]])
    assert torch.autograd.gradcheck(lambda p, h: geometry.limb_length_3d(p, h, edges), (points, heights))
