"""Is a pseudo-label's left perhaps its right? Detects it from the maps, and silences; it never exchanges.

A joint of a pair can be mistaken for its mirror partner. The maps tell how nearly that happened: the margin
compares what a channel has at its own joint with what it has at the partner's. Pairs of one body err together
(front taken for back), so the margin is pooled over the whole body before anything is dropped.

Measured on the demo's 1,695 unlabeled bodies (docs/sage-pose.md): exchanging a pair or limb that contradicts
its body, or whose exchange would mend over-long limbs, makes labels worse more often than better, and so does
parting two channels that lie on one joint. Mirror and rotation consistency see an exchanged body hardly
better than a coin, since all views make the same mistake. What is left is to be silent. Knows no view, no
filter and no skeleton but its mirror pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import sample_maps
from sagecache.strict import share

REACH = 1  # mass is read in a window of (2 REACH + 1)^2 map pixels about a joint: what one peak covers


class SwapDecision(NamedTuple):
    """silenced (B, K) bool: joints not to learn from. margin (B,) in [-1, 1]: of the whole body, 1 where
    nothing can be confused; pair_margin (B, P) likewise, by row of ``SwapCheck.pairs``.
    """

    silenced: Tensor
    margin: Tensor
    pair_margin: Tensor


class SwapCheck(nn.Module):
    """Silence the paired joints of bodies whose left and right the maps hardly tell apart.

    silence in [0, 1]: bodies of a margin below it are silenced; 0 turns the check off, as the maps' own
    joints cannot have a margin below 0 by much. apart > 0: pairs further apart than this, in units of
    bbox_scale, count fully in the body's margin; nearer ones less, linearly: confusing them costs little.
    flip_indices (K,): mirror partners.
    """

    def __init__(self, flip_indices: Tensor, silence: float = 0.3, apart: float = 0.15) -> None:
        super().__init__()
        share("silence", silence)
        if not apart > 0:
            raise SagecacheError(
                f"apart is {apart}, it must be positive", fix="0.15 is a shoulder's breadth in the box"
            )
        self.silence, self.apart = silence, apart
        partner = torch.as_tensor(flip_indices)
        joint = torch.arange(len(partner))
        first = joint[joint < partner]
        self.register_buffer("partner", partner, persistent=False)
        self.register_buffer("pairs", torch.stack([first, partner[first]], -1), persistent=False)
        self.register_buffer("paired", joint != partner, persistent=False)

    @torch.no_grad()
    @full_precision
    def forward(self, probability: Tensor, points: Tensor, map_scale: Tensor) -> SwapDecision:
        """probability (B, K, h, w): fused maps. points (B, K, 2): the joints decoded from them, map pixels.

        map_scale (B,): bbox_scale = sqrt(w h) of the boxes in map pixels.
        """
        margin = pair_margin(probability, points, self.pairs)
        first, second = points[:, self.pairs].unbind(2)  # (B, P, 2)
        distance = (first - second).norm(dim=-1) / map_scale[:, None]
        weight = (distance / self.apart).clamp(max=1)
        total = weight.sum(-1)
        # pairs on one spot have no say; a body of such pairs alone (or of none) has nothing to confuse
        body = (margin * weight).sum(-1) / total.clamp_min(torch.finfo(total.dtype).eps)
        body = torch.where(total > 0, body, 1)
        return SwapDecision((body < self.silence)[:, None] & self.paired, body, margin)


def pair_margin(probability: Tensor, points: Tensor, pairs: Tensor) -> Tensor:
    """How much more of the two channels' mass lies at their own joints than at each other's: (B, P).

    1: each channel knows its joint alone; 0: a coin, both channels hold as much of either place; -1: the
    names are exchanged. 1 as well where neither channel has any mass at either place.

    probability (B, K, h, w) sums to one; points (B, K, 2) map pixels; pairs (P, 2): joint indices.
    """
    step = torch.arange(-REACH, REACH + 1, device=points.device, dtype=points.dtype)
    window = torch.stack(torch.meshgrid(step, step, indexing="xy"), -1).flatten(0, 1)  # (n, 2)
    around = points[:, pairs].unsqueeze(-2) + window  # (B, P, 2 places, n, 2)
    maps = probability[:, pairs]  # (B, P, 2 channels, h, w)
    mass = sample_maps(maps.flatten(0, 1), around.flatten(0, 1).flatten(1, 2))  # (B * P, 2 n, 2 channels)
    mass = mass.unflatten(1, (2, -1)).sum(2).unflatten(0, maps.shape[:2])  # (B, P, place, channel)
    own = mass[..., 0, 0] + mass[..., 1, 1]
    other = mass[..., 0, 1] + mass[..., 1, 0]
    total = own + other
    margin = (own - other) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, margin, 1)
