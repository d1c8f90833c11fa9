"""Disparity, known up to scale and offset, brought to depth with the help of normals.

MiDaS, DPT and Depth-Anything give d = a / z + b with unknown a > 0 and b. Depth is 1 / (d - b) up to scale; b
decides how strongly near parts are stretched against far ones, and normals beside the disparity show that:
with the right b the climbs that they predict agree with the depth everywhere. Ranftl et al. 2022 (MiDaS).

Convention: maps (B, 1, H, W), depth grows away from the camera, as ``geometry.depth``; float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sagecache.geometry.depth import climb_pairs, weighted_median
from sagecache.geometry.precision import full_precision

# How far the offset lies below a body's smallest disparity, in spans of its disparities. The last is a camera
# so far away that -d itself is depth up to scale.
SPANS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 16.0, 64.0)
LIMIT = 1.1  # logarithm of a scale three times the median's
TAIL = 0.02  # share of a body's pixels that its span leaves out at either end


@full_precision
def depth_from_disparity(disparity: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Depth up to scale and offset (kind 'affine'), by that of SPANS with which the normals agree best.

    disparity (B, 1, H, W), growing towards the camera; normals (B, 3, H, W), unit, camera axes; mask
    (B, 1, H, W) of the body, bool or probability. Where normals say nothing the farthest camera is
    taken. NaN stays NaN. Returns (B, 1, H, W); over a body it is about as wide as its disparities.
    """
    body = mask > 0.5
    low, high = _span(disparity, body)
    span = (high - low).clamp_min(1e-6)
    share = ((disparity - low) / span).clamp(-0.25, 1.25)  # 0 at the far end of a body, 1 at the near one
    depths = torch.stack([(1 + s) * s / (share + s) * span for s in SPANS], 1)  # (B, S, 1, H, W)
    best = _contradiction(depths.nan_to_num(0.0), normals, body).argmin(1)
    return depths[torch.arange(len(depths), device=best.device), best]


def _contradiction(depths: Tensor, normals: Tensor, body: Tensor) -> Tensor:
    """How unlike the scales are that pairs of pixels give, for depths (B, S, 1, H, W): (B, S).

    A pair's scale is the climb that normals predict over the difference of depths. The mean, weighted by the
    climb, of how far its logarithm lies from the median's, at most LIMIT: steps between parts have no scale.
    """
    batch, count = depths.shape[:2]
    repeated = (value.repeat_interleave(count, 0) for value in (normals, body))
    climb, difference, usable = climb_pairs(depths.flatten(0, 1), *repeated)
    usable = usable & (climb * difference > 0)
    log_scale = torch.where(
        usable, (climb / torch.where(usable, difference, 1)).abs().clamp_min(1e-12).log(), 0
    )
    weight = torch.where(usable, climb.abs(), 0)
    median = weighted_median(log_scale, weight)
    spread = ((log_scale - median[:, None]).abs().clamp(max=LIMIT) * weight).sum(1) / weight.sum(1).clamp_min(
        1e-6
    )
    nothing = weight.sum(1) == 0
    spread = torch.where(nothing, LIMIT, spread).view(batch, count)
    spread[:, -1] -= 1e-6  # the answer where none is better
    return spread


def _span(disparity: Tensor, body: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, 1, 1) each: what all but TAIL of a body's disparities lie between; without a body, of all."""
    values = disparity.flatten(1)
    inside = body.flatten(1) & values.isfinite()
    inside = inside | (~inside.any(1, keepdim=True) & values.isfinite())
    ordered = torch.where(inside, values, torch.inf).sort(1).values  # a body's first
    last = (inside.sum(1, keepdim=True) - 1).clamp_min(0)
    ends = ((TAIL * last).long(), ((1 - TAIL) * last).long())
    low, high = (ordered.gather(1, end).view(-1, 1, 1, 1) for end in ends)
    return low, torch.where(high.isfinite(), high, low)
