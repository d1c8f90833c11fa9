"""The network of the diffusion prior: noise schedules, the Gaussian optimum, and a residual MLP on top.

Works on flat vectors in normalised units with a mask; knows nothing of joints, images or training.
"""

from __future__ import annotations

import bisect
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.precision import full_precision


def cosine_schedule(steps: int) -> tuple[Tensor, Tensor]:
    """a_t and s_t with x_t = a_t x + s_t e, t = 1 … steps at index t - 1; Nichol & Dhariwal 2021, eq. 17."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
    return _amplitudes(beta)


def linear_schedule(steps: int) -> tuple[Tensor, Tensor]:
    """beta from 1e-4 to .02 at 1000 steps; Ho et al. 2020. Shapes as in `cosine_schedule`."""
    return _amplitudes(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps))


def _amplitudes(beta: Tensor) -> tuple[Tensor, Tensor]:
    kept = torch.cumprod(1 - beta.clamp(max=0.999), 0)
    return kept.sqrt().float(), (1 - kept).sqrt().float()


SCHEDULES = {"cosine": cosine_schedule, "linear": linear_schedule}


@full_precision
def gaussian_noise(x_t: Tensor, amplitude: Tensor, sigma: Tensor, mask: Tensor, covariance: Tensor) -> Tensor:
    """E[e | x_t] for x ~ N(0, C): s (a^2 C + s^2 I)^-1 x_t over the masked-in dimensions (Wiener filter).

    No network can beat it in mean squared error where the data are Gaussian.
    x_t, mask (B, D); amplitude, sigma (B,); covariance C (D, D), positive definite. Returns (B, D), 0 where
    mask is 0.
    """
    both = mask[:, :, None] * mask[:, None, :]
    variance = sigma.square()[:, None, None] * torch.eye(x_t.shape[1], device=x_t.device, dtype=x_t.dtype)
    total = amplitude.square()[:, None, None] * covariance * both + variance
    factor, _ = torch.linalg.cholesky_ex(total)  # unlike cholesky it does not look, so nothing syncs
    solved = torch.cholesky_solve((x_t * mask).unsqueeze(-1), factor).squeeze(-1)
    return sigma[:, None] * solved * mask


class Denoiser(nn.Module):
    """Noise estimate = Gaussian optimum + a_t * MLP(x_t, t, mask).

    The MLP learns only what a Gaussian can't say and starts at zero, so that twenty skeletons can't make the
    whole worse than their covariance; the factor a_t makes it fade where x_t is pure noise.

    D = dimensions; masks come by groups (joints) of D / groups dimensions each. Buffers: covariance (D, D).
    Raises SagecacheError for an unknown schedule.
    """

    def __init__(
        self,
        dimensions: int,
        groups: int,
        width: int = 128,
        blocks: int = 3,
        dropout: float = 0.1,
        schedule: str = "cosine",
        timesteps: int = 1000,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise SagecacheError(f"unknown schedule '{schedule}'", fix=nearest(schedule, SCHEDULES))
        self.config = dict(
            width=width, blocks=blocks, dropout=dropout, schedule=schedule, timesteps=timesteps
        )
        amplitude, sigma = SCHEDULES[schedule](timesteps)
        self._noise_levels = sigma.tolist()  # on the host, so that step_of need not wait for the device
        self.register_buffer("amplitude", amplitude, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)
        self.register_buffer("covariance", torch.eye(dimensions))
        self.repeat = dimensions // groups
        self.inputs = nn.Linear(dimensions + groups, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.Linear(width, dimensions)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    @full_precision
    def forward(self, x_t: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        """x_t (B, D), t (B,) indices in [0, timesteps), mask (B, groups) of 0 and 1 -> noise (B, D)."""
        wide = mask.repeat_interleave(self.repeat, 1)
        amplitude, sigma = self.amplitude[t], self.sigma[t]
        x_t = x_t * wide
        time = self.time(_time_features(t))
        hidden = self.inputs(torch.cat([x_t, mask], 1))
        for block in self.blocks:
            hidden = block(hidden, time)
        residual = self.outputs(self.norm(hidden)) * wide
        return gaussian_noise(x_t, amplitude, sigma, wide, self.covariance) + amplitude[:, None] * residual

    def step_of(self, noise: float) -> int:
        """The first index t whose s_t reaches this noise (in units in which the data have sd 1)."""
        return min(bisect.bisect_left(self._noise_levels, noise), len(self._noise_levels) - 1)


TIME_FEATURES = 128


class Block(nn.Module):
    """Residual MLP block: layer norm, linear, time added, SiLU, dropout, linear (starts as identity)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.time = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        inner = F.silu(self.first(self.norm(hidden)) + self.time(time))
        return hidden + self.second(self.dropout(inner))


def _time_features(t: Tensor) -> Tensor:
    """Sinusoids of the step index, (B,) -> (B, TIME_FEATURES); Vaswani et al. 2017."""
    half = TIME_FEATURES // 2
    frequency = torch.exp(torch.arange(half, device=t.device) * (-math.log(1e4) / half))
    angle = t[:, None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)
