"""What of a view is hidden: patches at joints and capsules along limbs, on a whole batch at once.

Joints are those that the EMA teacher saw in this very step, so that hiding can't be part of the data
pipeline: it acts on strong views between teacher and student. A region is a mask (B, H, W) in view pixels,
pixel centres at integers; `paint` fills it. Knows tensors and no network. Everything random comes from
torch's global generator, on the tensors' device; no loop over samples, and the host never waits.

Sources: joint cutout, Xie et al. 2021 (arXiv 2011.12498); sizes stated for a view 256 px high grow with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sagecache.geometry.affine import Size
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import inside
from sagecache.strict import at_least, positive, share

REFERENCE_HEIGHT = 256
HALF_SIDE = (10.0, 20.0)  # of a patch, or its radius; pixels at the reference height
JITTER = 10.0  # sd of a patch's centre about the joint, likewise
COLOUR = (30.0, 220.0)  # range of a region's flat colour, as for the boxes of `views`
GRAIN = 30.0  # largest amplitude of the noise on it, grey levels
TINY = 1e-6


@dataclass(frozen=True)
class AdaptiveMasking:
    """AKM, adaptive keypoint masking: hide the neighbourhood of joints that are uncertain or often wrong.

    Among the joints that the teacher is sure of in a sample (confidence >= threshold: only there is the
    answer known once it is hidden), k is drawn without replacement by
    P ~ softmax((weight_error error_k + weight_confidence (1 - mean_confidence_k)) / temperature), with the
    running error in units of the box and the running mean confidence of all samples.
    joints: most joints in a sample, drawn from 0 up. area: most of the person's box that may be hidden.
    temperature 0.2 makes a joint of doubt .4 e times as frequent as one of doubt .2.
    """

    joints: int = 3
    weight_error: float = 2.0
    weight_confidence: float = 1.0
    temperature: float = 0.2
    threshold: float = 0.5
    area: float = 0.2

    def __post_init__(self) -> None:
        at_least("joints", self.joints, 0)
        at_least("weight_error", self.weight_error, 0)
        at_least("weight_confidence", self.weight_confidence, 0)
        positive("temperature", self.temperature)
        share("threshold", self.threshold)
        share("area", self.area)

    def score(self, error: Tensor | None, mean_confidence: Tensor | None) -> Tensor | float:
        """Logits (K,) of the choice; a statistic that is None is taken as equal for all joints."""
        score = 0.0
        if error is not None and self.weight_error:
            score = score + error * (self.weight_error / self.temperature)
        if mean_confidence is not None and self.weight_confidence:
            score = score + (1 - mean_confidence) * (self.weight_confidence / self.temperature)
        return score


# --- what is hidden ------------------------------------------------------------------------------


@full_precision
def hide_joints(keypoints: Tensor, known: Tensor, count: int, size: Size) -> Tensor:
    """Joint cutout: up to count patches about joints drawn at random. (B, H, W) bool.

    keypoints (B, K, 2) in view pixels; known (B, K) bool, finite and in view (`in_view`); size (width,
    height). Number, from 0 to count, joints, shift (sd 10 px), half side (10 to 20 px) and shape, square or
    round, are drawn anew for each sample. Joints are drawn without replacement: two patches on one joint
    would hide no more.
    """
    joints, used = draw(known, count)
    centres = _points(keypoints, joints)
    centres = centres + torch.randn_like(centres) * (JITTER * size[1] / REFERENCE_HEIGHT)
    half_side, rounded = _shapes(used, size)
    return patches(centres, half_side, rounded, used, size)


@full_precision
def hide_hard_joints(
    keypoints: Tensor,
    known: Tensor,
    score: Tensor | float,
    bbox_scale: Tensor,
    masking: AdaptiveMasking,
    size: Size,
) -> Tensor:
    """AKM: patches on joints drawn by their score (K,) (`AdaptiveMasking.score`). (B, H, W) bool.

    known (B, K) bool: in view, and the teacher is sure. bbox_scale (B,): sqrt(w h) of the person's box in
    view pixels. Patches are as in `hide_joints`, centred on their joints; drawing stops before their areas
    exceed masking.area of the box, overlaps counted twice.
    """
    joints, used = draw(known, masking.joints, score)
    half_side, rounded = _shapes(used, size)
    # a square of half side h holds at most (2 h + 1)^2 pixel centres, a circle fewer
    hidden = (2 * half_side + 1).square().cumsum(1)
    used = used & (hidden <= masking.area * bbox_scale.square()[:, None])
    return patches(_points(keypoints, joints), half_side, rounded, used, size)


@full_precision
def hide_limbs(
    keypoints: Tensor, known: Tensor, limbs: Tensor, count: int, radius: float, size: Size
) -> Tensor:
    """Limb-aligned cutout: up to count limbs, drawn among those with both ends known. (B, H, W) bool.

    limbs (L, 2): joint indices; radius in limb lengths. Number and limbs are drawn anew for each sample.
    """
    chosen, used = draw(known[:, limbs].all(-1), count)
    ends = _points(keypoints, limbs[chosen].flatten(1)).unflatten(1, (-1, 2))  # (B, n, 2, 2)
    return capsules(ends, radius, used, size)


def draw(allowed: Tensor, count: int, score: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """0 to count different ones of those allowed, one after another by softmax of score.

    Gumbel top-k (Kool et al. 2019, arXiv 1903.06059): the largest of score + Gumbel noise are such a draw.
    allowed (B, N) bool, score broadcasts to it. Returns indices (B, n) with n = min(count, N), in the order
    drawn, and which of them count (B, n) bool: the number is uniform in 0..count, less where fewer are
    allowed.
    """
    noise = torch.empty(allowed.shape, device=allowed.device).exponential_().log()
    best, index = (score - noise).masked_fill(~allowed, -torch.inf).topk(min(count, allowed.shape[1]))
    number = torch.randint(count + 1, (len(allowed), 1), device=allowed.device)
    order = torch.arange(best.shape[1], device=allowed.device)
    return index, (best > -torch.inf) & (order < number)


def in_view(keypoints: Tensor, size: Size) -> Tensor:
    """True where keypoints (B, K, 2) are finite and on the view's pixels. (B, K) bool."""
    return inside(keypoints, size)  # a comparison with NaN is false


# --- regions -------------------------------------------------------------------------------------
# Convex all of them, so that each row of pixels has one span: cheaper than a distance for every pixel.


@full_precision
def patches(centres: Tensor, half_side: Tensor, rounded: Tensor, used: Tensor, size: Size) -> Tensor:
    """Union of squares |x|, |y| <= half_side and of circles of that radius. (B, H, W) bool.

    centres (B, n, 2), half_side (B, n), rounded (B, n) bool, used (B, n) bool; size (width, height).
    """
    x, y = centres[..., None, :].unbind(-1)  # (B, n, 1)
    half_side = half_side[..., None]
    distance = (_pixels(size[1], y) - y).abs()
    half = torch.where(rounded[..., None], _chord(distance, half_side), half_side)
    empty = (distance > half_side) | ~used[..., None]
    return _filled(torch.where(empty, torch.inf, x - half), torch.where(empty, -torch.inf, x + half), size[0])


@full_precision
def capsules(ends: Tensor, radius: float, used: Tensor, size: Size) -> Tensor:
    """Union of all points nearer to a segment than radius times its length. (B, H, W) bool.

    ends (B, n, 2, 2): two points each; used (B, n) bool; size (width, height).
    """
    limb = ends[..., 1, :] - ends[..., 0, :]
    length = limb.norm(dim=-1)[..., None]  # (B, n, 1)
    reach = radius * length
    y = _pixels(size[1], ends) - ends[..., 1, None]  # (B, n, 2, H): from each end
    # the discs about the ends
    half = _chord(y.abs(), reach[..., None])
    apart = (y.abs() > reach[..., None]) | ~used[..., None, None]
    x = ends[..., 0, None]
    left = torch.where(apart, torch.inf, x - half).amin(-2)
    right = torch.where(apart, -torch.inf, x + half).amax(-2)
    # the rectangle between: 0 <= along <= length and -reach <= across <= reach are an interval of x each
    cosine, sine = (limb[..., None, :] / length[..., None].clamp_min(TINY)).unbind(-1)  # (B, n, 1)
    cosine = torch.where(length > TINY, cosine, 1)  # a segment of no length may have any direction
    y, x = y[..., 0, :], x[..., 0, :]
    low, high = _interval(-sine * y, length - sine * y, cosine)
    low_across, high_across = _interval(-reach - cosine * y, reach - cosine * y, -sine)
    low, high = torch.maximum(low, low_across), torch.minimum(high, high_across)
    empty = (low > high) | ~used[..., None]
    left = torch.minimum(left, torch.where(empty, torch.inf, x + low))
    right = torch.maximum(right, torch.where(empty, -torch.inf, x + high))
    return _filled(left, right, size[0])


def under(mask: Tensor, keypoints: Tensor) -> Tensor:
    """Whether the pixel nearest to a joint is in the mask (B, H, W); keypoints (B, K, 2). (B, K) bool."""
    height, width = mask.shape[-2:]
    seen = in_view(keypoints, (width, height))
    column, row = torch.where(seen[..., None], keypoints, 0).round().long().unbind(-1)
    return mask.flatten(1).gather(1, row * width + column) & seen


def paint(images: Tensor, mask: Tensor) -> Tensor:
    """Fill the mask (B, H, W) of images (B, 3, H, W) uint8 with a colour and a grain of each sample's own.

    Grain from none to strong: always flat, a region would be the only clean piece of a noisy picture, and
    "clean" would tell the student what is hidden. One field of noise serves the batch at several strengths.
    """
    low, high = COLOUR
    count, (height, width) = len(images), mask.shape[-2:]
    drawn = torch.rand(count, 4, 1, 1, device=images.device)
    grain = drawn[:, 3:] * GRAIN
    noise = torch.rand(height, width, device=images.device) * (2 * grain)  # (B, 1, H, W)
    # grain <= low and high + grain <= 255: the sum of two bytes can't overflow
    colour = drawn[:, :3] * (high - low) + low - grain
    return torch.where(mask[:, None], colour.to(images.dtype) + noise.to(images.dtype), images)


# --- inside --------------------------------------------------------------------------------------


def _points(keypoints: Tensor, joints: Tensor) -> Tensor:
    """Positions (B, n, 2) of joints (B, n)."""
    return keypoints.gather(1, joints[..., None].expand(-1, -1, 2))


def _shapes(used: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Half sides (B, n) in view pixels and whether round (B, n)."""
    low, high = HALF_SIDE
    drawn = torch.rand(2, *used.shape, device=used.device)
    return (drawn[0] * (high - low) + low) * (size[1] / REFERENCE_HEIGHT), drawn[1] < 0.5


def _pixels(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=like.dtype)


def _chord(distance: Tensor, radius: Tensor) -> Tensor:
    """Half the length of a circle's chord at this distance from its centre."""
    return (radius.square() - distance.square()).clamp_min(0).sqrt()


def _interval(low: Tensor, high: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The x with low <= slope x <= high: from, to. A slope of 0 counts as one that no view could show."""
    slope = torch.where(slope.abs() < TINY, TINY, slope)
    one, other = low / slope, high / slope
    return torch.minimum(one, other), torch.maximum(one, other)


def _filled(left: Tensor, right: Tensor, width: int) -> Tensor:
    """Pixels with left <= x <= right in any of n regions: left, right (B, n, H) -> (B, H, W) bool.

    A step up where a span starts and down behind its end; their running sum counts the spans over a pixel.
    """
    start = left.ceil().clamp(0, width).long().transpose(1, 2)  # (B, H, n)
    stop = (right.floor() + 1).clamp(0, width).long().transpose(1, 2)
    one = torch.ones((), dtype=torch.int8, device=left.device).expand(start.shape)
    steps = torch.zeros(*start.shape[:2], width + 1, dtype=torch.int8, device=left.device)
    steps.scatter_add_(2, start, one).scatter_add_(2, torch.maximum(start, stop), -one)
    return steps[..., :width].cumsum(2, dtype=torch.int8) > 0
