"""A view: one input of the network, cut from its image by one affine warp, then changed in colour.

The geometry of a view is a matrix, ``view_from_image = view_from_crop @ crop_from_image``: the pixels are
sampled once, from the source, and keypoints, heatmaps and predictions follow by the same matrix. The
photometric change never moves anything. Knows images and boxes; no files, no torch tensors, no losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import cv2
import numpy as np

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import Size, apply_affine, augment_affine, crop_affine

# Blur and cut-outs are stated for a view of this height and grow with it.
REFERENCE_HEIGHT = 128
BLUR_SIGMA = (0.4, 1.2)
CUTOUT_SIDE = (8, 36)
# Middle grey, about which contrast is changed: rendered and real photos both average near it.
PIVOT = 110.0


@dataclass(frozen=True)
class ViewConfig:
    """How far a random view may stray. All zero is the plain crop; each key acts on its own.

    Geometry (scale and shift also stand for the error of a detected box):
    rotation: largest turn, degrees. scale: .3 zooms by a factor between 1/1.3 and 1.3, log-uniform.
    shift: largest displacement, fraction of the view's width and height. flip: probability of mirroring.
    Colour:
    colour: strength of the change in contrast, brightness and colour balance, 1 = up to double contrast.
    grey: probability of losing colour. blur: probability of a Gaussian blur of .4 to 1.2 px.
    noise: largest standard deviation, grey levels. cutout: largest number of flat boxes.
    fill: probability that what lies outside the image is one flat colour rather than its replicated edge.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    flip: float = 0.0
    colour: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    cutout: int = 0
    fill: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise SagecacheError(f"{field.name} must be a number >= 0, got {value!r}", record="view")
        for name in ("flip", "grey", "blur", "fill"):
            if getattr(self, name) > 1:
                raise SagecacheError(f"{name} is a probability, got {getattr(self, name)}", record="view")
        if self.colour > 1:
            raise SagecacheError(f"colour must lie in [0, 1], got {self.colour}", record="view")
        if self.cutout != int(self.cutout):
            raise SagecacheError(f"cutout is a count, got {self.cutout}", record="view")


# The strong view with which the demo's consistency gains were found (see docs/results.md for the figures).
STRONG = ViewConfig(
    rotation=45, scale=0.3, shift=0.08, flip=0.5, colour=0.35, grey=0.2, blur=0.28, noise=8, cutout=2, fill=1
)


@dataclass(frozen=True, slots=True)
class View:
    """image (H, W, 3) uint8 RGB; view_from_image (3, 3) float64."""

    image: np.ndarray
    view_from_image: np.ndarray


def make_view(
    image: np.ndarray,
    bbox: tuple[float, float, float, float],
    size: Size,
    padding: float,
    config: ViewConfig,
    rng: np.random.Generator,
) -> View:
    """Draw one view of a person.

    image (H, W, 3) uint8 RGB; bbox (x, y, w, h) in image pixels; size (width, height) of the view;
    padding as in crop_affine. The same rng state gives the same view.
    """
    view_from_image = _random_affine(size, config, rng) @ crop_affine(bbox, size, padding)
    border = tuple(rng.integers(60, 180, 3).tolist()) if rng.random() < config.fill else None
    return View(recolour(warp_image(image, view_from_image, size, border), config, rng), view_from_image)


def _random_affine(size: Size, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """view_from_crop (3, 3), drawn within the bounds of config."""
    return augment_affine(
        size,
        rotation=rng.uniform(-config.rotation, config.rotation),
        scale=math.exp(rng.uniform(-1, 1) * math.log1p(config.scale)),
        shift=tuple(rng.uniform(-config.shift, config.shift, 2)),
        flip=rng.random() < config.flip,
    )


# --- geometry ------------------------------------------------------------------------------------


def warp_image(
    image: np.ndarray, view_from_image: np.ndarray, size: Size, border: tuple[int, int, int] | None = None
) -> np.ndarray:
    """Resample image (H, W, 3) uint8 by view_from_image (3, 3), bilinearly and without aliasing.

    Only the part that the view covers is touched, and where the view shrinks it, that part is averaged
    first: the cost follows the view's size, not the photo's. border: RGB outside the image, None replicates
    its edge. Returns (height, width, 3) uint8 for size (width, height).
    """
    scale = math.sqrt(abs(np.linalg.det(view_from_image[:2, :2])))
    block = max(1, min(int(1 / scale), *image.shape[:2]))
    patch, patch_from_image = _covered(image, view_from_image, size, block)
    if block > 1:
        height, width = patch.shape[:2]
        patch = cv2.resize(patch, (width // block, height // block), interpolation=cv2.INTER_AREA)
        offset = 0.5 / block - 0.5
        patch_from_image = (
            np.array([[1 / block, 0, offset], [0, 1 / block, offset], [0, 0, 1]]) @ patch_from_image
        )
    left = scale * block  # what remains to shrink after the blocks: above .5
    if left < 0.8:
        patch = cv2.GaussianBlur(patch, (0, 0), 0.35 / left, borderType=cv2.BORDER_REPLICATE)
    matrix = view_from_image @ np.linalg.inv(patch_from_image)
    mode = cv2.BORDER_REPLICATE if border is None else cv2.BORDER_CONSTANT
    value = (0, 0, 0) if border is None else border
    return cv2.warpAffine(patch, matrix[:2], size, flags=cv2.INTER_LINEAR, borderMode=mode, borderValue=value)


def _covered(
    image: np.ndarray, view_from_image: np.ndarray, size: Size, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """The part of image that the view sees, with a margin for filters, whole blocks wide and high.

    block is at most the image's width and height. At the image's far edge up to block - 1 of its pixels,
    less than one of the view, are left out.
    Returns the patch (a slice) and patch_from_image.
    """
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [size[0] - 1, 0], [0, size[1] - 1], [size[0] - 1, size[1] - 1]], dtype=float)
    seen = apply_affine(np.linalg.inv(view_from_image), corners)
    margin = 4 * block + 4
    low = np.clip(np.floor(seen.min(0)).astype(int) - margin, 0, [width - block, height - block])
    high = np.clip(np.ceil(seen.max(0)).astype(int) + margin + 1, low + block, [width, height])
    spans = (high - low) // block * block
    patch = image[low[1] : low[1] + spans[1], low[0] : low[0] + spans[0]]
    return patch, np.array([[1.0, 0.0, -low[0]], [0.0, 1.0, -low[1]], [0.0, 0.0, 1.0]])


def move_keypoints(
    keypoints: np.ndarray, view_from_image: np.ndarray, size: Size, flip_indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Annotated joints in a view; in a mirrored view left and right change names.

    keypoints (K, 3): x, y in image pixels and COCO's v; size (width, height) of the view.
    Returns positions (K, 2) float32 in view pixels and visible (K,) float32: 1 where v > 0 (labeled,
    occluded or not) and the joint lies in the view, else 0.
    """
    if np.linalg.det(view_from_image[:2, :2]) < 0:
        keypoints = keypoints[flip_indices]
    moved = apply_affine(view_from_image, keypoints[:, :2].astype(np.float64))
    in_view = ((moved >= -0.5) & (moved < np.array(size) - 0.5)).all(axis=1)
    return moved.astype(np.float32), ((keypoints[:, 2] > 0) & in_view).astype(np.float32)


# --- colour --------------------------------------------------------------------------------------


def recolour(image: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Photometric change of a view (H, W, 3) uint8 RGB: tone, grey, blur, cut-outs, noise, in this order.

    Noise comes last, as in a camera: a cut-out without it would be the only clean patch of the picture.
    """
    size_factor = image.shape[0] / REFERENCE_HEIGHT
    if config.colour:
        image = cv2.LUT(image, _tone_table(config.colour, rng))
    if rng.random() < config.grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < config.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*BLUR_SIGMA) * size_factor)
    if config.cutout:
        image = _cut_out(image, int(rng.integers(0, config.cutout + 1)), size_factor, rng)
    if config.noise:
        # one draw for all three channels: sensors at night lose brightness, not hue
        noise = rng.standard_normal(image.shape[:2], dtype=np.float32) * rng.uniform(0, config.noise)
        image = cv2.add(image, cv2.merge([noise] * 3), dtype=cv2.CV_8U)
    return image


def _tone_table(strength: float, rng: np.random.Generator) -> np.ndarray:
    """Look-up table (1, 256, 3): contrast about PIVOT, by channel, and brightness."""
    contrast = (1 + strength * rng.uniform(-1, 1)) * (1 + 0.5 * strength * rng.uniform(-1, 1, 3))
    brightness = 60 * strength * rng.uniform(-1, 1)
    levels = (np.arange(256)[:, None] - PIVOT) * contrast + PIVOT + brightness
    return levels.clip(0, 255).astype(np.uint8)[None]


def _cut_out(image: np.ndarray, count: int, size_factor: float, rng: np.random.Generator) -> np.ndarray:
    """Paint count flat boxes with sides of 8 to 36 px (at 128 px), their corners anywhere in the view."""
    height, width = image.shape[:2]
    low, high = (max(1, round(side * size_factor)) for side in CUTOUT_SIDE)
    image = image.copy()
    for _ in range(count):
        box_width, box_height = rng.integers(low, high + 1, 2)
        top, left = rng.integers(0, max(1, height - low)), rng.integers(0, max(1, width - low))
        image[top : top + box_height, left : left + box_width] = rng.integers(30, 220, 3)
    return image
