"""Strong views made harder once the EMA teacher has spoken: joints and limbs hidden, limbs exchanged.

Needs the teacher's keypoints and therefore acts on the batch of strong views, on the device, after the
teacher and before the student. Only pixels change: the host's targets stay the host's, and nothing pasted
becomes a target. Knows tensors and a skeleton, no network and no loss.

A limb is pasted with its ends on the host's own joints, so that the body goes on: at the host's elbow the
picture shows an elbow, if another person's. What is hidden can be told from the rest of the body, which is
the lesson. Joints under foreign pixels therefore remain targets by default (covered='keep').
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sagecache.data.hiding import (
    AdaptiveMasking,
    capsules,
    hide_hard_joints,
    hide_joints,
    hide_limbs,
    in_view,
    paint,
    under,
)
from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.affine import Size
from sagecache.geometry.precision import full_precision
from sagecache.skeleton import Skeleton
from sagecache.strict import at_least, positive, share

COMBINE = ("one_of", "all")
COVERED = ("keep", "drop")
MAX_ZOOM = 2.0  # a donor's limb is at most this much longer or shorter: beyond, its blur would give it away
MIN_LENGTH = 1 / 32  # of the view's height: a limb seen end on has no direction
WINDOW = 1 / 2  # of the view's height: no more is resampled, so that the longest limb is a third of it


class Mixed(NamedTuple):
    """images (B, 3, H, W) uint8; covered (B, K) bool: joints under pixels that are not their person's;
    dropped (B, K) bool: those of them that should lose their weight ('covered' of `StrongMixing`).
    """

    images: Tensor
    covered: Tensor
    dropped: Tensor


class Dealt(NamedTuple):
    """The samples of one kind. rows (R,): which; places (B,): where each sample stands among them, any
    number where it doesn't; member (B,) bool: whether it does.
    """

    rows: Tensor
    places: Tensor
    member: Tensor


class StrongMixing(nn.Module):
    """Hides and exchanges parts of the persons in strong views.

    hide: most joints of a sample under randomly placed patches (joint cutout). akm: hide joints that are
    uncertain or often wrong (`hiding.AdaptiveMasking`). limbs: most limbs of a sample under a capsule.
    cutmix: probability that a limb shows another person's pixels. radius of a capsule, in limb lengths.
    combine: 'one_of' gives each sample one of the active kinds, in equal shares, so that the strong views
    of an image mostly differ in kind; 'all' lets each kind act on each sample, limbs exchanged first.
    Stacking is worse than two paths that complement each other (MultiAugs, arXiv 2402.11566).
    covered: whether joints under foreign pixels keep their weight or lose it ('drop').

    Numbers are drawn for each sample, from 0 up to the key. What is 0 or None costs nothing; with nothing
    asked for the images come back as they are.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        hide: int = 0,
        akm: AdaptiveMasking | None = None,
        limbs: int = 0,
        cutmix: float = 0.0,
        radius: float = 0.25,
        combine: Literal["one_of", "all"] = "one_of",
        covered: Literal["keep", "drop"] = "keep",
    ) -> None:
        super().__init__()
        at_least("mixing.hide", hide, 0)
        at_least("mixing.limbs", limbs, 0)
        share("mixing.cutmix", cutmix)
        positive("mixing.radius", radius)
        for key, value, known in (("combine", combine, COMBINE), ("covered", covered, COVERED)):
            if value not in known:
                raise SagecacheError(f"mixing.{key} can't be {value!r}", fix=nearest(str(value), known))
        self.register_buffer("edges", torch.tensor(mirrored_limbs(skeleton)), persistent=False)
        if (limbs or cutmix) and not len(self.edges):
            raise SagecacheError(
                f"skeleton '{skeleton.name}' has no limb on either side to hide or exchange",
                fix="Set mixing.limbs and mixing.cutmix to 0",
            )
        self.hide, self.akm, self.limbs, self.cutmix = hide, akm, limbs, cutmix
        self.radius, self.combine, self.covered = radius, combine, covered
        wanted = {"hide": hide, "akm": akm and akm.joints, "limbs": limbs, "cutmix": cutmix}
        self.kinds = tuple(kind for kind, amount in wanted.items() if amount)

    @torch.no_grad()
    @full_precision
    def forward(
        self,
        images: Tensor,
        keypoints: Tensor,
        confidence: Tensor,
        keep: Tensor,
        bbox_scale: Tensor,
        error: Tensor | None = None,
        mean_confidence: Tensor | None = None,
        num_strong: int = 1,
    ) -> Mixed:
        """images (B, 3, H, W) uint8: strong views, each with the teacher's opinion brought there.

        keypoints (B, K, 2) in view pixels; what is not finite or not in view is left alone. confidence
        (B, K) in [0, 1]; keep (B, K) bool: joints that are learned from, the only ones used. bbox_scale
        (B,): sqrt(w h) of the person's box in view pixels. error and mean_confidence (K,): running
        statistics by joint for akm, None until there are some. num_strong: views of each person, one after
        another; they are no donors of each other. Channels may be named by the person or by the view, as
        long as all tensors agree. The input is not changed.
        """
        if not self.kinds:
            nothing = torch.zeros_like(keep)
            return Mixed(images, nothing, nothing)
        size = (images.shape[-1], images.shape[-2])
        seen = in_view(keypoints, size)
        keypoints = torch.where(seen[..., None], keypoints, 0)
        known = seen & keep
        dealt = dict(zip(self.kinds, self._deal(len(images), images.device), strict=True))
        touched = torch.zeros((), dtype=torch.bool, device=images.device)
        if "cutmix" in dealt:
            images, touched = self._exchange(images, keypoints, known, dealt.pop("cutmix"), num_strong)
        if dealt:
            score = self.akm.score(error, mean_confidence) if self.akm else 0.0
            hidden = torch.zeros((), dtype=torch.bool, device=images.device)
            for kind, group in dealt.items():
                rows = group.rows
                mask = self._hidden(
                    kind, keypoints[rows], known[rows], confidence[rows], bbox_scale[rows], score, size
                )
                hidden = hidden | _returned(mask, group)
            images, touched = paint(images, hidden), touched | hidden
        covered = under(touched, keypoints) & seen
        return Mixed(images, covered, covered if self.covered == "drop" else torch.zeros_like(covered))

    def _deal(self, count: int, device: torch.device) -> list[Dealt]:
        """Who gets which kind: everyone each, or one at random in equal shares.

        Shares of a fixed size, filled up with samples whose result is not used, let each kind work on its
        own share alone without the host's having to know who is in it.
        """
        if self.combine == "all" or len(self.kinds) == 1:
            rows = torch.arange(count, device=device)
            return [Dealt(rows, rows, torch.ones_like(rows, dtype=torch.bool))] * len(self.kinds)
        part = -(-count // len(self.kinds))
        cards = torch.randperm(part * len(self.kinds), device=device)
        places = cards.argsort()[:count]  # of sample b among all cards
        return [
            Dealt(rows % count, (places - i * part).clamp(0, part - 1), places // part == i)
            for i, rows in enumerate(cards.split(part))
        ]

    def _hidden(
        self,
        kind: str,
        keypoints: Tensor,
        known: Tensor,
        confidence: Tensor,
        bbox_scale: Tensor,
        score: Tensor | float,
        size: Size,
    ) -> Tensor:
        """(R, H, W) bool."""
        if kind == "hide":
            return hide_joints(keypoints, known, self.hide, size)
        if kind == "limbs":
            return hide_limbs(keypoints, known, self.edges, self.limbs, self.radius, size)
        sure = known & (confidence >= self.akm.threshold)
        return hide_hard_joints(keypoints, sure, score, bbox_scale, self.akm, size)

    def _exchange(
        self, images: Tensor, keypoints: Tensor, known: Tensor, group: Dealt, num_strong: int
    ) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) with limbs exchanged, and where (B, H, W)."""
        pasted, mask = paste_limbs(images, keypoints, known, group.rows, self.edges, self.radius, num_strong)
        mask = mask & (torch.rand(len(mask), 1, 1, device=mask.device) < self.cutmix)
        mask = _returned(mask, group)
        return torch.where(mask[:, None], pasted[group.places], images), mask


@full_precision
def paste_limbs(
    images: Tensor,
    keypoints: Tensor,
    known: Tensor,
    hosts: Tensor,
    limbs: Tensor,
    radius: float,
    num_strong: int = 1,
) -> tuple[Tensor, Tensor]:
    """Keypoint-aware CutMix: one limb of each host as another person shows the same limb, or its mirror.

    images (B, 3, H, W) uint8; keypoints (B, K, 2) finite, view pixels; known (B, K) bool; hosts (R,): who
    receives; limbs (L, 2): rows 2i and 2i + 1 mirror each other; radius in limb lengths; num_strong: views of
    each person, one after another. The host's limb is drawn among those with both ends known, the donor among
    all views of others that know this limb or its mirror at between half and twice the length. The similarity
    that lays the donor's limb on the host's, with a reflection for the mirror limb so that its outer side
    stays outside, is sampled bilinearly. Limbs whose capsule exceeds half the view's height are left alone.

    Returns pixels (R, 3, H, W) uint8, zero away from the region, and the region (R, H, W) bool: the
    capsule about the host's limb, empty without a limb or a donor.
    """
    size = (images.shape[-1], images.shape[-2])
    side = min(*size, round(WINDOW * size[1]))
    ends = keypoints[:, limbs]  # (B, L, 2, 2)
    length = (ends[..., 1, :] - ends[..., 0, :]).norm(dim=-1)
    there = known[:, limbs].all(-1) & (length >= MIN_LENGTH * size[1])
    limb, has_limb = _pick((there & (length * (1 + 2 * radius) <= side - 2))[hosts])
    host_length = length[hosts].gather(1, limb[:, None])  # (R, 1)

    same_or_mirror = torch.stack([limb, limb ^ 1], 1)  # (R, 2)
    zoom = length.T[same_or_mirror] / host_length.clamp_min(1e-6)[..., None]  # (R, 2, B)
    persons = torch.arange(len(images), device=hosts.device) // num_strong
    others = persons != persons[hosts][:, None, None]
    suits = there.T[same_or_mirror] & others & (zoom <= MAX_ZOOM) & (zoom >= 1 / MAX_ZOOM)
    choice, has_donor = _pick(suits.flatten(1))
    mirror, donor = choice // len(images), choice % len(images)

    host_ends = ends[hosts, limb]  # (R, 2, 2)
    donor_ends = ends[donor, limb ^ mirror]
    region = capsules(host_ends[:, None], radius, (has_limb & has_donor)[:, None], size)
    # the window of pixels about the limb: its corner (R, 2) and where the donor is read for them
    left, top = (host_ends.mean(1) - (side - 1) / 2).round().long().unbind(-1)
    corner = torch.stack([left.clamp(0, size[0] - side), top.clamp(0, size[1] - side)], -1)
    grid = _laid_on(donor_ends, host_ends, 1 - 2 * mirror, corner, side, size)
    sampled = F.grid_sample(images[donor].float(), grid, padding_mode="border", align_corners=True)
    within = torch.arange(side, device=hosts.device)
    index = (within[:, None] * size[0] + within).flatten() + (corner[:, 1:] * size[0] + corner[:, :1])
    pixels = images.new_zeros(len(hosts), 3, size[0] * size[1])
    pixels.scatter_(2, index[:, None].expand(-1, 3, -1), sampled.round_().to(images.dtype).flatten(2))
    return pixels.unflatten(2, size[::-1]), region


def mirrored_limbs(skeleton: Skeleton) -> list[list[int]]:
    """Limbs that exist on either side, (L, 2): rows 2i and 2i + 1 mirror each other end by end.

    For COCO-17 upper arms, forearms, thighs and shanks. The sides of the torso and the lines from left to
    right are no limbs one could exchange or would call hidden.
    """
    torso = set() if skeleton.torso_joints is None else set(skeleton.torso_joints.ravel().tolist())
    rows = []
    for one, _ in skeleton.mirrored_limbs:
        edge = skeleton.limb_edges[one]
        if not set(edge.tolist()) <= torso:
            rows += [edge.tolist(), skeleton.flip_indices[edge].tolist()]
    return rows


# --- inside --------------------------------------------------------------------------------------


def _returned(mask: Tensor, group: Dealt) -> Tensor:
    """A mask of the group's rows (R, H, W) as one of the batch (B, H, W), false for all others."""
    return mask[group.places] & group.member[:, None, None]


def _pick(allowed: Tensor) -> tuple[Tensor, Tensor]:
    """One of those allowed (R, N), each with the same probability: index (R,), and whether there is one."""
    best, index = torch.rand(allowed.shape, device=allowed.device).masked_fill(~allowed, -1).max(1)
    return index, best >= 0


def _laid_on(
    donor_ends: Tensor, host_ends: Tensor, turn: Tensor, corner: Tensor, side: int, size: Size
) -> Tensor:
    """Where in the donor, in units of grid_sample, a window of the host is read: (R, side, side, 2).

    donor_ends, host_ends (R, 2, 2): the similarity takes host ends to donor ends; turn (R,): -1 exchanges
    the two sides of the limb; corner (R, 2) of the window, host pixels; size (width, height) of the donor.
    """
    host, donor = host_ends[:, 1] - host_ends[:, 0], donor_ends[:, 1] - donor_ends[:, 0]
    along = host / host.square().sum(-1, keepdim=True).clamp_min(1e-6)  # 0 to 1 from end to end
    across = torch.stack([-along[:, 1], along[:, 0]], -1)
    normal = torch.stack([-donor[:, 1], donor[:, 0]], -1) * turn[:, None]
    # donor_from_host = donor along^T + normal across^T
    linear = donor[..., None] * along[:, None] + normal[..., None] * across[:, None]  # (R, 2, 2)
    start = donor_ends[:, 0] + (linear * (corner - host_ends[:, 0])[:, None]).sum(-1)
    (x, y), (a, b) = start.unbind(-1), linear.unbind(1)
    width, height = (2 / (length - 1) for length in size)  # of a pixel, where the view is 2 wide and high
    start, linear = torch.stack([x * width - 1, y * height - 1], -1), torch.stack([a * width, b * height], 1)
    steps = torch.arange(side, device=host.device, dtype=host.dtype)[:, None]
    columns = steps * linear[:, None, :, 0]  # (R, side, 2)
    rows = steps * linear[:, None, :, 1] + start[:, None]
    return rows[:, :, None] + columns[:, None]
