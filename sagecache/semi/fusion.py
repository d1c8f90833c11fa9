"""Several views of one person by the EMA teacher(s), as one map for each joint.

Every view's maps are carried into the frame of the first one, named as in the image, and averaged with
weights that follow their confidence; views that put a joint elsewhere are left out of its map, but not out of
its confidence. Nothing here carries a gradient or makes the host wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.affine import compose, invert_affine, is_mirrored, swap_mirrored
from sagecache.geometry.heatmap import MIN_IN_VIEW, in_view_mass, probability
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import warp_heatmaps
from sagecache.strict import positive

GRANULARITY = ("keypoint", "instance")
RULES = ("average", "best", "drop")


class TeacherView(NamedTuple):
    """One view that a teacher saw: its raw maps, and where the view was cut from.

    heatmaps (B, K, h, w): raw output, of this kind (`geometry.heatmap.probability`). view_from_image
    (B, 3, 3). mirrored: raw output on the same view mirrored (test-time flip), or None; mirror: see
    `fuse_flip`.
    """

    heatmaps: Tensor
    kind: str
    view_from_image: Tensor
    mirrored: Tensor | None = None
    mirror: Tensor | None = None


class Fused(NamedTuple):
    """probability (B, K, h, w): maps that sum to 1, in the first view's heatmap pixels, channels as in the
    image. agreement (B, K) in [0, 1]: the weight of the views that agree with the best one. disagree (B, K)
    bool: a view that may speak puts the joint elsewhere.
    """

    probability: Tensor
    agreement: Tensor
    disagree: Tensor


def read_view(view: TeacherView, flip_indices: Tensor) -> Tensor:
    """Probability maps (B, K, h, w) of one view in its own pixels, channels as in the image."""
    maps = probability(view.heatmaps, view.kind)
    if view.mirrored is not None:
        maps = fuse_flip(maps, probability(view.mirrored, view.kind), flip_indices, view.mirror)
    return swap_mirrored(maps, is_mirrored(view.view_from_image), flip_indices)


def fuse_flip(
    maps: Tensor, mirrored_maps: Tensor, flip_indices: Tensor, mirror: Tensor | None = None
) -> Tensor:
    """Mean of the maps and of those of the mirrored input, turned back, channels swapped.

    Both (B, K, h, w), summing to one. mirror (3, 3): heatmap pixels of the mirrored input -> of the input,
    where that is not the plain x' = w - 1 - x (codecs that divide by the stride); then maps are resampled.
    Where the two passes disagree the mean has two low peaks, so that its confidence falls: the mean doubles
    as a test of agreement.
    """
    if mirror is None:
        turned = mirrored_maps.flip(-1)
    else:
        turned = warp_heatmaps(mirrored_maps, mirror.expand(len(maps), 3, 3))
    return (maps + turned.index_select(1, flip_indices)) / 2


class ViewFusion(nn.Module):
    """Maps of V views of the same persons -> one map a joint.

    temperature: weights of the views are softmax(confidence / temperature), by joint: at .5 a view that is
    surer by .5 weighs 2.7 times as much. by: 'keypoint', or 'instance' for one weight a person (the mean
    confidence), which cannot trust one view's wrist and the other's hip. disagreement: modes further apart
    than this many sigmas are two opinions (SSPCM, Huang et al. 2023, rejects by the same distance).
    on_disagreement: 'best' leaves out what is far from the mode of the surest view (the one of the largest
    weight), 'drop' also tells the filter to drop the joint, 'average' has no such rule.
    sigma: of the codec, heatmap pixels.
    """

    def __init__(
        self,
        sigma: float,
        temperature: float = 0.5,
        by: Literal["keypoint", "instance"] = "keypoint",
        disagreement: float = 2.0,
        on_disagreement: Literal["average", "best", "drop"] = "best",
    ) -> None:
        super().__init__()
        positive("the fusion's temperature", temperature)
        positive("the fusion's disagreement", disagreement)
        for key, value, known in (("by", by, GRANULARITY), ("on_disagreement", on_disagreement, RULES)):
            if value not in known:
                raise SagecacheError(f"unknown {key} '{value}' of the fusion", fix=nearest(str(value), known))
        self.sigma, self.temperature, self.by = sigma, temperature, by
        self.distance, self.rule = disagreement * sigma, on_disagreement

    @torch.no_grad()
    def forward(
        self, views: Sequence[TeacherView], heatmap_from_input: Tensor, flip_indices: Tensor
    ) -> Fused:
        """views: of equal shape, the first one's frame is the result's; heatmap_from_input (3, 3)."""
        maps = [read_view(view, flip_indices) for view in views]
        if len(maps) == 1:
            whole = torch.ones_like(maps[0][..., 0, 0])
            return Fused(maps[0], whole, whole < 0)
        image_from_first = invert_affine(compose(heatmap_from_input, views[0].view_from_image))
        seen = [torch.ones_like(maps[0][..., 0, 0], dtype=torch.bool)]
        for index, view in enumerate(views[1:], start=1):
            view_from_first = compose(heatmap_from_input, view.view_from_image, image_from_first)
            maps[index], in_view = _aligned(maps[index], invert_affine(view_from_first))
            seen.append(in_view)
        return self.fuse(torch.stack(maps), torch.stack(seen))

    @full_precision
    def fuse(self, maps: Tensor, seen: Tensor) -> Fused:
        """maps (V, B, K, h, w) that sum to 1, in one frame; seen (V, B, K) bool: the joint is in the view."""
        peak, index = maps.flatten(3).max(-1)  # (V, B, K)
        width = maps.shape[-1]
        mode = torch.stack([index % width, index // width], -1).to(maps.dtype)  # (V, B, K, 2)
        confidence = (peak * (2 * math.pi * self.sigma**2)).clamp(max=1)
        judged = (
            confidence if self.by == "keypoint" else confidence.mean(-1, keepdim=True).expand_as(confidence)
        )
        weight = (judged / self.temperature).masked_fill(~seen, -math.inf).softmax(0)
        best = judged.masked_fill(~seen, -1).argmax(0, keepdim=True)  # (1, B, K), the largest weight of all
        chosen = mode.gather(0, best.unsqueeze(-1).expand(-1, -1, -1, 2))
        near = (mode - chosen).norm(dim=-1) <= self.distance
        used = weight if self.rule == "average" else weight * near
        agreement = used.sum(0)
        fused = (used[..., None, None] * maps).sum(0) / agreement[..., None, None]
        return Fused(fused, agreement, (seen & ~near).any(0))


def _aligned(maps: Tensor, first_from_view: Tensor) -> tuple[Tensor, Tensor]:
    """Maps in the first view's frame, summing to 1, and which joints (B, K) were still in view."""
    warped = warp_heatmaps(maps, first_from_view)
    in_view = in_view_mass(warped, first_from_view) >= MIN_IN_VIEW
    total = warped.sum((-2, -1), keepdim=True)
    return warped / total.clamp_min(torch.finfo(warped.dtype).tiny), in_view
