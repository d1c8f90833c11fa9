"""Disparity, known up to scale and offset, brought to depth with the help of normals.

MiDaS, DPT and Depth-Anything give d = a / z + b with unknown a > 0 and b. Depth is 1 / (d - b) up to scale; b
decides how strongly near parts are stretched against far ones, and normals beside the disparity show that:
with the right b the climbs that they predict agree with the depth everywhere. Ranftl et al. 2022 (MiDaS).

Convention: maps (B, 1, H, W), depth grows away from the camera, as ``geometry.depth``; float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sagecache.geometry.depth import gain_from_normals
from sagecache.geometry.precision import full_precision

# How far the offset lies below a body's smallest disparity, in spans of its disparities. The last is a camera
# so far away that -d itself is depth up to scale.
SPANS = (0.5, 1.0, 2.0, 4.0, 8.0, 64.0)
TAIL = 0.02  # share of a body's pixels that its span leaves out at either end


@full_precision
def depth_from_disparity(disparity: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Depth up to scale and offset (kind 'affine'), by that of SPANS with which the normals agree best.

    disparity (B, 1, H, W), growing towards the camera; normals (B, 3, H, W), unit, camera axes; mask
    (B, 1, H, W) of the body, bool or probability. Where no offset has a valid gain the farthest camera is
    taken. NaN stays NaN. Returns (B, 1, H, W); over a body it is about as wide as its disparities.
    """
    body = mask > 0.5
    low, high = _span(disparity, body)
    span = (high - low).clamp_min(1e-6)
    share = ((disparity - low) / span).clamp(-0.25, 1.25)  # 0 at the far end of a body, 1 at the near one
    depths = torch.stack([(1 + s) * s / (share + s) * span for s in SPANS], 1)  # (B, S, 1, H, W)
    batch, count = depths.shape[:2]
    flat = depths.flatten(0, 1)
    repeated = (value.repeat_interleave(count, 0) for value in (normals, body))
    gain = gain_from_normals(flat.nan_to_num(0.0), *repeated)
    agreement = torch.where(gain.valid, gain.agreement, -1.0).view(batch, count)
    agreement[:, -1] += 1e-6  # the answer where none is valid
    best = agreement.argmax(1)
    return depths[torch.arange(batch, device=best.device), best]


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
