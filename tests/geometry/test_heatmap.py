"""Heatmaps against slow loops, analytic Gaussians and gradcheck."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import oracles
from sagecache.geometry import heatmap
from sagecache.geometry.sampling import warp_heatmaps

SIZE = (24, 32)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", ["logits", "heatmap"])
def test_probability_sums_to_one_and_log_probability_is_its_log(kind, generator):
    raw = torch.randn(2, 3, 8, 6, generator=generator, dtype=torch.float64)
    raw[0, 0] = -raw[0, 0].abs()  # an empty heatmap
    prob = heatmap.probability(raw, kind)
    assert prob.shape == raw.shape and (prob >= 0).all()
    assert_close(prob.sum((-2, -1)), torch.ones(2, 3, dtype=torch.float64))
    assert_close(heatmap.log_probability(raw, kind), prob.log())


def test_log_probability_of_logits_survives_underflow():
    raw = torch.tensor([[[[0.0, -200.0]]]])
    assert_close(heatmap.log_probability(raw, "logits"), raw)


def test_unknown_kind_is_refused():
    for function in (heatmap.probability, heatmap.log_probability):
        with pytest.raises(ValueError, match="'logits' or 'heatmap'"):
            function(torch.zeros(1, 1, 4, 4), "softmax")


def test_raw_heatmap_decodes_to_its_peak_only_as_heatmap():
    """The softmax of raw MSE heatmaps is almost flat (computed: (23.4, 31.7) for a peak at (10, 50))."""
    raw = torch.from_numpy(oracles.gaussian(10, 50, (48, 64), 2)).view(1, 1, 64, 48)
    grid_y, grid_x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    grid = torch.stack([grid_x, grid_y]).double()
    mean = {kind: (heatmap.probability(raw, kind) * grid).sum((-2, -1))[0] for kind in ("heatmap", "logits")}
    assert_close(mean["heatmap"], torch.tensor([10.0, 50.0], dtype=torch.float64), atol=0.01, rtol=0)
    assert_close(mean["logits"], torch.tensor([23.4, 31.7], dtype=torch.float64), atol=0.1, rtol=0)


@pytest.mark.parametrize("sigma", [1.0, 1.25, 2.0, 3.0])
def test_decode_inverts_gaussian(sigma, generator):
    keypoints = torch.rand(4, 40, 2, generator=generator) * torch.tensor([10.0, 16.0]) + torch.tensor(
        [7.0, 8]
    )
    found, confidence = heatmap.decode(heatmap.gaussian(keypoints, SIZE, sigma), sigma)
    assert_close(found, keypoints, atol=0.03, rtol=0)
    lowest = math.exp(-0.25 / sigma**2)  # the joint half a pixel off the grid in both directions
    assert (confidence <= 1).all() and (confidence >= lowest - 0.02).all()


@pytest.mark.parametrize("sigma, peak", [(1, 0.159), (1.5, 0.0707), (2, 0.0398), (3, 0.0177)])
def test_perfect_maps_peak_where_the_table_says_and_have_confidence_one(sigma, peak):
    prob = heatmap.gaussian(torch.tensor([[[20.0, 20.0]]]), (41, 41), sigma)
    assert_close(prob.max(), torch.tensor(peak), atol=2e-4, rtol=0)
    assert heatmap.decode(prob, sigma)[1].item() == pytest.approx(1, abs=1e-3)


def test_confidence_falls_with_the_spread_and_with_a_second_mode():
    keypoints = torch.tensor([[[6.0, 8.0], [17.0, 24.0]]])
    sharp, wide = (heatmap.gaussian(keypoints, SIZE, sigma) for sigma in (1.5, 3.0))
    two_modes = sharp.mean(1, keepdim=True)
    assert (heatmap.decode(wide, 1.5)[1] < 0.3).all()
    assert heatmap.decode(two_modes, 1.5)[1].item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("sigma, radius", [(0.7, 2), (1.25, 2), (2.0, 2), (2.6, 3), (6.0, 8)])
def test_positions_are_the_oracles_centroid_widened_also_at_borders(sigma, radius, generator):
    prob = torch.rand(2, 6, 9, 7, generator=generator, dtype=torch.float64)
    for k, (row, column) in enumerate([(0, 0), (0, 6), (8, 0), (8, 6)]):
        prob[0, k, row, column] = 2.0
    window = np.arange(-radius, radius + 1)
    weights = np.exp(-(window**2) / (2 * sigma**2))
    shrink = (weights * window**2).sum() / weights.sum() / sigma**2
    found = heatmap.soft_argmax(prob, sigma)
    for b, k in np.ndindex(2, 6):
        image = prob[b, k].numpy()
        peak = np.array(np.unravel_index(image.argmax(), image.shape))[::-1]
        expected = peak + (np.array(oracles.window_centroid(image, radius)) - peak) / shrink
        np.testing.assert_allclose(found[b, k].numpy(), expected)
    assert torch.equal(heatmap.decode(prob, sigma)[0], found)


def test_an_all_zero_map_gives_a_finite_position_and_no_confidence():
    keypoints, confidence = heatmap.decode(torch.zeros(1, 1, 5, 5), 2.0)
    assert keypoints.isfinite().all() and confidence.item() == 0


@pytest.mark.parametrize("kind", ["logits", "heatmap"])
def test_position_has_a_gradient_through_probability(kind, generator):
    raw = torch.rand(1, 2, 7, 6, generator=generator, dtype=torch.float64)  # positive: relu is smooth there
    raw[0, 0, 3, 2] = raw[0, 1, 0, 5] = 3.0
    raw.requires_grad_()
    assert torch.autograd.gradcheck(lambda r: heatmap.soft_argmax(heatmap.probability(r, kind), 1.5), (raw,))
    assert torch.autograd.gradcheck(lambda r: heatmap.log_probability(r, kind), (raw,))


def test_gradient_moves_the_joint_towards_the_target():
    raw = heatmap.gaussian(torch.tensor([[[10.0, 12.0]]]), SIZE, 2.0).log().requires_grad_()
    before = heatmap.soft_argmax(heatmap.probability(raw, "logits"), 2.0)
    (gradient,) = torch.autograd.grad((before - torch.tensor([11.0, 12.0])).square().sum(), raw)
    after = heatmap.soft_argmax(heatmap.probability(raw - 5 * gradient, "logits"), 2.0)
    assert after[0, 0, 0] > before[0, 0, 0] + 0.1


def test_gaussian_is_the_loop_normalised_in_view_and_fades_outside():
    points = torch.tensor([[[11.3, 20.8], [-2.0, -1.0], [-6.0, 10.0], [200.0, 10.0]]], dtype=torch.float64)
    maps = heatmap.gaussian(points, SIZE, 2.0)
    inside = oracles.gaussian(11.3, 20.8, SIZE, 2.0)
    assert_close(maps[0, 0], torch.from_numpy(inside / inside.sum()))
    corner = oracles.gaussian(-2, -1, SIZE, 2.0)  # 10 % of the plane: below the share that is made up for
    assert_close(maps[0, 1], torch.from_numpy(corner / (0.3 * 2 * math.pi * 4)).double())
    mass = maps.sum((-2, -1))[0]
    assert mass[2] < 0.02 and mass[3] == 0


def test_gaussian_gradient(generator):
    points = (torch.rand(1, 3, 2, generator=generator, dtype=torch.float64) * 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: heatmap.gaussian(p, (6, 7), 1.25), (points,))


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.5])
def test_in_view_mass_is_the_share_of_the_plane_that_stays(scale):
    """A joint on the last column: the normal distribution says how much of it is in view."""
    teacher = heatmap.gaussian(torch.tensor([[[32.0, 32.0]]], dtype=torch.float64), (65, 65), 2.5)
    for column in (63.5, 62.0, 66.0):  # where the warped joint lands; the view ends half a pixel after 64
        matrix = torch.tensor([[[scale, 0, column - 32 * scale], [0, scale, 32 - 32 * scale], [0, 0, 1.0]]])
        share = heatmap.in_view_mass(warp_heatmaps(teacher, matrix.double()), matrix.double())
        expected = 0.5 * (1 + math.erf((64.5 - column) / (scale * 2.5) / math.sqrt(2)))
        assert share.item() == pytest.approx(expected, abs=0.01)


def test_bfloat16_and_autocast_do_not_move_joints():
    keypoints = torch.tensor([[[11.3, 20.8]]])
    prob = heatmap.gaussian(keypoints, SIZE, 1.5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = heatmap.soft_argmax(prob, 1.5)
    assert_close(inside, heatmap.soft_argmax(prob, 1.5), rtol=0, atol=0)
    assert heatmap.probability(prob.bfloat16(), "heatmap").dtype == torch.float32
