"""Fit the diffusion prior on a labeled split's skeletons, and say honestly what it is worth.

Twenty skeletons or twenty thousand: augmented, held out in part, stopped when the held-out loss stops
falling, and reported by noise level beside the Gaussian of the same skeletons. Deterministic in the seed
(on one machine and thread count). Knows no files and no images.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagecache.errors import SagecacheError
from sagecache.priors.denoiser import Denoiser, gaussian_noise
from sagecache.priors.diffusion import MIN_JOINTS, DiffusionPrior, skeleton_frame
from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.measure import stacked_keypoints
from sagecache.strict import build, positive
from sagecache.structures import Instance

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

MIN_BODIES = 8
BUCKETS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0)  # s_t
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1)  # added to a covariance of trace D; the best on held-out is taken
MOMENT_SAMPLES, HELD_OUT_SAMPLES = 10_000, 1024
DROP_SHARE = 0.3  # of the samples lose joints; the rest are as labeled


@dataclass(frozen=True)
class FitConfig:
    """width, blocks, dropout, schedule, timesteps: the network. steps of batch_size with AdamW, cosine decay.

    rotation: degrees to each side; jitter: sd in units of the body's RMS size; drop_joints: share of joints
    hidden in DROP_SHARE of the samples. held_out: share of the bodies. patience: evaluations, one every
    evaluate_every steps, without a better held-out loss before it stops.
    """

    width: int = 128
    blocks: int = 3
    dropout: float = 0.1
    schedule: str = "cosine"
    timesteps: int = 1000
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 2e-3
    ema_decay: float = 0.999
    rotation: float = 30.0
    jitter: float = 0.01
    drop_joints: float = 0.1
    held_out: float = 0.2
    evaluate_every: int = 100
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "timesteps", "steps", "batch_size", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise SagecacheError(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("dropout", "ema_decay", "drop_joints", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise SagecacheError(f"{name} is {getattr(self, name)}, it must be in [0, 1)")
        positive("learning_rate", self.learning_rate)


def fit_from_instances(
    instances: Sequence[Instance],
    skeleton: Skeleton,
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Fit on the labeled instances and save the prior at path, which is returned. options: FitConfig's."""
    keypoints = _labeled(instances, skeleton)
    provenance = {"keypoints_sha256": labels_sha256(instances, skeleton), "count": len(keypoints)}
    config = fit_config(options or {}, seed)
    prior, report = fit(keypoints, skeleton, config, progress, provenance)
    if report["best_step"] == 0:
        logger.warning(
            "the prior knows no more of these %d bodies than their means and covariances", len(keypoints)
        )
    prior.save(path)
    return Path(path)


def fit_config(options: Mapping[str, Any], seed: int = 0) -> FitConfig:
    """Of a recipe's `prior` section and its seed. Raises SagecacheError for what FitConfig doesn't know."""
    if "seed" in options:
        raise SagecacheError("unknown key 'prior.seed'", file="recipe", fix="The recipe's own `seed` counts.")
    return build(FitConfig, {**options, "seed": seed}, "recipe", "prior")


def labels_sha256(instances: Sequence[Instance], skeleton: Skeleton) -> str:
    """Of the keypoints that a prior is fitted on: ``provenance['keypoints_sha256']`` of a fresh prior."""
    return hashlib.sha256(_labeled(instances, skeleton).tobytes()).hexdigest()


def _labeled(instances: Sequence[Instance], skeleton: Skeleton) -> np.ndarray:
    """(N, K, 3) float32, image pixels."""
    return stacked_keypoints(instances, skeleton).astype(np.float32)


def fit(
    keypoints: np.ndarray,
    skeleton: Skeleton,
    config: FitConfig | None = None,
    progress: Progress | None = None,
    provenance: dict | None = None,
) -> tuple[DiffusionPrior, dict]:
    """Train a prior; the global random state is left as it was.

    keypoints (N, K, 3): x, y, v in pixels of upright frames, v > 0 = labeled. progress(step, steps,
    message). Returns the frozen prior and its report (also saved with it): 'bodies' {fit, held_out,
    unusable}, 'best_step', 'steps', 'held_out' and 'gaussian' (eps-MSE over all steps), 'ridge', 'buckets'
    [{noise: [low, high], network, gaussian, samples}]. A value below 'gaussian' says that the prior knows
    more than means and covariances.
    Raises SagecacheError for another shape or fewer than MIN_BODIES usable bodies.
    """
    config = config or FitConfig()
    points, mask, unusable = _usable(keypoints, skeleton)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        order = torch.randperm(len(points))
        cut = min(max(2, round(config.held_out * len(points))), len(points) - 2)
        held, chosen = order[:cut], order[cut:]
        count = skeleton.num_keypoints
        network = {
            key: getattr(config, key) for key in ("width", "blocks", "dropout", "schedule", "timesteps")
        }
        prior = DiffusionPrior(skeleton, Denoiser(2 * count, count, **network))
        bodies = _Bodies(points[chosen], mask[chosen], skeleton, config)
        covariance = _set_moments(prior, bodies)
        plain = replace(config, jitter=0.0, drop_joints=0.0)
        test = _HeldOut(prior, _Bodies(points[held], mask[held], skeleton, plain))
        ridge = _choose_ridge(prior, test, covariance)
        best_step, steps = _train(prior, bodies, test, config, progress)
    report = {
        "bodies": {"fit": len(chosen), "held_out": len(held), "unusable": unusable},
        "best_step": best_step,
        "steps": steps,
        "ridge": ridge,
        **test.compare(prior),
    }
    prior.report, prior.provenance = report, {**(provenance or {}), "fit": asdict(config)}
    return prior.freeze(), report


def _usable(keypoints: np.ndarray, skeleton: Skeleton) -> tuple[Tensor, Tensor, int]:
    """Points (N, K, 2), mask (N, K) float32 of bodies with enough joints, and how many were left out."""
    keypoints = np.asarray(keypoints, dtype=np.float32)
    if keypoints.ndim != 3 or keypoints.shape[1:] != (skeleton.num_keypoints, 3):
        raise SagecacheError(f"keypoints {keypoints.shape} are not (N, {skeleton.num_keypoints}, 3)")
    seen = (keypoints[..., 2] > 0) & np.isfinite(keypoints).all(-1)
    extent = np.where(seen[..., None], keypoints[..., :2], np.nan)
    enough = seen.sum(1) >= MIN_JOINTS
    enough[enough] = (np.nanmax(extent[enough], 1) > np.nanmin(extent[enough], 1)).any(-1)
    if enough.sum() < MIN_BODIES:
        raise SagecacheError(
            f"{enough.sum()} of {len(keypoints)} bodies show {MIN_JOINTS} joints or more, "
            f"and the prior needs {MIN_BODIES}",
            fix="Label more images, or leave the diffusion prior out: semi.terms.diffusion.weight=0 "
            "semi.gate.teacher_b=none",
        )
    points = np.where(seen[..., None], keypoints[..., :2], 0)[enough]
    mask = seen[enough].astype(np.float32)
    return torch.from_numpy(points), torch.from_numpy(mask), int((~enough).sum())


@dataclass(frozen=True)
class _Bodies:
    """Labeled bodies from which augmented ones are drawn (global random state)."""

    points: Tensor
    mask: Tensor
    skeleton: Skeleton
    config: FitConfig

    def draw(self, count: int, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Mirrored half of the time (channels exchanged), turned, jittered, joints hidden.

        Returns points (count, K, 2) of RMS size about 1 and mask (count, K).
        """
        flip = torch.from_numpy(self.skeleton.flip_indices.copy())
        index = torch.randint(len(self.points), (count,))
        points, mask = self.points[index], self.mask[index]
        mirror = torch.rand(count) < 0.5
        points = torch.where(mirror[:, None, None], points[:, flip] * points.new_tensor([-1, 1]), points)
        mask = torch.where(mirror[:, None], mask[:, flip], mask)
        if self.config.drop_joints:
            hidden = torch.rand(count, mask.shape[1]) < self.config.drop_joints
            dropped = mask * ~(hidden & (torch.rand(count, 1) < DROP_SHARE))
            mask = torch.where(dropped.sum(1, keepdim=True) >= MIN_JOINTS, dropped, mask)
        centre, size = skeleton_frame(points, mask, centres)
        points = (points - centre[:, None]) / size[:, None, None]
        angle = (2 * torch.rand(count) - 1) * math.radians(self.config.rotation)
        cosine, sine = angle.cos(), angle.sin()
        turn = torch.stack([cosine, -sine, sine, cosine], -1).unflatten(-1, (2, 2))
        points = points @ turn.transpose(1, 2)
        return points + self.config.jitter * torch.randn(points.shape), mask


def _set_moments(prior: DiffusionPrior, bodies: _Bodies) -> Tensor:
    """Fill the prior's normalisation; returns the covariance (2K, 2K) of normalised bodies, PSD.

    Moments are those of augmented bodies, with joints hidden: hiding the hips moves the centre, and a
    covariance without that would be surprised by it (measured: held-out loss 1.2 instead of .75 at s = .15).
    """
    points, mask = bodies.draw(MOMENT_SAMPLES, prior.centres)
    x = prior.normalise(points, mask).unflatten(1, (-1, 2))
    count = mask.sum(0)[:, None].clamp_min(1)
    mean = x.sum(0) / count
    deviation = (((x - mean) * mask[..., None]).square().sum(0) / count).sqrt()
    known = bodies.mask.amax(0)
    known = torch.maximum(known, known[torch.from_numpy(bodies.skeleton.flip_indices.copy())])
    prior.mean.copy_(mean)
    prior.deviation.copy_(torch.where(deviation > 1e-3, deviation, 1))
    prior.known.copy_(known)
    x = prior.normalise(points, mask)
    wide = mask.repeat_interleave(2, 1)
    covariance = x.T @ x / (wide.T @ wide).clamp_min(1)
    values, vectors = torch.linalg.eigh(covariance)  # joints hidden in pairs can make it indefinite
    return (vectors * values.clamp_min(0)) @ vectors.T


class _HeldOut:
    """A fixed set of noisy held-out bodies."""

    def __init__(self, prior: DiffusionPrior, bodies: _Bodies) -> None:
        points, self.mask = bodies.draw(HELD_OUT_SAMPLES, prior.centres)
        self.mask = self.mask * prior.known
        steps = len(prior.denoiser.sigma)
        self.t = torch.linspace(0, steps - 1, HELD_OUT_SAMPLES).round().long()
        self.amplitude, self.sigma = prior.denoiser.amplitude[self.t], prior.denoiser.sigma[self.t]
        x = prior.normalise(points, self.mask)
        self.e = torch.randn(x.shape)
        self.x_t = self.amplitude[:, None] * x + self.sigma[:, None] * self.e
        self.wide = self.mask.repeat_interleave(2, 1)

    def errors(self, estimate: Tensor) -> Tensor:
        """Mean squared error of a noise estimate (n, 2K) by sample, (n,)."""
        return ((estimate - self.e).square() * self.wide).sum(1) / self.wide.sum(1)

    @torch.no_grad()
    def network(self, denoiser: Denoiser) -> Tensor:
        return self.errors(denoiser.eval()(self.x_t, self.t, self.mask))

    def gaussian(self, covariance: Tensor) -> Tensor:
        return self.errors(gaussian_noise(self.x_t, self.amplitude, self.sigma, self.wide, covariance))

    def compare(self, prior: DiffusionPrior) -> dict:
        network, gaussian = self.network(prior.denoiser), self.gaussian(prior.denoiser.covariance)
        buckets = []
        for low, high in zip(BUCKETS, BUCKETS[1:], strict=False):
            inside = (self.sigma >= low) & ((self.sigma < high) | (high == BUCKETS[-1]))
            if inside.any():
                pair = {"network": network[inside].mean().item(), "gaussian": gaussian[inside].mean().item()}
                buckets.append({"noise": [low, high], **pair, "samples": int(inside.sum())})
        return {"held_out": network.mean().item(), "gaussian": gaussian.mean().item(), "buckets": buckets}


def _choose_ridge(prior: DiffusionPrior, test: _HeldOut, covariance: Tensor) -> float:
    """Add the ridge that serves the held-out bodies best: the Gaussian to be beaten is no straw man."""
    losses = {}
    for ridge in RIDGES:
        losses[ridge] = test.gaussian(covariance + ridge * torch.eye(len(covariance))).mean().item()
    best = min(losses, key=losses.get)
    prior.denoiser.covariance.copy_(covariance + best * torch.eye(len(covariance)))
    return best


def _train(
    prior: DiffusionPrior, bodies: _Bodies, test: _HeldOut, config: FitConfig, progress: Progress | None
) -> tuple[int, int]:
    """Leave the best averaged weights in the prior. Returns their step and the steps run."""
    net = prior.denoiser
    average = copy.deepcopy(net).requires_grad_(False)
    best_loss, best_step = test.network(average).mean().item(), 0
    best = copy.deepcopy(average.state_dict())
    optimiser = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate(step, config.steps))
    for step in range(1, config.steps + 1):
        loss = _noise_loss(prior, bodies, config.batch_size)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            rate = 1 - min(config.ema_decay, step / (step + 9))  # a short run would not forget its start
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), rate)
        if step % config.evaluate_every and step != config.steps:
            continue
        held_out = test.network(average).mean().item()
        if held_out < best_loss:
            best_loss, best_step, best = held_out, step, copy.deepcopy(average.state_dict())
        if progress is not None:
            progress(step, config.steps, f"held-out {held_out:.3f}, best {best_loss:.3f}")
        if step - best_step >= config.patience * config.evaluate_every:
            break
    if progress is not None:
        why = "" if step == config.steps else f"stopped at step {step} of {config.steps}, "
        progress(step, step, f"{why}best at {best_step}: {best_loss:.3f}")
    net.load_state_dict(best)
    return best_step, step


def _noise_loss(prior: DiffusionPrior, bodies: _Bodies, count: int) -> Tensor:
    """E |e - e_hat|^2 over present dimensions (Ho et al. 2020, eq. 14)."""
    net = prior.denoiser.train()
    points, mask = bodies.draw(count, prior.centres)
    x, wide = prior.normalise(points, mask), mask.repeat_interleave(2, 1)
    t = torch.randint(len(net.sigma), (count,))
    e = torch.randn(x.shape)
    x_t = net.amplitude[t][:, None] * x + net.sigma[t][:, None] * e
    return ((net(x_t, t, mask) - e).square() * wide).sum() / wide.sum()


def _learning_rate(step: int, steps: int) -> float:
    """Factor: 100 steps of warm-up, then half a cosine down to 2 %."""
    return min(1.0, (step + 1) / 100) * (0.98 * (1 + math.cos(math.pi * step / steps)) / 2 + 0.02)
