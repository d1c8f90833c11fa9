"""Student against teacher: divergences of heatmaps, and the term that puts the target in the strong view.

The pure losses take maps and weights; the term `Consistency` takes one UnlabeledBatch. Targets never carry a
gradient. Everything runs in float32 with autocast off, because sums over thousands of pixels of bfloat16
logarithms can come out negative.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.affine import is_mirrored, swap_mirrored, transform_points
from sagecache.geometry.distortion import bent_in_view_mass, local_area, warp_bent_heatmaps
from sagecache.geometry.heatmap import MIN_IN_VIEW, gaussian, in_view_mass, log_probability
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import warp_heatmaps
from sagecache.geometry.strong_view import points_on_map
from sagecache.structures import TermOutput, UnlabeledBatch

LOSSES = ("js", "kl", "mse")
TARGETS = ("heatmap", "keypoints")
NORMALISE = ("all", "kept")


@full_precision
def consistency_loss(
    student_heatmaps: Tensor,
    kind: str,
    target_probability: Tensor,
    weights: Tensor,
    loss: Literal["kl", "js", "mse"] = "kl",
    temperature: float = 1.0,
    sigma: float = 2.0,
    normalise: Literal["kept", "all"] = "kept",
    log_q: Tensor | None = None,
) -> Tensor:
    """Sum of weights * divergence over joints, divided by the count of kept joints (MATHS 1).

    student_heatmaps (B, K, h, w): raw output of this kind ('logits' | 'heatmap'), carries the gradient.
    target_probability (B, K, h, w): each kept map sums to one. weights (B, K) >= 0; 0 drops a joint.

    loss: 'kl' KL(target || student), the cross-entropy less the target's entropy; 'js' Jensen-Shannon,
    bounded by ln 2; 'mse' mean squared difference of maps of ideal peak 1, see `mse`.
    temperature: kl and js compare p^(1/T) / Z and multiply by T^2 (Hinton et al. 2015). sigma: mse's scale.
    normalise: 'kept' divides by the number of joints of weight > 0, so that a joint pulls equally however
    many were dropped; 'all' divides by B * K, so that a batch with few kept joints pulls less, which acts
    as a ramp-up while the teacher is unsure. A down-weight is not divided away by either.
    log_q (B, K, h, w): `log_probability` of student_heatmaps, from who has it already.
    Returns a 0-d tensor >= 0; 0 when nothing is kept.
    """
    if loss == "mse":
        each = mse(student_heatmaps, kind, target_probability, sigma)
    else:
        log_q = (log_probability(student_heatmaps, kind) if log_q is None else log_q).flatten(2)
        target = target_probability.detach().flatten(2)
        if temperature != 1:
            log_q = (log_q / temperature).log_softmax(-1)
            target = _tempered(target, temperature)
        each = temperature**2 * (kl if loss == "kl" else js)(log_q, target)
    count = weights.numel() if normalise == "all" else (weights > 0).sum().clamp_min(1)
    return (weights * each).sum() / count


def kl(log_q: Tensor, p: Tensor) -> Tensor:
    """KL(p || q) over the last axis: log_q log-probabilities, p probabilities. (..., n) -> (...), >= 0.

    Clamped at 0: rounding leaves -1e-7 where p = q, and there the gradient is zero anyway.
    """
    return (p * (_log(p) - log_q)).sum(-1).clamp_min(0)


def js(log_q: Tensor, p: Tensor) -> Tensor:
    """Jensen-Shannon divergence (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2; in [0, ln 2]."""
    q = log_q.exp()
    log_m = _log((p + q) / 2)
    both = p * (_log(p) - log_m) + q * (log_q - log_m)
    return (both.sum(-1) / 2).clamp_min(0)


def _log(p: Tensor) -> Tensor:
    """Finite at 0, where p log p is 0 all the same (torch.xlogy does that too, three times as slowly)."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


@full_precision
def mse(student_heatmaps: Tensor, kind: str, target_probability: Tensor, sigma: float) -> Tensor:
    """Mean squared difference over pixels of maps whose ideal peak is 1, (B, K): mmpose's KeypointMSELoss.

    A Gaussian that sums to one is multiplied by 2 pi sigma^2. 'heatmap' compares the raw output, negative
    values included; 'logits' compares the student's probabilities at the same scale. Collapse to an empty
    map is a near-minimum of this loss (Xie et al. 2021): watch `student_peak`.
    """
    peak = 2 * math.pi * sigma**2
    student = student_heatmaps if kind == "heatmap" else log_probability(student_heatmaps, kind).exp() * peak
    return (student - target_probability.detach() * peak).square().flatten(2).mean(-1)


def _tempered(p: Tensor, temperature: float) -> Tensor:
    powered = p.pow(1 / temperature)
    return powered / powered.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)


class Consistency(nn.Module):
    """Term: the student on the strong view against the teacher's pseudo-label, brought there.

    target 'keypoints' (hard): the decoded pose drawn anew as Gaussians of this sigma, as supervised training
    draws labels. 'heatmap': the teacher's maps, warped to the strong view and renormalised; joints that lose
    half of their mass are dropped. Samples that the gate gave to teacher B are always drawn from the
    corrected pose with soft_sigma (default 2 sigma), and their weights are lower: never a hard label.
    teacher_b False: no gate gives B any, and nothing is drawn for it.
    loss, temperature, normalise: see `consistency_loss`. sigma in heatmap pixels, flip_indices (K,).
    """

    def __init__(
        self,
        flip_indices: Tensor,
        sigma: float,
        loss: str = "kl",
        target: str = "keypoints",
        soft_sigma: float | None = None,
        temperature: float = 1.0,
        normalise: str = "kept",
        teacher_b: bool = True,
    ) -> None:
        super().__init__()
        for key, value, known in (("loss", loss, LOSSES), ("target", target, TARGETS)):
            _check(key, value, known)
        _check("normalise", normalise, NORMALISE)
        if temperature <= 0 or (loss == "mse" and temperature != 1):
            raise SagecacheError(
                f"temperature {temperature} with loss '{loss}': kl and js take T > 0, mse none"
            )
        if soft_sigma is not None and not 0 < soft_sigma < math.inf:
            raise SagecacheError(f"soft_sigma is {soft_sigma}, it must be positive", fix="None takes 2 sigma")
        self.loss, self.target, self.normalise = loss, target, normalise
        self.sigma, self.temperature, self.teacher_b = sigma, temperature, teacher_b
        self.soft_sigma = 2 * sigma if soft_sigma is None else soft_sigma
        self.register_buffer("flip_indices", torch.as_tensor(flip_indices), persistent=False)

    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        target, weights = self.build_target(batch)
        heatmaps, kind = batch.student_heatmaps, batch.heatmap_kind
        log_q = log_probability(heatmaps, kind)
        loss = consistency_loss(
            heatmaps, kind, target, weights, self.loss, self.temperature, self.sigma, self.normalise, log_q
        )
        with torch.no_grad():
            peak = log_q.flatten(2).amax(-1).exp() * (2 * math.pi * self.sigma**2)
            scalars = {
                "kept_share": (weights > 0).float().mean(),
                "confidence": batch.pseudo_labels.confidence.mean(),
                "student_peak": peak.mean(),
            }
        return TermOutput(loss, scalars)

    @torch.no_grad()
    def build_target(self, batch: UnlabeledBatch) -> tuple[Tensor, Tensor]:
        """Target maps (B, K, h, w) in the strong view, and weights (B, K) with out-of-view joints at 0.

        Channels of a mirrored strong view are exchanged, weights as well: the student sees a mirrored body.
        """
        labels, mirrored = batch.pseudo_labels, is_mirrored(batch.strong_from_image)

        def renamed(values: Tensor) -> Tensor:
            return swap_mirrored(values, mirrored, self.flip_indices)

        if self.target == "keypoints":  # points are exchanged for a thousandth of what maps would cost
            target, in_view = draw_in_view(batch, renamed(labels.keypoints), self.sigma)
        else:
            target, in_view = map(renamed, self._warped(batch))
        if self.teacher_b:
            soft, soft_in_view = draw_in_view(batch, renamed(labels.corrected), self.soft_sigma)
            use_a = labels.teacher_a[:, None]
            target = torch.where(use_a[..., None, None], target, soft)
            in_view = torch.where(use_a, in_view, soft_in_view)
        total = target.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
        return target.div_(total), renamed(labels.weights) * in_view

    def _warped(self, batch: UnlabeledBatch) -> tuple[Tensor, Tensor]:
        """The teacher's maps (B, K, h, w), not yet normalised, and in view (B, K) bool; channels as in the
        image.
        """
        maps, matrix = batch.pseudo_labels.probability, batch.student_from_teacher
        if batch.distortion is None:
            warped = warp_heatmaps(maps, matrix)
            return warped, in_view_mass(warped, matrix) >= MIN_IN_VIEW
        forward, inverse = batch.distortion
        warped = warp_bent_heatmaps(maps, matrix, inverse, batch.heatmap_from_strong, batch.strong_size)
        points = transform_points(batch.strong_from_image, batch.pseudo_labels.keypoints)
        area = local_area(points, forward, batch.strong_size)
        return warped, bent_in_view_mass(warped, matrix, area) >= MIN_IN_VIEW


def draw_in_view(batch: UnlabeledBatch, keypoints: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Gaussians (B, K, h, w) at keypoints (B, K, 2) of the image, in the strong view; in view (B, K) bool."""
    points, in_view = points_on_map(batch, keypoints)
    height, width = batch.student_heatmaps.shape[-2:]
    return gaussian(points, (width, height), sigma), in_view


def _check(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SagecacheError(
            f"unknown {key} '{value}' of the consistency term", fix=nearest(str(value), known)
        )
