"""Photometric changes of a view: what a camera, its light and its file may do. Nothing ever moves.

`recolour` is what a view's configuration asks for; `randaugment` draws among Pillow's operations. Knows
pixels and random numbers; no boxes, no keypoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    from sagecache.data.views import ViewConfig

# Blur and cut-outs are stated for a view of this height and grow with it.
REFERENCE_HEIGHT = 128
BLUR_SIGMA = (0.4, 1.2)
CUTOUT_SIDE = (8, 36)
# Middle grey, about which contrast is changed: rendered and real photos both average near it.
PIVOT = 110.0
# What the operations of RandAugment do at magnitude 1 (Cubuk et al. 2020, as TensorFlow's and torchvision's).
ENHANCE = 0.9  # factors between .1 and 1.9
POSTERIZE_BITS = 4  # taken away from eight
JPEG_QUALITY = (95, 20)


def recolour(image: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Photometric change of a view (H, W, 3) uint8 RGB.

    RandAugment, tone, grey, blur, cut-outs, noise, in this order.

    Noise comes last, as in a camera: a cut-out without it would be the only clean patch of the picture.
    """
    size_factor = image.shape[0] / REFERENCE_HEIGHT
    if config.randaugment:
        image = randaugment(image, int(config.randaugment), config.magnitude, rng)
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


# --- RandAugment ---------------------------------------------------------------------------------


def randaugment(image: np.ndarray, operations: int, magnitude: float, rng: np.random.Generator) -> np.ndarray:
    """So many operations, each drawn anew from OPERATIONS, at one common magnitude.

    Cubuk et al. 2020 (arXiv 1909.13719) without the operations that move pixels (rotate, shear, translate),
    with the compression of a JPEG file besides. Strengthening and weakening are equally likely.
    image (H, W, 3) uint8 RGB -> the same.
    """
    picture = Image.fromarray(image)
    for choice in rng.integers(0, len(OPERATIONS), operations):
        picture = OPERATIONS[choice](picture, magnitude, rng)
    return np.array(picture)


def _enhance(kind: Callable) -> Callable:
    def operation(picture: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
        sign = 1 if rng.random() < 0.5 else -1
        return kind(picture).enhance(1 + sign * ENHANCE * magnitude)

    return operation


def _identity(picture: Image.Image, _magnitude: float, _rng: np.random.Generator) -> Image.Image:
    return picture


def _autocontrast(picture: Image.Image, _magnitude: float, _rng: np.random.Generator) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, _magnitude: float, _rng: np.random.Generator) -> Image.Image:
    return ImageOps.equalize(picture)


def _posterize(picture: Image.Image, magnitude: float, _rng: np.random.Generator) -> Image.Image:
    return ImageOps.posterize(picture, 8 - round(POSTERIZE_BITS * magnitude))


def _solarize(picture: Image.Image, magnitude: float, _rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(picture, round(256 * (1 - magnitude)))


def _jpeg(picture: Image.Image, magnitude: float, _rng: np.random.Generator) -> Image.Image:
    best, worst = JPEG_QUALITY
    quality = [cv2.IMWRITE_JPEG_QUALITY, round(best + (worst - best) * magnitude)]
    data = cv2.imencode(".jpg", np.array(picture)[..., ::-1], quality)[1]  # OpenCV's BGR
    return Image.fromarray(np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]))


OPERATIONS: tuple[Callable, ...] = (
    _identity,
    _autocontrast,
    _equalize,
    _posterize,
    _solarize,
    _jpeg,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
)
