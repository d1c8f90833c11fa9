"""Stored codes -> float maps, in torch, after collation: the loader ships bytes and the device decodes.

The counterpart of `sagecache.store.codec.decode_*`, which does the same for one instance in numpy; the
store's attributes hold both formulas.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def dequantise(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Decode a batch of stored targets; fields that the store lacks are absent from the result.

    raw: 'depth' (B, H, W) uint16 with 'depth_range' (B, 2) float32 (lo, step), 'normal' (B, 2, H, W) uint8,
    'mask' (B, H, W) bool; from a lossless store 'depth' (B, H, W) and 'normal' (B, 3, H, W) float32, NaN
    where there is none. Other keys are ignored.
    Returns 'depth' (B, 1, H, W) float32, 0 where there is none; 'normal' (B, 3, H, W) float32, unit,
    camera frame (x right, y down, z away, nz < 0 towards the camera), 0 off the mask; 'mask' (B, 1, H, W)
    bool: on the instance and with a depth. A store without a mask counts each pixel with a depth; a failed
    row is all zeros and so has an empty mask. Empty where raw has no field.
    """
    decoded, valid = {}, []
    if "mask" in raw:
        valid.append(raw["mask"])
    if "depth" in raw:
        depth, there = _depth(raw)
        decoded["depth"] = depth.unsqueeze(1)
        valid.append(there)
    if "normal" in raw and not valid:
        valid.append(~raw["normal"][:, 0].isnan())  # bytes never are
    if valid:
        decoded["mask"] = functools.reduce(torch.logical_and, valid).unsqueeze(1)  # (B, 1, H, W)
    if "normal" in raw:
        decoded["normal"] = _normal(raw["normal"], decoded["mask"])
    return decoded


def _depth(raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Depth (B, H, W), 0 where there is none, and where there is: lo + (level - 1) * step for level > 0."""
    if raw["depth"].is_floating_point():
        there = ~raw["depth"].isnan()
        return torch.where(there, raw["depth"], 0), there
    levels = raw["depth"].to(torch.float32)  # torch has few operators for uint16: convert first
    low, step = raw["depth_range"].float()[:, :, None, None].unbind(1)
    return torch.where(levels > 0, low + (levels - 1) * step, 0), levels > 0


def _normal(codes: Tensor, mask: Tensor) -> Tensor:
    """Octahedral codes (B, 2, H, W) uint8 -> unit vectors (B, 3, H, W), looked up: there are 65,536 of them.

    Unit vectors (B, 3, H, W) float32 of a lossless store stay what they are. 0 off the mask (B, 1, H, W).
    """
    if codes.is_floating_point():
        return torch.where(mask, codes, 0)
    place = codes[:, 0].int().mul_(256).add_(codes[:, 1]).masked_fill_(~mask[:, 0], 65536)
    # index_select: on CPUs a dozen times as fast as indexing
    axes = [axis.index_select(0, place.flatten()).view_as(place) for axis in _directions(codes.device)]
    return torch.stack(axes, dim=1)


@functools.lru_cache(maxsize=8)
def _directions(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and z (65537,) of every code, at u * 256 + v, and 0 behind them; (128, 128) faces the camera.

    Cigolle et al., "A Survey of Efficient Representations for Independent Unit Vectors", JCGT 2014, with
    the folded hemisphere turned away from the camera.
    """
    with torch.inference_mode(False), torch.no_grad():  # kept: what asks first must not decide what it is
        return tuple(F.pad(_octahedron(device).flatten(1), (0, 1)))


def _octahedron(device: torch.device) -> Tensor:
    """(3, 256, 256): the direction of the code (u, v)."""
    codes = torch.arange(256, dtype=torch.float32, device=device)
    plane = (torch.stack(torch.meshgrid(codes, codes, indexing="ij")) - 128) / 127
    towards = 1 - plane.abs().sum(dim=0, keepdim=True)
    fold = (-towards).clamp(min=0)
    plane = plane - torch.where(plane >= 0, fold, -fold)  # sign(0) = 1, as in the codec
    vectors = torch.cat([plane, -towards])  # |x| + |y| + |z| = 1: never short
    return vectors / vectors.norm(dim=0, keepdim=True)
