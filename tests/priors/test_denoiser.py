import math

import numpy as np
import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.priors.denoiser import SCHEDULES, Denoiser, gaussian_noise


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_keep_the_variance_and_rise(name):
    amplitude, sigma = SCHEDULES[name](1000)
    torch.testing.assert_close(amplitude**2 + sigma**2, torch.ones(1000))
    assert (sigma.diff() > 0).all() and sigma[0] < 0.02 and sigma[-1] > 0.99


def test_schedules_agree_with_their_closed_forms():
    assert SCHEDULES["linear"](1000)[1][[19, 49, 99, 199, 299, 499]].tolist() == pytest.approx(
        [
            math.sqrt(1 - math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(t)))
            for t in (20, 50, 100, 200, 300, 500)
        ],
        abs=1e-5,
    )
    angle = [(t / 1000 + 0.008) / 1.008 * math.pi / 2 for t in (20, 200, 500)]
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    want = [math.sqrt(1 - math.cos(a) ** 2 / start) for a in angle]
    assert SCHEDULES["cosine"](1000)[1][[19, 199, 499]].tolist() == pytest.approx(want, abs=1e-5)


def covariance(size: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return root @ root.T / size + 0.1 * torch.eye(size)


def test_wiener_filter_agrees_with_one_body_at_a_time():
    c, generator = covariance(6), torch.Generator().manual_seed(1)
    x_t, mask = torch.randn(5, 6, generator=generator), (torch.rand(5, 6, generator=generator) < 0.6).float()
    sigma = torch.linspace(0.1, 0.9, 5)
    amplitude = (1 - sigma**2).sqrt()
    ours = gaussian_noise(x_t, amplitude, sigma, mask, c).numpy()
    for row in range(5):
        kept = mask[row].numpy() > 0
        want = np.zeros(6)
        a, s = amplitude[row].item(), sigma[row].item()
        block = a**2 * c.numpy()[np.ix_(kept, kept)] + s**2 * np.eye(kept.sum())
        want[kept] = s * np.linalg.solve(block, x_t[row].numpy()[kept])
        np.testing.assert_allclose(ours[row], want, atol=1e-5)


def test_a_fresh_denoiser_is_the_gaussian_optimum():
    """No linear estimate of the noise is better on Gaussian data: compare with least squares."""
    torch.manual_seed(0)
    net = Denoiser(6, 3).eval()
    net.covariance.copy_(covariance(6))
    t = torch.full((20_000,), net.step_of(0.5))
    x = torch.randn(20_000, 6) @ torch.linalg.cholesky(net.covariance).T
    e = torch.randn(20_000, 6)
    x_t = net.amplitude[t][:, None] * x + net.sigma[t][:, None] * e
    ours = (net(x_t, t, torch.ones(20_000, 3)) - e).square().mean()
    best = (x_t @ torch.linalg.lstsq(x_t, e).solution - e).square().mean()
    assert best <= ours < best * 1.002 and ours < 0.9


def test_masked_dimensions_neither_matter_nor_answer():
    torch.manual_seed(0)
    net = Denoiser(6, 3, dropout=0.0)
    torch.nn.init.normal_(net.outputs.weight)
    x, mask, t = torch.randn(4, 6), torch.tensor([[1.0, 0, 1]]).expand(4, 3), torch.tensor([3, 50, 400, 900])
    answer = net(x, t, mask)
    changed = x.clone()
    changed[:, 2:4] = 100.0
    assert torch.equal(net(changed, t, mask), answer)
    assert answer[:, 2:4].eq(0).all() and answer[:, :2].ne(0).all()


@pytest.mark.parametrize("noise", [0.1, 0.5, 0.9])
def test_step_of_is_the_first_step_to_reach_a_noise(noise):
    net = Denoiser(4, 2)
    step = net.step_of(noise)
    assert net.sigma[step - 1] < noise <= net.sigma[step]


def test_step_of_stays_in_range():
    assert Denoiser(4, 2).step_of(0.0) == 0 and Denoiser(4, 2, timesteps=10).step_of(2.0) == 9


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    net = Denoiser(6, 3).eval()
    torch.nn.init.normal_(net.outputs.weight)
    arguments = (torch.randn(4, 6), torch.tensor([3, 50, 400, 900]), torch.ones(4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        inside = net(*arguments)
    assert torch.equal(inside, net(*arguments))


def test_unknown_schedule():
    with pytest.raises(SagecacheError, match="did you mean 'cosine'"):
        Denoiser(4, 2, schedule="cosin")
