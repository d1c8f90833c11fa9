"""How sure a probability map is of its joint: expected OKS, and visibility from peak and area.

Convention of `geometry.heatmap`: maps (B, K, H, W) that sum to one, heatmap pixels, sigma that of the codec's
Gaussian. No gradient is meant to pass. Float32 with autocast off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sagecache.geometry.precision import full_precision

# Least width of the kernel that a map is read with, pixels: a narrower one falls between the grid's points.
NARROWEST = 1.0


@torch.no_grad()
@full_precision
def expected_oks(prob: Tensor, keypoints: Tensor, scale: Tensor, sigmas: Tensor, sigma: float) -> Tensor:
    """The OKS that a joint would get on average if its map were the truth's distribution. (B, K) in [0, 1].

    E = sum_x q(x) exp(-|x - xhat|^2 / (2 r^2)), r = 2 sigma_k s (COCO's kernel; Gu et al. 2024 ask for size
    in a confidence in the same spirit). A map p is the distribution q of the joint blurred by the codec's
    Gaussian, and q alone counts: a perfect map scores 1. Since a Gaussian of variance sigma^2 blurring one of
    variance r^2 - sigma^2 gives one of r^2, exactly

        E = r^2 / (r^2 - sigma^2) sum_x p(x) exp(-|x - xhat|^2 / (2 (r^2 - sigma^2)))

    for every q, an isotropic Gaussian's 1 / (1 + var / r^2) among them. Where r is hardly larger than sigma
    (eyes of a small body) the map can't tell: the kernel keeps NARROWEST, which stands for a larger r. A map
    sharper than the codec's Gaussian is read as 1.

    prob (B, K, H, W); keypoints (B, K, 2): xhat, decoded from these maps; scale (B,): s, square root of the
    person's area, heatmap pixels; sigmas (K,): OKS constants.
    """
    radius = 2 * sigmas * scale.unsqueeze(-1)  # (B, K)
    variance = (radius.square() - sigma**2).clamp_min(NARROWEST**2)
    height, width = prob.shape[-2:]
    x = torch.arange(width, device=prob.device, dtype=prob.dtype)
    y = torch.arange(height, device=prob.device, dtype=prob.dtype)
    along_x, along_y = (
        torch.exp(-(axis - centre.unsqueeze(-1)).square() / (2 * variance.unsqueeze(-1)))
        for axis, centre in ((x, keypoints[..., 0]), (y, keypoints[..., 1]))
    )  # (B, K, W), (B, K, H)
    # the kernel is separable; summing over rows first reads the maps in their order, the other way round
    # costs eight times as much on a CPU
    columns = (along_y.unsqueeze(-2) @ prob).squeeze(-2)  # (B, K, W)
    return ((columns * along_x).sum(-1) * (1 + sigma**2 / variance)).clamp(max=1)


@torch.no_grad()
@full_precision
def visibility(prob: Tensor, sigma: float) -> Tensor:
    """How much of a map stands in one peak of the codec's size: sqrt(peak * area), (B, K) in [0, 1].

    peak = min(1, 2 pi sigma^2 max p), the confidence of `heatmap.decode`; area = min(1, 4 pi sigma^2
    sum p^2), the perfect map's effective area over this one's. Each is the share of one mode among equal
    ones, and sigma^2 / width^2 of a wider Gaussian, so that their geometric mean keeps the confidence's
    scale; they err apart. The peak falls by up to exp(-1 / (4 sigma^2)) between the grid's points and is
    full for a spike that holds little mass; the area does neither, and sees what the rest of the map does.
    """
    flat = prob.flatten(2)
    peak = (flat.amax(-1) * (2 * math.pi * sigma**2)).clamp(max=1)
    area = (torch.linalg.vector_norm(flat, dim=-1).square() * (4 * math.pi * sigma**2)).clamp(max=1)
    return (peak * area).sqrt()
