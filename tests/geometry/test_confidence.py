"""Expected OKS against Monte Carlo, closed forms and a slow loop; visibility against known maps."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sagecache.geometry.confidence import NARROWEST, expected_oks, visibility
from sagecache.geometry.heatmap import decode, gaussian

SIZE = (48, 64)
SIGMA = 2.0
SIGMAS = torch.tensor([0.05, 0.1])  # of two joints: r = 2 sigma_k s
SCALE = torch.tensor([40.0])  # r = 4 and 8 px


def score(prob, at, scale=SCALE, sigmas=SIGMAS, sigma=SIGMA):
    return expected_oks(prob, torch.as_tensor(at).expand(*prob.shape[:2], 2), scale, sigmas, sigma)


@pytest.mark.parametrize("at", [(24.0, 32.0), (20.37, 41.81), (3.2, 5.5)])
@pytest.mark.parametrize("sigma", [1.25, 2.0, 3.0])
def test_a_perfect_map_scores_one(at, sigma):
    prob = gaussian(torch.tensor(at).expand(1, 2, 2), SIZE, sigma)
    for scale in (5.0, 40.0, 200.0):  # the codec's Gaussian is wider than the smallest body's joints
        found = score(prob, at, torch.tensor([scale]), sigma=sigma)
        assert (found <= 1).all() and found.min() > 0.98, (scale, found)


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
def test_a_blurred_position_scores_as_the_closed_form_says(spread):
    """The joint a Gaussian of variance spread^2, the map that blurred by the codec: 1 / (1 + var / r^2)."""
    centre = (47.5, 47.5)
    prob = gaussian(torch.tensor(centre).expand(1, 2, 2), (96, 96), math.hypot(SIGMA, spread))
    radius = 2 * SIGMAS * SCALE
    assert_close(score(prob, centre)[0], 1 / (1 + spread**2 / radius**2), atol=2e-3, rtol=0)


def test_it_is_the_mean_oks_of_joints_drawn_from_the_map():
    """Two places for one joint, seen through the codec; draws of the joint need no correction at all."""
    rng = np.random.default_rng(0)
    places, share, spread = np.array([[16.0, 20.0], [22.0, 26.0]]), np.array([0.7, 0.3]), 1.5
    joints = places[rng.choice(2, 40000, p=share)] + spread * rng.standard_normal((40000, 2))
    read = np.array([16.4, 20.3])
    for sigma_k, scale in ((0.05, 40.0), (0.1, 40.0), (0.107, 20.0)):
        expected = np.exp(-((joints - read) ** 2).sum(1) / (2 * scale**2 * (2 * sigma_k) ** 2)).mean()
        blurred = gaussian(torch.tensor(places)[None], SIZE, math.hypot(SIGMA, spread))
        prob = (blurred * torch.tensor(share)[:, None, None]).sum(1, keepdim=True)
        found = score(prob, read, torch.tensor([scale]).double(), torch.tensor([sigma_k]).double())
        assert found.item() == pytest.approx(expected, abs=5e-3)


def test_against_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    prob = torch.rand(3, 2, 12, 9, generator=generator, dtype=torch.float64)
    prob = prob / prob.sum((-2, -1), keepdim=True)
    keypoints, scale = 8 * torch.rand(3, 2, 2, generator=generator).double(), torch.tensor([9.0, 15.0, 1.0])
    found = expected_oks(prob, keypoints, scale.double(), SIGMAS.double(), 1.25)
    for b in range(3):
        for k in range(2):
            radius = 2 * SIGMAS[k].item() * scale[b].item()
            variance = max(radius**2 - 1.25**2, NARROWEST**2)
            total = 0.0
            for y in range(12):
                for x in range(9):
                    squared = (x - keypoints[b, k, 0]) ** 2 + (y - keypoints[b, k, 1]) ** 2
                    total += prob[b, k, y, x] * math.exp(-squared / (2 * variance))
            expected = min(1.0, float(total) * (variance + 1.25**2) / variance)
            assert found[b, k].item() == pytest.approx(expected, rel=1e-6)


def test_larger_bodies_and_laxer_joints_forgive_more():
    prob = gaussian(torch.tensor([24.0, 32.0]).expand(1, 2, 2), SIZE, 5.0)
    small, large = score(prob, (24.0, 32.0), torch.tensor([30.0])), score(prob, (24.0, 32.0))
    assert (large > small).all() and (large[0, 1] > large[0, 0]) and small.min() > 0


def test_two_modes_and_empty_maps():
    far = gaussian(torch.tensor([[[10.0, 10.0], [38.0, 54.0]]]), SIZE, SIGMA)
    two = (far[:, :1] + far[:, 1:]).expand(1, 2, -1, -1) / 2
    assert_close(score(two, (10.0, 10.0)), torch.full((1, 2), 0.5), atol=5e-3, rtol=0)
    assert (score(torch.zeros_like(two), (10.0, 10.0)) == 0).all()
    flat = torch.full((1, 2, 64, 48), 1 / 3072)
    radius = 2 * SIGMAS * SCALE  # the share of the map within the kernel
    assert_close(score(flat, (24.0, 32.0))[0], 2 * math.pi * radius**2 / 3072, atol=1e-3, rtol=0.02)


def test_half_precision_and_autocast_change_nothing():
    at = torch.tensor([[[20.3, 30.7], [11.0, 40.0]]])
    prob = gaussian(at, SIZE, 3.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = expected_oks(prob, at, SCALE, SIGMAS, SIGMA), visibility(prob, SIGMA)
    assert_close(
        inside, (expected_oks(prob, at, SCALE, SIGMAS, SIGMA), visibility(prob, SIGMA)), rtol=0, atol=0
    )
    assert visibility(prob.bfloat16(), SIGMA).dtype == torch.float32


def test_visibility_of_known_maps():
    on, between = (24.0, 32.0), (24.5, 32.5)
    peaks = gaussian(torch.tensor([[on, between, (10.0, 10.0)]]), SIZE, SIGMA)
    found = visibility(peaks, SIGMA)[0]
    assert found[0].item() == pytest.approx(1, abs=1e-3) and found[1] > 0.96
    two, three = (peaks[:, 0] + peaks[:, 2]) / 2, (peaks[:, 0] * 0.6 + peaks[:, 2] * 0.4)
    wide = gaussian(torch.tensor([[on]]), SIZE, 2 * SIGMA)[:, 0]
    flat, half = torch.full((1, 64, 48), 1 / 3072), (peaks[:, 0] + 1 / 3072) / 2
    maps = torch.stack([two, three, wide, flat, half], 1)
    found = visibility(maps, SIGMA)[0]
    assert found[0].item() == pytest.approx(0.5, abs=1e-3)
    assert found[1].item() == pytest.approx(math.sqrt(0.6 * (0.36 + 0.16)), abs=1e-3)
    assert found[2].item() == pytest.approx(0.25, abs=5e-3)  # (sigma / width)^2
    assert found[3] < 0.02
    assert found[4].item() == pytest.approx(math.sqrt(0.5 * 0.25), abs=0.02)  # half of the mass lies about


def test_visibility_sees_a_spike_that_confidence_takes_for_a_joint():
    spike = torch.full((1, 1, 64, 48), 0.95 / 3071)
    spike[0, 0, 30, 20] = 0.05
    assert decode(spike, SIGMA)[1].item() == 1
    assert visibility(spike, SIGMA).item() < 0.4
    assert visibility(torch.zeros(1, 1, 8, 8), SIGMA).item() == 0
