"""Is a pseudo-label's left perhaps its right? Lets a network outside the feedback loop say a body's names.

Left and right are one decision for the whole body: is it seen from the front or from behind? All pairs and
all views of one teacher make the same mistake, so its own maps hardly tell it, and self-training makes it
grow: bodies seen from behind, which are few, are renamed one after another like the many seen from the front.
What holds them is a vote taken once, by the network that stage 1 starts from. Where that is sure, it decides
and a label that contradicts is exchanged; where it is not, the names are silent. Figures, and the rules that
did not work, are in docs/sage-pose.md. Knows no filter and no statistics of bodies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import swap_mirrored
from sagecache.geometry.heatmap import decode, gaussian
from sagecache.geometry.precision import full_precision
from sagecache.strict import positive, share

PLACE_SIGMAS = 1.2  # a place takes in the mass about it by a Gaussian this many sigmas wide


class SwapDecision(NamedTuple):
    """Maps (B, K, h, w), points (B, K, 2) and confidence (B, K) after renaming.

    exchanged (B,) bool: left and right changed places. corrected (B, K) bool: the joints that have a partner,
    of these. silenced (B, K) bool: the name is not to be learned, though the place may be. weight (B,) > 0:
    of the named body's joints.
    """

    probability: Tensor
    points: Tensor
    confidence: Tensor
    exchanged: Tensor
    corrected: Tensor
    silenced: Tensor
    weight: Tensor


class FacingVote(nn.Module):
    """Front or back: on which side of the torso's axis do the left joints lie?

    Each pair votes by the two places where either of its joints is (the maps without names) and by how much
    more of the channels' mass speaks for one naming of them than for the other.
    mirrored_joints (P, 2): mirror pairs, the joint of one and the same side first. torso_joints (2, 2): the
    rows of the shoulders and of the hips among them. sigma: of the codec, heatmap pixels. apart: pairs this
    far apart across the torso's axis, in units of bbox_scale, count fully, nearer ones less: seen from the
    side, neither naming can be wrong by much.
    """

    def __init__(
        self, mirrored_joints: Tensor, torso_joints: Tensor, sigma: float, apart: float = 0.22
    ) -> None:
        super().__init__()
        positive("apart", apart)
        self.sigma, self.apart = sigma, apart
        pairs, torso = torch.as_tensor(mirrored_joints), torch.as_tensor(torso_joints)
        same = (pairs == torso[:, None]).all(-1)  # (2, P)
        if not same.any(-1).all():
            raise SagecacheError("the shoulders and the hips must be mirror pairs of the skeleton")
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("torso", same.int().argmax(-1), persistent=False)

    @torch.no_grad()
    @full_precision
    def forward(self, probability: Tensor, map_scale: Tensor, mirrored: Tensor) -> Tensor:
        """Vote (B,) in [-1, 1]: above 0 left joints lie where they do in a body seen from the front.

        probability (B, K, h, w): maps that sum to one, channels as in the image. map_scale (B,): bbox_scale =
        sqrt(w h) of the boxes in map pixels. mirrored (B,) bool: the maps' frame is a mirror of the image.
        """
        first, second = probability[:, self.pairs].unbind(2)  # (B, P, h, w) each
        place_a, place_b = self._places((first + second) / 2)
        middle = (place_a + place_b) / 2
        shoulders, hips = middle[:, self.torso].unbind(1)
        down = hips - shoulders
        across = torch.stack([down[:, 1], -down[:, 0]], -1)
        across = across / across.norm(dim=-1, keepdim=True).clamp_min(1e-6)  # to the picture's right
        distance = ((place_a - place_b) * across[:, None]).sum(-1) / map_scale[:, None]  # (B, P)
        preference = self._preference(first, second, place_a, place_b)
        vote = (preference * (distance / self.apart).clamp(-1, 1)).mean(-1)
        return torch.where(mirrored, -vote, vote)

    def _places(self, either: Tensor) -> tuple[Tensor, Tensor]:
        """The highest peak of maps (B, P, h, w), and the highest one elsewhere: (B, P, 2) map pixels each."""
        place_a, _ = decode(either, self.sigma)
        place_b, _ = decode(either * (1 - self._about(place_a, either, self.sigma)), self.sigma)
        return place_a, place_b

    def _preference(self, first: Tensor, second: Tensor, place_a: Tensor, place_b: Tensor) -> Tensor:
        """(B, P) in [-1, 1]: 1 where the first channel's mass is at a and the second's at b."""
        at_a = self._about(place_a, first, PLACE_SIGMAS * self.sigma)
        at_b = self._about(place_b, first, PLACE_SIGMAS * self.sigma)
        gain = ((first - second) * (at_a - at_b)).sum((-2, -1))
        total = ((first + second) * (at_a + at_b)).sum((-2, -1))
        return gain / total.clamp_min(torch.finfo(total.dtype).tiny)

    @staticmethod
    def _about(place: Tensor, maps: Tensor, sigma: float) -> Tensor:
        bump = gaussian(place, (maps.shape[-1], maps.shape[-2]), sigma)
        return bump / bump.amax((-2, -1), keepdim=True).clamp_min(torch.finfo(bump.dtype).tiny)


class SwapCheck(nn.Module):
    """Compare a label's vote with the fixed one: rename, or silence.

    front, back in [0, 1]: fixed votes above front and below -back decide; what lies between is silenced.
    weight_back > 0: weight of bodies named as seen from behind, for where they are rare. flip_indices (K,).
    """

    def __init__(
        self, flip_indices: Tensor, front: float = 0.2, back: float = 0.15, weight_back: float = 3.0
    ) -> None:
        super().__init__()
        share("front", front)
        share("back", back)
        positive("weight_back", weight_back)
        self.front, self.back, self.weight_back = front, back, weight_back
        partner = torch.as_tensor(flip_indices)
        self.register_buffer("partner", partner, persistent=False)
        self.register_buffer("paired", partner != torch.arange(len(partner)), persistent=False)

    @torch.no_grad()
    def forward(
        self, probability: Tensor, points: Tensor, confidence: Tensor, vote: Tensor, fixed: Tensor
    ) -> SwapDecision:
        """probability (B, K, h, w), points (B, K, 2), confidence (B, K): the label; vote (B,): its own.

        fixed (B,): the vote of the network that says the names; NaN where nobody asked it, and then all stays
        as it is.
        """
        sure = (fixed > self.front) | (fixed < -self.back)
        exchange = sure & (vote.sign() * fixed.sign() < 0)
        return SwapDecision(
            *(swap_mirrored(value, exchange, self.partner) for value in (probability, points, confidence)),
            exchanged=exchange,
            corrected=exchange[:, None] & self.paired,
            silenced=(~sure & fixed.isfinite())[:, None] & self.paired,
            weight=torch.where(sure & (fixed < 0), self.weight_back, 1.0).to(confidence.dtype),
        )
