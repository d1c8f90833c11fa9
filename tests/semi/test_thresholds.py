"""Against the papers' formulas in slow loops, and what each rule is for."""

import math

import pytest
import torch

from sagecache.semi import thresholds


def test_adaptive_keeps_the_share_of_a_gaussian_that_beta_says():
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.1 * torch.randn(200_000, 1, generator=generator)
    mean, variance = confidence.mean(0), confidence.var(0)
    for beta, share in [(0.5, 0.691), (1.0, 0.841), (2.0, 0.977)]:
        threshold = thresholds.adaptive(mean, variance, beta, 0.0, 1.0)
        assert (confidence > threshold).float().mean().item() == pytest.approx(share, abs=0.005)
    assert thresholds.adaptive(mean, variance, 20.0, 0.2, 0.9).item() == pytest.approx(0.2)
    assert thresholds.adaptive(mean + 3, variance, 0.0, 0.2, 0.9).item() == pytest.approx(0.9)


def test_flexmatch_is_the_paper_s_formula():
    selected = torch.tensor([0.9, 0.45, 0.0])
    found = thresholds.flexmatch(0.8, selected).tolist()
    unused = 1 - sum(selected.tolist()) / 3
    for value, share in zip(found, selected.tolist(), strict=True):
        beta = share / max(0.9, unused)
        assert value == pytest.approx(0.8 * beta / (2 - beta))
    assert found[0] == pytest.approx(0.8)  # who is learned best keeps the whole threshold


def test_flexmatch_starts_low_while_hardly_anything_is_selected():
    assert thresholds.flexmatch(0.8, torch.tensor([0.01, 0.02])).max() < 0.02


def test_freematch_is_the_paper_s_formula_and_never_beyond_its_ceiling():
    mean = torch.tensor([0.8, 0.4, 0.6])
    assert thresholds.freematch(mean).tolist() == pytest.approx([0.6, 0.3, 0.45])
    assert thresholds.freematch(torch.ones(3)).tolist() == pytest.approx([0.95] * 3)


def test_softmatch_is_a_truncated_gaussian():
    mean, variance = torch.tensor([0.5, 0.8]), torch.tensor([0.01, 0.04])
    weight = thresholds.softmatch(torch.tensor([[0.4, 0.9], [0.5, 0.6]]), mean, variance)
    wanted = [[math.exp(-(0.1**2) * 4 / 0.02), 1.0], [1.0, math.exp(-(0.2**2) * 4 / 0.08)]]
    assert torch.allclose(weight, torch.tensor(wanted))


@pytest.mark.parametrize("share, count", [(0.0, 0), (0.1, 1), (0.3, 3), (0.31, 4), (1.0, 10)])
def test_floors_keep_the_best_of_a_sample_and_of_a_joint(share, count):
    confidence = torch.rand(7, 10, generator=torch.Generator().manual_seed(1))
    kept = thresholds.top_of_sample(confidence, share)
    assert kept.sum(-1).tolist() == [count] * 7
    for row, mask in zip(confidence, kept, strict=True):
        assert not (count and count < 10) or row[mask].min() > row[~mask].max()
    assert torch.equal(thresholds.top_of_joint(confidence.T, share), kept.T)


def test_alignment_raises_and_lowers_confidence_up_to_one():
    log_factor = torch.tensor([2.0, 0.5, 2.0]).log()
    found = thresholds.aligned(torch.tensor([[0.4, 0.4, 0.9]]), log_factor)
    assert found.tolist() == [pytest.approx([0.8, 0.2, 1.0])]
