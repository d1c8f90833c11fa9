"""A view: one input of the network, cut from its image by one warp, then changed in colour.

The geometry of a view is a matrix, ``view_from_image = view_from_crop @ crop_from_image``, and in a distorted
view what `geometry.distortion` does after it. The pixels are sampled once, from the source; keypoints,
heatmaps and predictions follow by the same maps. The photometric change (`data.photometric`) never moves
anything. Knows images and boxes; no files, no torch tensors, no losses.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

import cv2
import numpy as np

from sagecache.data.photometric import recolour
from sagecache.errors import SagecacheError
from sagecache.geometry import distortion
from sagecache.geometry.affine import Size, apply_affine, augment_affine, crop_affine
from sagecache.geometry.distortion import CONTROL, IN_VIEW, MAX_BEND, NODES, Distortion

# Up to these one distortion shows only places that its lattice covers.
MAX_RADIAL, MAX_TILT = 0.5, 30.0
UPPER_BOUNDS = {"rotation": 180, "scale": 3, "shift": 1, "colour": 1, "magnitude": 1}
UPPER_BOUNDS |= {"radial": MAX_RADIAL, "tilt": MAX_TILT, "bend": MAX_BEND}


@dataclass(frozen=True)
class ViewConfig:
    """How far a random view may stray. All zero is the plain crop; each key acts on its own.

    Geometry (scale and shift also stand for the error of a detected box):
    rotation: largest turn, degrees, up to 180. scale: .3 zooms by a factor between 1/1.3 and 1.3,
    log-uniform; up to 3. shift: largest displacement, fraction of the view's width and height, up to 1, which
    is out of view. flip: probability of mirroring.
    Distortion, after the above; half of the views get each kind, with a strength of its own, uniform up to
    the largest: radial: |k1| of a lens, pincushion or barrel, with k2 up to k1 / 2 (`distortion.radial`).
    tilt: degrees by which the picture's plane is turned about an axis of any direction in it. bend: thin
    plate, displacement of its 4 x 4 control points along x and y, fraction of the view's width and height.
    Colour:
    colour: strength of the change in contrast, brightness and colour balance, 1 = up to double contrast.
    grey: probability of losing colour. blur: probability of a Gaussian blur of .4 to 1.2 px.
    noise: largest standard deviation, grey levels. cutout: largest number of flat boxes.
    fill: probability that what lies outside the image is one flat colour rather than its replicated edge.
    randaugment: number of operations of RandAugment without its geometric ones (`photometric.randaugment`),
    before the changes above. magnitude: their common strength, in [0, 1]; without randaugment unused.
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
    radial: float = 0.0
    tilt: float = 0.0
    bend: float = 0.0
    randaugment: int = 0
    magnitude: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise SagecacheError(f"{field.name} must be a number >= 0, got {value!r}", record="view")
        for name in ("flip", "grey", "blur", "fill"):
            if getattr(self, name) > 1:
                raise SagecacheError(f"{name} is a probability, got {getattr(self, name)}", record="view")
        for name, largest in UPPER_BOUNDS.items():
            if getattr(self, name) > largest:
                raise SagecacheError(
                    f"{name} must lie in [0, {largest:g}], got {getattr(self, name)}", record="view"
                )
        for name in ("cutout", "randaugment"):
            if getattr(self, name) != int(getattr(self, name)):
                raise SagecacheError(f"{name} is a count, got {getattr(self, name)}", record="view")

    @property
    def distorts(self) -> bool:
        """Whether views may change in ways that no matrix describes."""
        return bool(self.radial or self.tilt or self.bend)

    @property
    def moves(self) -> bool:
        """Whether views may show the content elsewhere than the plain crop does."""
        return bool(self.rotation or self.scale or self.shift or self.flip or self.distorts)


# The strong view with which the demo's consistency gains were found (see docs/results.md for the figures).
STRONG = ViewConfig(
    rotation=45, scale=0.3, shift=0.08, flip=0.5, colour=0.35, grey=0.2, blur=0.28, noise=8, cutout=2, fill=1
)


@dataclass(frozen=True, slots=True)
class View:
    """image (H, W, 3) uint8 RGB; view_from_image (3, 3) float64, and what distorts the view after it."""

    image: np.ndarray
    view_from_image: np.ndarray
    distortion: Distortion | None = None

    def lattices(self) -> np.ndarray:
        """forward and inverse (2, n, n, 2) float32; zeros, the identity, without a distortion."""
        if self.distortion is None:
            return np.zeros((2, NODES, NODES, 2), np.float32)
        return np.stack([self.distortion.forward, self.distortion.inverse]).astype(np.float32)


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
    bent = _random_distortion(size, config, rng)
    warped = warp_image(image, view_from_image, size, border, bent)
    return View(recolour(warped, config, rng), view_from_image, bent)


def _random_affine(size: Size, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """view_from_crop (3, 3), drawn within the bounds of config."""
    return augment_affine(
        size,
        rotation=rng.uniform(-config.rotation, config.rotation),
        scale=math.exp(rng.uniform(-1, 1) * math.log1p(config.scale)),
        shift=tuple(rng.uniform(-config.shift, config.shift, 2)),
        flip=rng.random() < config.flip,
    )


def _random_distortion(size: Size, config: ViewConfig, rng: np.random.Generator) -> Distortion | None:
    """Drawn within the bounds of config: bent, then tilted, then seen through a lens; or nothing at all."""
    drawn = []
    if config.bend and rng.random() < 0.5:
        drawn.append(distortion.thin_plate(rng.uniform(-config.bend, config.bend, (CONTROL, CONTROL, 2))))
    if config.tilt and rng.random() < 0.5:
        angle, direction = rng.uniform(0, config.tilt), rng.uniform(0, 2 * math.pi)
        drawn.append(distortion.tilt(angle * math.cos(direction), angle * math.sin(direction), size))
    if config.radial and rng.random() < 0.5:
        k1 = rng.uniform(-config.radial, config.radial)
        drawn.append(distortion.radial(k1, k1 * rng.uniform(0, 0.5), size))
    return functools.reduce(distortion.compose, drawn) if drawn else None


# --- geometry ------------------------------------------------------------------------------------


def warp_image(
    image: np.ndarray,
    view_from_image: np.ndarray,
    size: Size,
    border: tuple[int, int, int] | None = None,
    bent: Distortion | None = None,
) -> np.ndarray:
    """Resample image (H, W, 3) uint8 by view_from_image (3, 3), then bent, bilinearly and without aliasing.

    Only the part that the view covers is touched, and where the view shrinks it, that part is averaged
    first (in a distorted view by its mean shrinking): the cost follows the view's size, not the photo's.
    border: RGB outside the image, None replicates its edge. The pixels are sampled once, also where bent.
    Returns (height, width, 3) uint8 for size (width, height).
    """
    scale = math.sqrt(abs(np.linalg.det(view_from_image[:2, :2])))
    seen = _corners(size)
    if bent is not None:
        seen = distortion.node_positions(bent.inverse, size)
        scale /= math.sqrt(distortion.determinants(bent.inverse)[IN_VIEW, IN_VIEW].mean())
    seen = apply_affine(np.linalg.inv(view_from_image), seen)
    block = max(1, min(int(1 / scale), *image.shape[:2]))
    bounds = seen if bent is None else seen[IN_VIEW, IN_VIEW].reshape(-1, 2)
    patch, patch_from_image = _covered(image, bounds, block)
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
    mode = cv2.BORDER_REPLICATE if border is None else cv2.BORDER_CONSTANT
    options = dict(borderMode=mode, borderValue=(0, 0, 0) if border is None else border)
    if bent is not None:
        places = distortion.at_pixels(apply_affine(patch_from_image, seen), size)
        return cv2.remap(patch, places, None, cv2.INTER_LINEAR, **options)
    matrix = view_from_image @ np.linalg.inv(patch_from_image)
    return cv2.warpAffine(patch, matrix[:2], size, flags=cv2.INTER_LINEAR, **options)


def _corners(size: Size) -> np.ndarray:
    right, bottom = size[0] - 1, size[1] - 1
    return np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=float)


def _covered(image: np.ndarray, seen: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of image about the points seen (N, 2), with a margin for filters, whole blocks wide and high.

    block is at most the image's width and height. At the image's far edge up to block - 1 of its pixels,
    less than one of the view, are left out.
    Returns the patch (a slice) and patch_from_image.
    """
    height, width = image.shape[:2]
    margin = 4 * block + 4
    low = np.clip(np.floor(seen.min(0)).astype(int) - margin, 0, [width - block, height - block])
    high = np.clip(np.ceil(seen.max(0)).astype(int) + margin + 1, low + block, [width, height])
    spans = (high - low) // block * block
    patch = image[low[1] : low[1] + spans[1], low[0] : low[0] + spans[0]]
    return patch, np.array([[1.0, 0.0, -low[0]], [0.0, 1.0, -low[1]], [0.0, 0.0, 1.0]])


def move_keypoints(
    keypoints: np.ndarray,
    view_from_image: np.ndarray,
    size: Size,
    flip_indices: np.ndarray,
    bent: Distortion | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Annotated joints in a view; in a mirrored view left and right change names.

    keypoints (K, 3): x, y in image pixels and COCO's v; size (width, height) of the view.
    Returns positions (K, 2) float32 in view pixels and visible (K,) float32: 1 where v > 0 (labeled,
    occluded or not) and the joint lies in the view, else 0. Follows the matrix, then bent; a joint so far
    outside the plain view that bent does not cover it is not visible.
    """
    if np.linalg.det(view_from_image[:2, :2]) < 0:
        keypoints = keypoints[flip_indices]
    moved = apply_affine(view_from_image, keypoints[:, :2].astype(np.float64))
    known = np.True_
    if bent is not None:
        known = distortion.covered(moved, size)
        moved = distortion.bend(moved, bent.forward, size)
    in_view = known & ((moved >= -0.5) & (moved < np.array(size) - 0.5)).all(axis=1)
    return moved.astype(np.float32), ((keypoints[:, 2] > 0) & in_view).astype(np.float32)
