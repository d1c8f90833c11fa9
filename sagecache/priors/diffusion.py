"""The diffusion developmental prior (DDP): what 2-D skeletons of labeled bodies look like.

A denoiser over normalised skeletons, used in three ways: `guidance_loss` pulls a student's pose towards its
denoised self (score distillation), `correct` moves a pseudo-label there, `implausibility` scores a pose.
It never writes a hard label. Float32 with autocast off; the network gets no gradient and passes none.
`diffusion_fit` makes it; knows no images and no teacher.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.precision import full_precision
from sagecache.priors.denoiser import Denoiser
from sagecache.priors.frames import labels_in_view, student_keypoints
from sagecache.skeleton.definition import Skeleton
from sagecache.structures import TermOutput, UnlabeledBatch

FORMAT, VERSION = "sagecache.diffusion_prior", 1
REMAKE = "Make it again: sagecache train ddp-prior"
WEIGHTINGS = ("displacement", "sds")
MIN_JOINTS = 4  # fewer say nothing about a pose


@torch.no_grad()
@full_precision
def skeleton_frame(keypoints: Tensor, mask: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and size of each body, as constants: no gradient leaks through them.

    The centre is the middle of the first pair of joints that are both present (hips, else shoulders), else
    the mean of those present. The size is the RMS distance of the present joints from it; unlike a
    maximum it does not hang on one joint.
    keypoints (B, K, 2), any frame; mask (B, K) of 0 and 1; centres (P, 2) joint indices in order of
    preference. Returns centre (B, 2) and size (B,), both in the keypoints' unit.
    """
    count = mask.sum(1).clamp_min(1)
    points = torch.where(mask[..., None] > 0, keypoints, 0)  # an absent joint may hold NaN
    centre = points.sum(1) / count[:, None]
    for pair in reversed(centres.unbind(0)):
        both = mask[:, pair].prod(1) > 0
        centre = torch.where(both[:, None], points[:, pair].mean(1), centre)
    distance = (points - centre[:, None]).square().sum(-1)
    size = ((distance * mask).sum(1) / count).sqrt()
    return centre, size.clamp_min(torch.finfo(size.dtype).eps)


class DiffusionPrior(nn.Module):
    """A denoiser with its skeleton and normalisation: centre on the hips, RMS size 1, z-score by dimension.

    Rotation is not normalised away: which way a body lies is part of what the labels say. Give keypoints in
    the image's (or the upright crop's) frame, not in that of a view turned further.
    Buffers: mean, deviation (K, 2); known (K,), 0 for joints that no body of the split shows, which the prior
    then ignores. provenance, report: JSON values that travel with the weights.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        denoiser: Denoiser,
        provenance: dict | None = None,
        report: dict | None = None,
    ) -> None:
        super().__init__()
        count = skeleton.num_keypoints
        self.skeleton, self.denoiser = skeleton, denoiser
        self.provenance, self.report = dict(provenance or {}), dict(report or {})
        self.frozen = False
        torso = skeleton.torso_joints  # shoulders, hips
        centres = np.empty((0, 2), np.int64) if torso is None else torso[::-1].copy()
        self.register_buffer("centres", torch.from_numpy(centres), persistent=False)
        self.register_buffer("mean", torch.zeros(count, 2))
        self.register_buffer("deviation", torch.ones(count, 2))
        self.register_buffer("known", torch.ones(count))

    def freeze(self) -> DiffusionPrior:
        """Eval mode for good, also inside a model that is put in training mode, and no gradients."""
        self.frozen = True
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> DiffusionPrior:
        return super().train(mode and not self.frozen)

    @full_precision
    def normalise(self, keypoints: Tensor, mask: Tensor) -> Tensor:
        """keypoints (B, K, 2), mask (B, K) of 0 and 1 -> x (B, 2K), sd about 1; absent joints are 0."""
        centre, size = skeleton_frame(keypoints, mask, self.centres)
        placed = (keypoints - centre[:, None]) / size[:, None, None]
        return torch.where(mask[..., None] > 0, (placed - self.mean) / self.deviation, 0).flatten(1)

    @full_precision
    def guidance_loss(
        self,
        keypoints: Tensor,
        weights: Tensor,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
        draws: int = 4,
        noise: tuple[float, float] = (0.1, 0.5),
        weighting: Literal["displacement", "sds"] = "displacement",
    ) -> Tensor:
        """Score distillation (DreamFusion; DPoser): k/2 |x - sg(x0)|^2, x0 the denoised x_t = a x + s e.

        Its gradient in x is k (s/a) (e_hat - e), without a pass back through the network. 'displacement':
        k = 1, the distance to the denoised pose. 'sds': k = a s, DreamFusion's w = s^2, which favours
        the noisier steps. `draws` noises come in pairs e, -e, which cancels e itself in the mean; t is
        uniform among the steps with s_t in `noise`: the error to be mended, in data sd. Larger noise pulls
        to the mean pose.

        keypoints (B, K, 2), pixels of any upright frame, carry the gradient; weights (B, K) in [0, 1]: how
        much the prior may pull (1 - confidence, so that evidence wins where the image is clear); mask (B, K):
        which joints exist at all, by default every one. Returns a 0-d mean over joints of weight > 0 in
        normalised units. Raises SagecacheError for an odd number of draws or another weighting.
        """
        if weighting not in WEIGHTINGS:
            raise SagecacheError(f"unknown weighting '{weighting}'", fix=nearest(weighting, WEIGHTINGS))
        mask = self._presence(keypoints, mask)
        x = self.normalise(keypoints, mask)
        clean, strength = self._denoised_draws(x.detach(), mask, generator, draws, noise)
        if weighting == "displacement":
            strength = torch.ones_like(strength)
        squared = (x - clean).square().unflatten(-1, (-1, 2)).sum(-1)  # (draws, B, K)
        each = (strength[..., None] * squared).mean(0) / 2
        weights = torch.where(mask > 0, weights.to(x.dtype), 0)
        return (weights * each).sum() / (weights > 0).sum().clamp_min(1)

    @torch.no_grad()
    def _denoised_draws(self, x, mask, generator, draws, noise) -> tuple[Tensor, Tensor]:
        """x0 (draws, B, 2K) and a s (draws, B)."""
        if draws < 2 or draws % 2:
            raise SagecacheError(f"draws come in pairs, got {draws}")
        pairs, batch = draws // 2, len(x)
        low, high = (self.denoiser.step_of(level) for level in noise)
        shape = (pairs, batch, x.shape[1])
        e = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        t = torch.randint(low, high + 1, (pairs, batch), generator=generator, device=x.device)
        e, t = torch.cat([e, -e]).flatten(0, 1), torch.cat([t, t]).flatten()
        clean = self._denoise(x.repeat(draws, 1), e, t, mask.repeat(draws, 1))[0]
        strength = self.denoiser.amplitude[t] * self.denoiser.sigma[t]
        return clean.view(draws, batch, -1), strength.view(draws, batch)

    def _denoise(self, x: Tensor, e: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and e_hat for x (B, 2K) with noise e added at steps t (B,)."""
        amplitude, sigma = self.denoiser.amplitude[t][:, None], self.denoiser.sigma[t][:, None]
        x_t = amplitude * x + sigma * e
        e_hat = self.denoiser(x_t, t, mask)
        return (x_t - sigma * e_hat) / amplitude, e_hat

    @torch.no_grad()
    @full_precision
    def correct(
        self,
        keypoints: Tensor,
        weights: Tensor,
        mask: Tensor | None = None,
        noise: float = 0.5,
        steps: int = 4,
    ) -> Tensor:
        """Denoise a pose: a few deterministic steps (DDIM) from the level at which its error is the noise.

        `noise` is s_t of that step: the pose counts as x plus an error of sd s_t / a_t (data sd; .5 assumes
        .58, about .29 of the RMS size). After each step a joint is drawn back to where it was by its trust:
        weight 1 stays put, 0 is free. Trust must tell good joints from bad ones: with all at 0 and errors
        well below that sd the pose gets worse.
        keypoints (B, K, 2), pixels of any upright frame; weights (B, K) in [0, 1]: trust, not pull, unlike
        in guidance_loss. Returns (B, K, 2) in the same pixels; absent joints are returned as they came.
        """
        mask = self._presence(keypoints, mask)
        trust = weights.to(keypoints.dtype).repeat_interleave(2, 1)
        given = self.normalise(keypoints, mask)
        start = self.denoiser.step_of(noise)
        levels = [round(start * (1 - i / steps)) for i in range(steps)]
        # as if the error were the noise of step `start`: x_t / a_t = x + (s_t / a_t) e
        x_t = self.denoiser.amplitude[start] * given
        for i, level in enumerate(levels):
            amplitude, sigma = self.denoiser.amplitude[level], self.denoiser.sigma[level]
            t = torch.full((len(given),), level, device=given.device)
            clean = (x_t - sigma * self.denoiser(x_t, t, mask)) / amplitude
            clean = torch.lerp(clean, given, trust)
            if i + 1 < steps:
                e_hat = (x_t - amplitude * clean) / sigma
                x_t = (
                    self.denoiser.amplitude[levels[i + 1]] * clean
                    + self.denoiser.sigma[levels[i + 1]] * e_hat
                )
        centre, size = skeleton_frame(keypoints, mask, self.centres)
        placed = clean.unflatten(1, (-1, 2)) * self.deviation + self.mean
        moved = placed * size[:, None, None] + centre[:, None]
        return torch.where(mask[..., None] > 0, moved, keypoints)

    @torch.no_grad()
    @full_precision
    def implausibility(
        self,
        keypoints: Tensor,
        mask: Tensor | None = None,
        draws: int = 16,
        noise: tuple[float, float] = (0.1, 0.5),
        seed: int = 0,
    ) -> Tensor:
        """Mean squared error of the noise estimate over present dimensions, by sample; higher is stranger.

        NaN for a pose of fewer than MIN_JOINTS joints.

        Every sample meets the same noises at the same steps (drawn from seed), so that poses are compared
        and not draws. keypoints (B, K, 2), upright frame -> (B,), about 1 at most for plausible poses.
        """
        mask = self._presence(keypoints, mask)
        x, wide = self.normalise(keypoints, mask), mask.repeat_interleave(2, 1)
        generator = torch.Generator().manual_seed(seed)
        low, high = (self.denoiser.step_of(level) for level in noise)
        total = x.new_zeros(len(x))
        for t in torch.linspace(low, high, draws // 2).long().tolist():
            e = torch.randn(x.shape[1], generator=generator).to(x)
            for sign in (1, -1):
                _, e_hat = self._denoise(x, sign * e, torch.full((len(x),), t, device=x.device), mask)
                total += ((e_hat - sign * e).square() * wide).sum(1) / wide.sum(1).clamp_min(1)
        return torch.where(mask.any(1), total / (2 * (draws // 2)), torch.nan)

    def _presence(self, keypoints: Tensor, mask: Tensor | None) -> Tensor:
        """(B, K) of 0 and 1: known joints that are finite and not masked, none in a pose of too few.

        One joint has no size: the gradient in its pixels would be beyond all bounds.
        """
        finite = keypoints.detach().isfinite().all(-1)
        present = finite if mask is None else finite & (mask > 0)
        present = present.to(keypoints.dtype) * self.known
        return present * (present.sum(1, keepdim=True) >= MIN_JOINTS)

    def save(self, path: str | Path) -> None:
        """Write safetensors with everything needed to use it; whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "skeleton": self.skeleton.as_dict(),
            "network": self.denoiser.config,
            "normalisation": "centre: mid-hip | mid-shoulder | mean; size: RMS; z-score by dimension",
            "provenance": self.provenance,
            "report": self.report,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        temporary = path.with_name(f".{path.name}.partial")
        # through bytes, so that a folder that can't be written is an OSError that names it
        temporary.write_bytes(save(tensors, {"sagecache": json.dumps(about, sort_keys=True)}))
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path, skeleton: Skeleton | None = None) -> DiffusionPrior:
        """Read what `save` wrote, frozen. Raises SagecacheError for a missing, foreign or damaged file,
        another version, or, where skeleton is given, a prior of another skeleton.
        """
        about, tensors = _read(Path(path))
        try:
            written = about["skeleton"]
            fields = (written[key] for key in ("name", "names", "edges", "flip_indices", "sigmas"))
            ours = Skeleton(*fields)
            count = ours.num_keypoints
            prior = cls(
                ours, Denoiser(2 * count, count, **about["network"]), about["provenance"], about["report"]
            )
            prior.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, SagecacheError) as error:
            raise SagecacheError(f"is damaged: {error}", file=path, fix=REMAKE) from None
        if skeleton is not None and (ours.names, *ours.flip_indices) != (
            skeleton.names,
            *skeleton.flip_indices,
        ):
            raise SagecacheError(
                f"is a prior of skeleton '{ours.name}' ({count} joints), not of '{skeleton.name}' "
                f"({skeleton.num_keypoints} joints)",
                file=path,
                fix=REMAKE,
            )
        return prior.freeze()


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    if not path.is_file():
        raise SagecacheError(
            "the diffusion prior is missing", file=path, fix="Make it: sagecache train ddp-prior"
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("sagecache", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise SagecacheError(f"is not readable: {error}", file=path, fix=REMAKE) from None
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        raise SagecacheError(f"is not a {FORMAT} of version {VERSION}", file=path, fix=REMAKE)
    return about, tensors


class DiffusionGuidance(nn.Module):
    """Term: guidance_loss on the student's pose, carried back to the image's frame and naming.

    The pull is 1 - the teacher's confidence, joint by joint. Joints that the teacher places outside the
    strong view count as absent: the student can't see them.
    """

    def __init__(
        self,
        prior: DiffusionPrior,
        draws: int = 4,
        noise: tuple[float, float] = (0.1, 0.5),
        weighting: str = "displacement",
    ) -> None:
        super().__init__()
        low, high = noise
        if not 0 < low <= high < 1:
            raise SagecacheError(
                f"noise is {tuple(noise)}", fix="Give the range of s_t, low <= high, both within (0, 1)."
            )
        if draws < 2 or draws % 2:
            raise SagecacheError(f"draws is {draws}", fix="Give an even number: noises come in pairs.")
        if weighting not in WEIGHTINGS:
            raise SagecacheError(f"unknown weighting '{weighting}'", fix=nearest(weighting, WEIGHTINGS))
        self.prior = prior.freeze()
        self.draws, self.noise, self.weighting = draws, tuple(noise), weighting
        flip = torch.from_numpy(prior.skeleton.flip_indices.copy())
        self.register_buffer("flip_indices", flip, persistent=False)

    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        points, seen = student_keypoints(batch, self.flip_indices), labels_in_view(batch)
        pull = 1 - batch.pseudo_labels.confidence
        loss = self.prior.guidance_loss(
            points, pull, mask=seen, draws=self.draws, noise=self.noise, weighting=self.weighting
        )
        return TermOutput(loss, {"pull": pull.mean(), "seen_share": seen.float().mean()})
