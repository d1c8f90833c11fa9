"""Is a pseudo-label's left perhaps its right? Finds bodies whose names can't be trusted; renames or silences.

A joint of a pair can be mistaken for its mirror partner. The margin compares what a channel has at its own
joint with what it has at the partner's. Pairs of one body err together (front taken for back), so it is
pooled over the body before anything is done.

A teacher's own maps tell little of such errors, because every view and every pair makes the same one; and
self-training makes them grow: bodies seen from behind, which are few, are renamed one after another like the
many seen from the front. What helps is to let another network say the names, one that has not taken part: the
one that stage 1 started from. Where it is sure, it decides; where it is not, nobody does. Figures, and the
rules that did not work, are in docs/sage-pose.md. Knows no view, no filter and no skeleton but its pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import swap_mirrored
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import sample_maps
from sagecache.strict import share

REACH = 1  # mass is read in a window of (2 REACH + 1)^2 map pixels about a joint: what one peak covers


class SwapDecision(NamedTuple):
    """Maps (B, K, h, w), points (B, K, 2) and confidence (B, K) after renaming.

    corrected (B, K) bool: exchanged with the partner. silenced (B, K) bool: the name is not to be learned.
    margin (B,) in [-1, 1]: of the whole body before renaming, 1 where nothing can be confused.
    """

    probability: Tensor
    points: Tensor
    confidence: Tensor
    corrected: Tensor
    silenced: Tensor
    margin: Tensor


class SwapCheck(nn.Module):
    """Exchange left and right of bodies of margin below -silence, silence those between -silence and silence.

    silence in [0, 1]. apart > 0: pairs further apart than this, in units of bbox_scale, count fully in the
    body's margin; nearer ones less, linearly: confusing them costs little. flip_indices (K,): mirror
    partners.
    """

    def __init__(self, flip_indices: Tensor, silence: float = 0.4, apart: float = 0.2) -> None:
        super().__init__()
        share("silence", silence)
        if not apart > 0:
            raise SagecacheError(
                f"apart is {apart}, it must be positive", fix="0.2 is a shoulder's breadth in the box"
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
    def forward(
        self,
        probability: Tensor,
        points: Tensor,
        confidence: Tensor,
        map_scale: Tensor,
        names: Tensor | None = None,
    ) -> SwapDecision:
        """probability (B, K, h, w): fused maps. points (B, K, 2), confidence (B, K): decoded, map pixels.

        map_scale (B,): bbox_scale = sqrt(w h) of the boxes in map pixels. names (B, K, h, w): maps, in the
        same frame, of the network that says the names; None takes ``probability`` itself, which silences but
        all but never exchanges.
        """
        margin = self._body_margin(probability if names is None else names, points, map_scale)
        exchange = margin < -self.silence
        unsure = ~exchange & (margin < self.silence)
        return SwapDecision(
            *(swap_mirrored(value, exchange, self.partner) for value in (probability, points, confidence)),
            corrected=exchange[:, None] & self.paired,
            silenced=unsure[:, None] & self.paired,
            margin=margin,
        )

    def _body_margin(self, names: Tensor, points: Tensor, map_scale: Tensor) -> Tensor:
        margin = pair_margin(names, points, self.pairs)
        first, second = points[:, self.pairs].unbind(2)  # (B, P, 2)
        distance = (first - second).norm(dim=-1) / map_scale[:, None]
        weight = (distance / self.apart).clamp(max=1)
        total = weight.sum(-1)
        # pairs on one spot have no say; a body of such pairs alone (or of none) has nothing to confuse
        body = (margin * weight).sum(-1) / total.clamp_min(torch.finfo(total.dtype).eps)
        return torch.where(total > 0, body, 1)


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
