"""Cross-modal geometric consistency (CMGC): limbs of a predicted skeleton against cached depth and normals.

Two terms. The depth term measures limbs in 3-D (pixels along the image, gain times depth difference across
it) and compares the ratios of their lengths with those of labeled bodies. The normal term asks that the
surface along a limb is parallel to the limb's 3-D direction, as a cylinder's is. Both take keypoints in
target-map pixels and never move the maps: the modules at the end carry the student's keypoints back from
its view. Gradients reach the keypoints only; gain, maps and reference are evidence, not unknowns.

Legend: B instances, K joints, E limbs; depth (B, 1, H, W), growing away from the camera; normals
(B, 3, H, W), unit, n_z < 0; mask (B, 1, H, W) bool; edges (E, 2) long; weights (B, K) in [0, 1]: how much a
joint takes part, 0 for not at all; gain: `geometry.depth.gain_from_normals` of these maps, if known already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sagecache.errors import SagecacheError
from sagecache.geometry.depth import Gain, gain_from_normals, joint_depth, limb_length_3d, weighted_median
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import sample_maps
from sagecache.priors.frames import labels_in_view, student_keypoints
from sagecache.structures import TermOutput, UnlabeledBatch

MIN_LIMBS = 3  # of one limb every ratio fits, of two there is no telling which is wrong
MIN_BODIES = 5  # limbs seen on fewer labeled bodies have no reference
LOWEST_SPREAD = 0.05  # 5 %: no teacher is better, and few labels may agree by chance
HIGHEST_SPREAD = 0.3  # a limb that labeled bodies measure worse than this tells nothing
SLACK = 2.0  # spreads about the reference that cost nothing: 95 % of labeled limbs
HUBER = 0.3  # log units of excess at which the loss turns from square to linear
ALONG_LIMB = (0.25, 0.75, 5)  # from, to, points: the ends are joints, where surfaces bend
TOLERANCE = math.sin(math.radians(15))  # limbs are cones rather than cylinders


class LimbReference(NamedTuple):
    """Log lengths of limbs in units of the body's geometric mean limb: centre (E,) and spread (E,).

    The spread is 1.4826 times the median absolute deviation, infinite for a limb without a reference.
    """

    centre: Tensor
    spread: Tensor


# --- pure functions ----------------------------------------------------------------------------


@full_precision
def depth_residual(
    keypoints: Tensor,
    weights: Tensor,
    depth: Tensor,
    normals: Tensor,
    mask: Tensor,
    edges: Tensor,
    reference: LimbReference,
    gain: Gain | None = None,
) -> tuple[Tensor, Tensor]:
    """How far each limb's 3-D length ratio lies outside what labeled bodies show.

    A limb's residual is log length - centre, minus the weighted mean of that over the instance's kept
    limbs: free of the body's scale and of the depth map's scale and shift, whichever limbs are missing.
    SLACK spreads are free, the excess costs Huber's loss. Kept are limbs whose ends have weight and a
    depth (`geometry.depth.joint_depth`), whose reference spread is at most HIGHEST_SPREAD, in instances
    with a valid gain and at least MIN_LIMBS of them.

    keypoints (B, K, 2) in map pixels; the gradient passes through the positions along the image and through
    the depth read there. Returns loss and weight, (B, E) each.
    """
    log_length, weight = limb_log_lengths(keypoints, weights, depth, normals, mask, edges, gain)
    weight = weight * (reference.spread <= HIGHEST_SPREAD)
    weight = weight * ((weight > 0).sum(-1, keepdim=True) >= MIN_LIMBS)
    residual = _from_mean(log_length - reference.centre, weight)
    excess = (residual.abs() - SLACK * reference.spread.clamp(LOWEST_SPREAD, HIGHEST_SPREAD)).relu()
    return F.huber_loss(excess, torch.zeros_like(excess), reduction="none", delta=HUBER), weight


@full_precision
def normal_residual(
    keypoints: Tensor,
    weights: Tensor,
    depth: Tensor,
    normals: Tensor,
    mask: Tensor,
    edges: Tensor,
    gain: Gain | None = None,
) -> tuple[Tensor, Tensor]:
    """How far the surface along each limb is from parallel to the limb: relu(|n . l| - sin 15 degrees).

    n is the normal at the points ALONG_LIMB between the two joints, l the limb's 3-D direction
    (du, dv, gain ddepth), normalised. On a cylinder n . l = 0 wherever it is seen. The same with the 2-D
    direction would punish every limb that points towards the camera. Meant for arms and legs: torso, hands
    and head are no cylinders. Points off the mask drop out; a limb's loss is the mean over its other points
    and its weight carries their share.

    The gradient turns the limb: it passes through the positions and the depths of its ends, and not through
    where normals are read. On rendered bodies with one joint displaced by .1 / .25 / .5 of a limb, its mean
    cosine with the way back is .35 / .14 / .11; with the depths held fixed .09 / -.08 / -.13.
    Returns loss and weight, (B, E) each.
    """
    z, kept = _lift(keypoints, weights, depth, normals, mask, gain)
    first, second = edges[:, 0], edges[:, 1]
    joints = torch.cat([keypoints, z.unsqueeze(-1)], -1)  # (B, K, 3) px
    length = limb_length_3d(keypoints, z, edges)
    direction = (joints[:, second] - joints[:, first]) / length.unsqueeze(-1)  # (B, E, 3)
    found, on_mask = _normals_along(keypoints.detach(), normals, mask, edges)  # (B, E, P, 3), (B, E, P)
    across = (found * direction.unsqueeze(-2)).sum(-1).abs()
    excess = (across - TOLERANCE).relu() * on_mask
    loss = excess.sum(-1) / on_mask.sum(-1).clamp_min(1)
    share = on_mask.to(loss.dtype).mean(-1)
    return loss, kept[:, first] * kept[:, second] * share


@full_precision
def limb_log_lengths(
    keypoints: Tensor,
    weights: Tensor,
    depth: Tensor,
    normals: Tensor,
    mask: Tensor,
    edges: Tensor,
    gain: Gain | None = None,
) -> tuple[Tensor, Tensor]:
    """log of each limb's 3-D length in map pixels, and its weight (0 where it can't be measured), (B, E)."""
    z, kept = _lift(keypoints, weights, depth, normals, mask, gain)
    weight = kept[:, edges[:, 0]] * kept[:, edges[:, 1]]
    return limb_length_3d(keypoints, z, edges).log(), weight


def ratio_statistics(log_length: Tensor, weight: Tensor) -> LimbReference:
    """Robust centre and spread of log length ratios from tables of `limb_log_lengths`, (N, E) each.

    The tables are of labeled bodies: true keypoints on that split's cached maps. Labels are 2-D, so the 3-D
    lengths must come from depth, and they should come from the *same* teacher by the *same* function as in
    training: its biases (surface instead of joint centre, smoothed relief) then cancel, and the spread is
    the noise that the term will meet. Anatomical tables have neither. Give weight only to joints that are
    seen (COCO v = 2): at a hidden joint the map shows what hides it.

    Fits log_length = size of the body + centre of the limb in turn: a centre is the median over bodies, a
    size Huber's mean over the limbs that body has (a median of few limbs would coincide with one of them,
    and call that limb exact). The spread is then that of `depth_residual`'s own residuals, which are from
    the plain mean. The centres of limbs with a reference have mean zero; limbs of fewer than MIN_BODIES
    bodies get centre 0 and an infinite spread.
    """
    known = (weight > 0).sum(0) >= MIN_BODIES
    weight = weight * known
    centre = torch.zeros_like(log_length[0])
    size = weighted_median(log_length, weight).unsqueeze(-1)
    for _ in range(10):
        for _ in range(5):
            size = size + _mean((log_length - centre - size).clamp(-HUBER, HUBER), weight)
        centre = weighted_median((log_length - size).T, weight.T)
        centre = torch.where(known, centre - centre[known].mean(), 0)
    deviation = _from_mean(log_length - centre, weight).abs()
    spread = 1.4826 * weighted_median(deviation.T, weight.T)
    return LimbReference(centre, torch.where(known, spread, math.inf))


def _from_mean(ratio: Tensor, weight: Tensor) -> Tensor:
    return ratio - _mean(ratio, weight)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over limbs, (B, 1); 0 for an instance without any."""
    return (weight * values).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp_min(1e-6)


@full_precision
def _lift(
    keypoints: Tensor,
    weights: Tensor,
    depth: Tensor,
    normals: Tensor,
    mask: Tensor,
    gain: Gain | None,
) -> tuple[Tensor, Tensor]:
    """z (B, K) of the joints' surface in pixels, and weights (B, K) less the joints that can't be read."""
    if gain is None:
        with torch.no_grad():
            gain = gain_from_normals(depth, normals, mask)
    value, valid = joint_depth(depth, mask, keypoints)
    kept = weights.detach() * (valid & gain.valid.unsqueeze(-1))
    return value * gain.value.unsqueeze(-1), kept


@full_precision
def _normals_along(keypoints: Tensor, normals: Tensor, mask: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals (B, E, P, 3) at ALONG_LIMB, and whether all pixels read are on the mask (B, E, P)."""
    first, second = keypoints[:, edges[:, 0], None], keypoints[:, edges[:, 1], None]
    share = torch.linspace(*ALONG_LIMB, dtype=keypoints.dtype, device=keypoints.device).unsqueeze(-1)
    points = (first + share * (second - first)).flatten(1, 2)
    on_mask = sample_maps(mask.to(normals.dtype), points)[..., 0] > 0.999
    found = torch.where(on_mask.unsqueeze(-1), sample_maps(normals, points), 0)
    shape = (len(edges), ALONG_LIMB[2])
    return F.normalize(found, dim=-1).unflatten(1, shape), on_mask.unflatten(1, shape)


# --- terms -------------------------------------------------------------------------------------


class CMGCDepth(nn.Module):
    """`depth_residual` of the student's keypoints as a term.

    edges (E, 2) and reference (E,) belong together; flip_indices (K,) undo the channel order of mirrored
    views. The reference is part of the state: a resumed run keeps it.
    """

    uses_gain = True

    def __init__(
        self,
        edges: Sequence[Sequence[int]],
        flip_indices: Sequence[int],
        reference: LimbReference,
    ) -> None:
        super().__init__()
        self.register_buffer("edges", torch.as_tensor(edges).long(), persistent=False)
        self.register_buffer("flip_indices", torch.as_tensor(flip_indices).long(), persistent=False)
        self.register_buffer("centre", torch.as_tensor(reference.centre).float())
        self.register_buffer("spread", torch.as_tensor(reference.spread).float())
        if self.centre.shape != (len(self.edges),) or self.spread.shape != self.centre.shape:
            raise ValueError(
                f"{len(self.edges)} limbs need as many references, got {tuple(self.centre.shape)}"
            )

    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        keypoints, weights = carry_to_target(batch, self.flip_indices)
        reference = LimbReference(self.centre, self.spread)
        maps = _maps(batch)
        loss, weight = depth_residual(keypoints, weights, *maps, self.edges, reference, batch.gain)
        return _mean_over_limbs(loss, weight, weights, self.edges)


class CMGCNormal(nn.Module):
    """`normal_residual` of the student's keypoints as a term; edges (E, 2): arms and legs."""

    uses_gain = True

    def __init__(self, edges: Sequence[Sequence[int]], flip_indices: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("edges", torch.as_tensor(edges).long(), persistent=False)
        self.register_buffer("flip_indices", torch.as_tensor(flip_indices).long(), persistent=False)

    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        keypoints, weights = carry_to_target(batch, self.flip_indices)
        loss, weight = normal_residual(keypoints, weights, *_maps(batch), self.edges, batch.gain)
        return _mean_over_limbs(loss, weight, weights, self.edges)


def carry_to_target(batch: UnlabeledBatch, flip_indices: Tensor) -> tuple[Tensor, Tensor]:
    """The student's keypoints in target-map pixels, left and right as in the image, and joint weights.

    A joint takes part with the weight of its pseudo-label where that lies within the strong view.
    (B, K, 2) and (B, K).
    """
    keypoints = student_keypoints(batch, flip_indices, batch.target_from_image)
    return keypoints, batch.pseudo_labels.weights * labels_in_view(batch)


def _maps(batch: UnlabeledBatch) -> list[Tensor]:
    missing = [name for name in ("depth", "normal", "mask") if name not in batch.targets]
    if missing:
        raise SagecacheError(
            f"CMGC compares keypoints with cached {' and '.join(missing)}, and the batch has none",
            fix="Run sagecache precompute geo with a teacher of all three, or give the term weight 0",
        )
    return [batch.targets[name] for name in ("depth", "normal", "mask")]


def _mean_over_limbs(loss: Tensor, weight: Tensor, joint_weights: Tensor, edges: Tensor) -> TermOutput:
    """Weighted mean, and what was kept: limbs measured, and their share of those with two weighted ends."""
    wanted = (joint_weights[:, edges[:, 0]] * joint_weights[:, edges[:, 1]] > 0).sum()
    limbs = (weight > 0).sum()
    scalars = {"limbs": limbs.float(), "kept": limbs / wanted.clamp_min(1)}
    return TermOutput((weight * loss).sum() / weight.sum().clamp_min(1), scalars)
