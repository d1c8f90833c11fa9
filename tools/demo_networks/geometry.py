"""Training of the geometry teacher: crops of lying infants, photometry drawn while training, losses.

One affine, image -> crop, moves the picture, the depth, the normals and the mask of a crop together.
Pixel centres are integers; half-resolution geometry (see world.py) lies at image pixel 2 i.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from sagecache.geometry.affine import crop_affine
from sagecache.models.convnet import GeometryMaps, GeometryNet
from sagecache.teachers.demo import DemoGeometry
from sagecache.teachers.measure import geometry_errors, mean_errors

from .photometry import degrade
from .world import World

WIDTH, HEIGHT = GeometryNet.INPUT_SIZE
STRIDE = GeometryNet.STRIDE
ROTATION_SD = 4.0  # degrees; the pictures themselves are rolled more


@dataclass(frozen=True)
class Crop:
    """image (h, w, 3) uint8; relief (1, ·, ·) in crop widths, normals (3, ·, ·); person, valid bool."""

    image: np.ndarray
    relief: np.ndarray
    normals: np.ndarray
    person: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Placement:
    """How a person lies in the crop: rotation (radians), mirror, padding of its box, shift in crop sides."""

    rotation: float = 0.0
    mirror: bool = False
    padding: float = 1.25
    shift: tuple[float, float] = (0.0, 0.0)
    border: int = cv2.BORDER_REPLICATE
    border_value: tuple[int, int, int] = (0, 0, 0)


def draw_placement(rng: np.random.Generator) -> Placement:
    """Mirrored half of the time, padding 1.0 to 1.6; replicated, reflected or flat borders.

    Nearly upright, as pictures mostly are: what is higher in them lies farther off.
    """
    borders = [cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101, cv2.BORDER_CONSTANT]
    return Placement(
        rotation=np.radians(rng.normal(0, ROTATION_SD)),
        mirror=bool(rng.random() < 0.5),
        padding=1.25 * np.exp(rng.uniform(-0.223, 0.247)),
        shift=tuple(rng.normal(0, 0.04, 2)),
        border=int(rng.choice(borders, p=[0.6, 0.2, 0.2])),
        border_value=tuple(int(v) for v in rng.integers(0, 256, 3)),
    )


def place_person(points: np.ndarray, place: Placement) -> np.ndarray:
    """crop_from_image (2, 3) that fills the crop with the turned person.

    points (n, 2): the person's pixels. The box's edges land on pixel centres 0 and W - 1 before the
    padding, as in the product's crop rule.
    """
    c, s, m = np.cos(place.rotation), np.sin(place.rotation), -1 if place.mirror else 1
    turn = np.array([[c * m, -s], [s * m, c]])
    turned = points @ turn.T
    low, high = turned.min(0) - 1, turned.max(0) + 1
    width = max(high[0] - low[0], (high[1] - low[1]) * WIDTH / HEIGHT) * place.padding
    scale = (WIDTH - 1) / width
    middle = np.array([WIDTH - 1, HEIGHT - 1]) / 2 + np.array(place.shift) * (WIDTH, HEIGHT)
    return np.c_[scale * turn, middle - scale * (low + high) / 2]


def person_pixels(world: World, index: int) -> np.ndarray:
    """Image pixels (n, 2) of a person, every second one."""
    image, person = world.persons[index]
    rows, columns = np.nonzero(world.instances[image] == person)
    return 2.0 * np.stack([columns, rows], 1)


def cut(
    world: World,
    index: int,
    crop_from_image: np.ndarray,
    stride: int = STRIDE,
    border: int = cv2.BORDER_REPLICATE,
    border_value: tuple[int, int, int] = (0, 0, 0),
) -> Crop:
    """Crop one person: picture at full crop size, geometry at `stride`, all in crop axes.

    crop_from_image (2, 3): a similarity, possibly mirrored.
    """
    image, person = world.persons[index]
    linear, offset = crop_from_image[:, :2], crop_from_image[:, 2]
    options = dict(flags=cv2.INTER_LINEAR, borderMode=border, borderValue=border_value)
    picture = cv2.warpAffine(world.images[image], crop_from_image, (WIDTH, HEIGHT), **options)
    # half-resolution image -> image -> crop -> map (half-pixel centres)
    map_from_half = np.c_[2 * linear / stride, (offset + 0.5) / stride - 0.5]
    size = (WIDTH // stride, HEIGHT // stride)

    def warp(field: np.ndarray) -> np.ndarray:
        return cv2.warpAffine(field, map_from_half, size, flags=cv2.INTER_NEAREST)

    owner = warp(world.instances[image].astype(np.int16) + 2)  # 0 outside the frame
    mask = owner == person + 2
    depth = world.metric_depth(warp(world.depth[image]))
    centre = depth[mask].mean() if mask.any() else 1.0
    scale = np.sqrt(abs(np.linalg.det(linear)))
    # Weak perspective at the person's distance: relief in the unit of x, so that it agrees with the normals.
    relief = (depth / centre - 1) * (world.focal[image] * scale / WIDTH)
    normals = warp(world.normals[image]).astype(np.float32)
    normals[..., :2] = normals[..., :2] @ (linear / scale).T.astype(np.float32)  # x, y turn with the crop
    normals /= np.linalg.norm(normals, axis=2, keepdims=True) + 1e-6
    relief = np.clip(relief, -2, 2).astype(np.float32)
    return Crop(picture, relief[None], normals.transpose(2, 0, 1), mask[None], owner[None] > 0)


def cover(crop: Crop, rng: np.random.Generator) -> None:
    """Hide one or two rectangles, in place: flat colour in the picture, nothing asked of the geometry."""
    h, w = crop.valid.shape[1:]
    cell = crop.image.shape[1] // w
    for _ in range(rng.integers(1, 3)):
        rows, columns = rng.integers(2, h // 4), rng.integers(2, w // 4)
        y, x = rng.integers(0, h - rows), rng.integers(0, w - columns)
        crop.image[y * cell : (y + rows) * cell, x * cell : (x + columns) * cell] = rng.integers(0, 256, 3)
        crop.valid[:, y : y + rows, x : x + columns] = False


def training_crop(world: World, index: int, rng: np.random.Generator) -> Crop:
    """A crop, placed at random and degraded; one in five is partly covered."""
    place = draw_placement(rng)
    matrix = place_person(person_pixels(world, index), place)
    crop = cut(world, index, matrix, STRIDE, place.border, place.border_value)
    crop = Crop(degrade(crop.image, rng), crop.relief, crop.normals, crop.person, crop.valid)
    if rng.random() < 0.2:
        cover(crop, rng)
    return crop


def stack(crops: list[Crop]) -> tuple[Tensor, ...]:
    """images (B, 3, H, W) uint8, then relief, normals, person, valid as batches."""
    images = np.stack([crop.image for crop in crops]).transpose(0, 3, 1, 2)
    fields = [
        np.stack([getattr(crop, f) for crop in crops]) for f in ("relief", "normals", "person", "valid")
    ]
    return (torch.from_numpy(np.ascontiguousarray(images)), *(torch.from_numpy(f) for f in fields))


class CropSource:
    """make(rng) for training.Batches. Crops of half the size cost a third and teach far less."""

    def __init__(self, world: World, batch: int) -> None:
        self.world, self.batch = world, batch

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        picks = rng.integers(len(self.world.persons), size=self.batch)
        return stack([training_crop(self.world, int(i), rng) for i in picks])


def to_input(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> what GeometryNet wants."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def normal_loss(predicted: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Cosine plus half a chord: the chord keeps a gradient at small angles and is robust at large ones."""
    cosine = 1 - (predicted * true).sum(1, keepdim=True)
    chord = (2 * cosine.clamp_min(0) + 1e-4).sqrt()
    return ((cosine + 0.5 * chord) * weight).sum() / weight.sum()


def relief_losses(predicted: Tensor, true: Tensor, inside: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
    """(value, gradient) losses of the relief, free of its constant, divided by the TRUE relief's mean size.

    inside (B, 1, h, w) float: person pixels that count; around: background pixels that count a little.
    """
    count = inside.sum((2, 3), keepdim=True).clamp_min(20)

    def centre(x: Tensor) -> Tensor:
        return x - (x * inside).sum((2, 3), keepdim=True) / count

    true, predicted = centre(true), centre(predicted)
    size = (true.abs() * inside).sum((2, 3), keepdim=True) / count + 0.03
    error = (predicted - true) / size
    value = ((error.abs() * inside).sum((2, 3), keepdim=True) / count).mean()
    total = (inside + around).sum().clamp_min(1)
    value = value + 0.1 * ((predicted - true).abs().clamp(max=1) * (around > 0)).sum() / total
    gradient = value.new_zeros(())
    for step in (1, 2, 4):
        for axis in (2, 3):
            length = error.shape[axis] - step
            both = inside.narrow(axis, step, length) * inside.narrow(axis, 0, length)
            slope = error.narrow(axis, step, length) - error.narrow(axis, 0, length)
            gradient = gradient + (slope.abs().clamp(max=2) * both).sum() / both.sum().clamp_min(1) / 3
    return value, gradient


def plane_slopes(field: Tensor, inside: Tensor) -> Tensor:
    """Slopes (B, 2) per map width of the least-squares plane of field over inside, both (B, 1, h, w)."""
    h, w = field.shape[2:]
    x = ((torch.arange(w) + 0.5) / w).expand(h, w)
    y = ((torch.arange(h) + 0.5) / w)[:, None].expand(h, w)
    count = inside.sum((1, 2, 3)).clamp_min(20)

    def covariance(a: Tensor, b: Tensor) -> Tensor:
        mean_a, mean_b = ((v * inside).sum((1, 2, 3)) / count for v in (a, b))
        return (a * b * inside).sum((1, 2, 3)) / count - mean_a * mean_b

    xx, yy, xy = covariance(x, x) + 1e-3, covariance(y, y) + 1e-3, covariance(x, y)
    xf, yf = covariance(x, field), covariance(y, field)
    determinant = xx * yy - xy * xy
    return torch.stack([(yy * xf - xy * yf) / determinant, (xx * yf - xy * xf) / determinant], 1)


def loss(net: torch.nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum for one batch, and its parts."""
    images, relief, normals, person, valid = batch
    out: GeometryMaps = net(to_input(images))
    inside = (person & valid).float()
    around = 0.15 * (valid & ~person).float()
    normal = normal_loss(out.normals, normals, inside + around)
    depth, gradient = relief_losses(out.relief, relief, inside, around)
    cross = torch.nn.functional.binary_cross_entropy_with_logits(out.person, person.float(), reduction="none")
    mask = (cross * valid).sum() / valid.sum()
    tilt = plane_slopes(out.relief - relief, inside).abs().mean()
    total = 2 * normal + depth + 0.5 * gradient + 0.7 * mask + 2 * tilt
    parts = dict(normal=normal, depth=depth, gradient=gradient, mask=mask, tilt=tilt)
    return total, {key: part.detach() for key, part in parts.items()}


class Evaluation:
    """Errors on persons that no one trains on, cropped by the product's rule, at half the crop's size."""

    def __init__(self, world: World) -> None:
        crops = [
            cut(world, index, crop_affine(bbox, GeometryNet.INPUT_SIZE, 1.25)[:2], stride=2)
            for index, bbox in enumerate(world.bboxes)
        ]
        self.images = np.stack([crop.image for crop in crops])
        self.truth = [(crop.relief[0], crop.normals, crop.person[0]) for crop in crops]

    def __call__(self, net: torch.nn.Module, flip_test: bool = False) -> dict[str, float]:
        batch = 16
        teacher = DemoGeometry(flip_test, (WIDTH // 2, HEIGHT // 2), net, "in training")
        rows = []
        for first in range(0, len(self.images), batch):
            maps = {
                name: value.numpy() for name, value in teacher(self.images[first : first + batch]).items()
            }
            for index in range(len(maps["depth"])):
                depth, normals, mask = (maps[name][index] for name in ("depth", "normal", "mask"))
                rows.append(geometry_errors(depth[0], normals, mask[0] > 0.5, *self.truth[first + index]))
        return mean_errors(rows)
