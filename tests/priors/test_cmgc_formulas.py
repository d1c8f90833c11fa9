"""CMGC residuals on surfaces with formulas and against a slow loop; the statistics of limb ratios."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import oracles
from sagecache.geometry.depth import gain_from_normals
from sagecache.priors import cmgc


def relief(size=(48, 64)):
    """A bumpy surface z(x, y) in pixels, its normals and a mask: (1, C, H, W) float64 each."""
    y, x = torch.meshgrid(*(torch.arange(float(n), dtype=torch.float64) for n in size[::-1]), indexing="ij")
    z = 0.4 * x - 0.3 * y + 6 * torch.sin(x / 9) + 5 * torch.cos(y / 8)
    slopes = 0.4 + 6 / 9 * torch.cos(x / 9), -0.3 - 5 / 8 * torch.sin(y / 8)
    normals = F.normalize(torch.stack([*slopes, -torch.ones_like(x)]), dim=0)
    mask = ((x > 2) & (x < 45) & (y > 2) & (y < 61))[None, None]
    return z[None, None], normals[None], mask


KEYPOINTS = torch.tensor([[[12.3, 10.6], [30.2, 14.7], [33.4, 35.1], [14.6, 40.2], [20.3, 52.8]]]).double()
CHAIN = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]])
NO_SPREAD = torch.full((5,), 0.1, dtype=torch.float64)


def zero_reference():
    return cmgc.LimbReference(torch.zeros(5, dtype=torch.float64), NO_SPREAD)


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (0.01, 2.0), (30.0, -5.0)])
def test_depth_residual_is_the_loop_whatever_scale_and_shift_depth_has(scale, shift):
    z, normals, mask = relief()
    centre = torch.tensor([0.1, -0.3, 0.2, 0.5, -0.5], dtype=torch.float64)
    reference = cmgc.LimbReference(centre, torch.tensor([0.05, 0.1, 0.06, 0.2, 0.07], dtype=torch.float64))
    weights = torch.ones(1, 5, dtype=torch.float64)
    loss, weight = cmgc.depth_residual(KEYPOINTS, weights, scale * z + shift, normals, mask, CHAIN, reference)
    gain = gain_from_normals(z, normals, mask).value.item()
    assert gain == pytest.approx(1, abs=0.02)
    heights = [gain * oracles.bilinear(z[0, 0].numpy(), *point) for point in KEYPOINTS[0].tolist()]
    expected = oracles.limb_ratio_losses(
        KEYPOINTS[0].tolist(), heights, CHAIN.tolist(), centre.tolist(), reference.spread.tolist(), [1] * 5,
        cmgc.SLACK, cmgc.HUBER,
    )  # fmt: skip
    assert max(expected) > 0.1
    assert weight.tolist() == [[1, 1, 1, 1, 1]]
    assert loss[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_a_missing_joint_takes_its_limbs_out_of_the_mean_too():
    z, normals, mask = relief()
    weights = torch.tensor([[1.0, 1, 1, 1, 0]]).double()
    loss, weight = cmgc.depth_residual(KEYPOINTS, weights, z, normals, mask, CHAIN, zero_reference())
    assert weight.tolist() == [[1, 1, 1, 0, 0]]
    gain = gain_from_normals(z, normals, mask).value.item()
    heights = [gain * oracles.bilinear(z[0, 0].numpy(), *point) for point in KEYPOINTS[0].tolist()]
    expected = oracles.limb_ratio_losses(
        KEYPOINTS[0].tolist(), heights, CHAIN.tolist(), [0] * 5, NO_SPREAD.tolist(), weight[0].tolist(),
        cmgc.SLACK, cmgc.HUBER,
    )  # fmt: skip
    assert loss[0, :3].tolist() == pytest.approx(expected[:3], abs=1e-9)


def test_limbs_without_a_good_reference_and_bodies_of_two_limbs_drop_out():
    z, normals, mask = relief()
    weights = torch.ones(1, 5).double()
    spread = torch.tensor([0.1, math.inf, 0.1, 0.31, 0.1], dtype=torch.float64)
    reference = cmgc.LimbReference(torch.zeros(5, dtype=torch.float64), spread)
    args = (z, normals, mask, CHAIN, reference)
    loss, weight = cmgc.depth_residual(KEYPOINTS, weights, *args)
    assert weight.tolist() == [[1, 0, 1, 0, 1]] and loss.isfinite().all()
    weights[0, 4] = 0
    assert cmgc.depth_residual(KEYPOINTS, weights, *args)[1].tolist() == [[0] * 5]


def test_joints_off_the_mask_and_instances_without_depth_drop_out():
    z, normals, mask = relief()
    moved = KEYPOINTS.clone()
    moved[0, 0] = torch.tensor([46.5, 10.0])
    ones = torch.ones(1, 5).double()
    assert cmgc.depth_residual(moved, ones, z, normals, mask, CHAIN, zero_reference())[1][0].tolist() == [
        0, 1, 1, 1, 0,
    ]  # fmt: skip
    empty = torch.zeros_like(mask)
    for function, extra in ((cmgc.depth_residual, (zero_reference(),)), (cmgc.normal_residual, ())):
        points = KEYPOINTS.clone().requires_grad_()
        loss, weight = function(points, ones, z, normals, empty, CHAIN, *extra)
        assert weight.sum() == 0
        (gradient,) = torch.autograd.grad((loss * weight).sum(), points)
        assert (gradient == 0).all()


@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.0])
def test_normals_of_a_cylinder_are_across_its_axis_however_it_is_tilted(tilt):
    """Axis along y, climbing by tilt a pixel; joints on the line of the surface nearest to the camera."""
    y, x = torch.meshgrid(torch.arange(64.0).double(), torch.arange(48.0).double(), indexing="ij")
    radius, u = 12.0, x - 23
    # cut across the axis: an ellipse in the image's plane of depth, stretched by 1 / cos(tilt angle)
    stretch = math.hypot(1, tilt)
    inside = radius**2 - u**2
    z = tilt * y - stretch * inside.clamp_min(0).sqrt()
    mask = (inside > 4)[None, None]
    slope_x = stretch * u / inside.clamp_min(4).sqrt()
    normals = F.normalize(torch.stack([slope_x, torch.full_like(x, tilt), -torch.ones_like(x)]), dim=0)
    joints = torch.tensor([[[23.0, 12.0], [23.0, 50.0], [29.0, 12.0], [17.0, 50.0]]]).double()
    edges, ones = torch.tensor([[0, 1], [2, 3]]), torch.ones(1, 4).double()
    loss, weight = cmgc.normal_residual(joints, ones, z[None, None], normals[None], mask, edges)
    assert weight.tolist() == [[1, 1]]
    assert loss[0, 0] < 1e-3 and loss[0, 1] < 0.03
    flat = torch.zeros_like(z)[None, None] + 1e-9 * z  # a depth that hides the tilt: what 2-D would see
    assert gain_from_normals(flat, normals[None], mask).valid.all()


def test_a_limb_that_leaves_the_surface_pays_the_sine_of_its_angle():
    """A plane facing the camera, with a spike at one joint: n . l is the sine of the limb's climb."""
    y, x = torch.meshgrid(torch.arange(64.0).double(), torch.arange(48.0).double(), indexing="ij")
    z, normals, mask = relief()
    z, normals = z.clone(), normals.clone()
    z[..., 20:, :] = 0.0
    normals[..., 20:, :] = torch.tensor([0.0, 0.0, -1.0]).double().view(1, 3, 1, 1)
    z[..., 44:50, 8:14] = 20.0
    joints = torch.tensor([[[11.0, 47.0], [41.0, 47.0], [41.0, 24.0]]]).double()
    edges = torch.tensor([[0, 1], [1, 2]])
    loss, weight = cmgc.normal_residual(joints, torch.ones(1, 3).double(), z, normals, mask, edges)
    gain = gain_from_normals(z, normals, mask).value.item()
    climb = 20 * gain / math.sqrt(30**2 + (20 * gain) ** 2 + 1)
    assert loss[0].tolist() == pytest.approx([climb - math.sin(math.radians(15)), 0], abs=1e-6)
    assert weight.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "start, share",
    [
        (10.0, 0.8),  # points at rows 20, 25, 30, 35, 40; 25 is off, 30 is the first row again on the mask
        (14.5, 0.6),  # 24.5 and 29.5 are read half from rows on the mask and half from rows off it
        (14.1, 0.6),  # so are 24.1 and 29.1, by .9 and .1
    ],
)
def test_points_of_a_limb_off_the_mask_lower_its_weight(start, share):
    z, normals, mask = relief()
    mask = mask.clone()
    mask[..., 25:30, :] = False
    joints = torch.tensor([[[20.0, start], [20.0, start + 40]]]).double()
    _, weight = cmgc.normal_residual(
        joints, torch.ones(1, 2).double(), z, normals, mask, torch.tensor([[0, 1]])
    )
    assert weight.tolist() == [[pytest.approx(share)]]


def test_gradients_match_finite_differences():
    """Away from pixel centres; where normals are read is a constant of the gradient, so uniform here."""
    z, normals, mask = relief()
    points, ones = KEYPOINTS.clone().requires_grad_(), torch.ones(1, 5).double()
    args = (ones, z, normals, mask, CHAIN)
    reference = zero_reference()
    assert torch.autograd.gradcheck(lambda p: cmgc.depth_residual(p, *args, reference)[0], (points,))
    plane = 0.4 * torch.arange(48.0).double().expand(1, 1, 64, 48).contiguous()
    plane[..., 30:, :] += 0.5 * torch.arange(34.0).double().view(-1, 1)
    tilted = F.normalize(torch.tensor([0.4, 0.0, -1.0]).double(), dim=0).view(1, 3, 1, 1).expand_as(normals)
    args = (ones, plane, tilted, mask, CHAIN)
    assert cmgc.normal_residual(points, *args)[0].max() > 0
    assert torch.autograd.gradcheck(lambda p: cmgc.normal_residual(p, *args)[0], (points,))


# --- the reference -------------------------------------------------------------------------------


def test_statistics_find_centres_and_spreads_through_holes_and_outliers():
    rng = np.random.default_rng(0)
    centre = np.array([0.5, -0.2, 0.1, -0.4, 0.0])
    spread = np.array([0.05, 0.1, 0.2, 0.05, 0.1])
    size = rng.normal(3, 0.5, (400, 1))
    table = size + centre + spread * rng.normal(size=(400, 5))
    table[:40, 1] += np.where(rng.random(40) < 0.5, -3, 3)  # joints in the wrong place
    weight = rng.random((400, 5)) < 0.7
    table[~weight] = 50.0
    table = np.c_[table, rng.normal(size=400)]  # a limb seen on four bodies only
    weight = np.c_[weight, np.arange(400) < 4]
    found = cmgc.ratio_statistics(torch.from_numpy(table), torch.from_numpy(weight).double())
    assert_close(found.centre, torch.from_numpy(np.r_[centre, 0]), atol=0.02, rtol=0)
    assert found.spread[5] == math.inf
    # what the mean over few limbs leaves: part of a limb's own noise, and some of the others'
    assert (found.spread[:5].numpy() > 0.7 * spread).all() and (found.spread[:5].numpy() < 1.6 * spread).all()


def test_statistics_without_any_observation_switch_every_limb_off():
    found = cmgc.ratio_statistics(torch.zeros(3, 4), torch.zeros(3, 4))
    assert (found.spread == math.inf).all() and (found.centre == 0).all()
