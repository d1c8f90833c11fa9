"""Pretraining of the demo student on the source look: cross-entropy to a Gaussian in UDP heatmap pixels."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from sagecache.data.views import warp_image
from sagecache.geometry.affine import apply_affine, augment_affine, crop_affine, heatmap_affine
from sagecache.models.convnet import PIXEL_MEAN, PIXEL_STD, PoseNet
from sagecache.skeleton.definition import COCO17

from .world import World

SIZE = PoseNet.INPUT_SIZE
MAP_SIZE = (SIZE[0] // PoseNet.STRIDE, SIZE[1] // PoseNet.STRIDE)
SIGMA = 1.25  # cells
PADDING = 1.25
JOINTS = 17


class PoseModel(nn.Module):
    """PoseNet and its head under the key names of an mmpose model: backbone.*, head.final_layer.*"""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = PoseNet()
        self.head = nn.Module()
        self.head.final_layer = nn.Conv2d(self.backbone.out_channels, JOINTS, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head.final_layer(self.backbone(images)[0])


class CropTable:
    """Persons as upright crops with some margin, ready to be turned into views.

    crops (P, H, W, 3) uint8 of SIZE; keypoints (P, 17, 3) and diagonals (P,) of the boxes in crop pixels.
    """

    def __init__(self, world: World) -> None:
        crops, keypoints, diagonals = [], [], []
        for (image, _), bbox, joints in zip(world.persons, world.bboxes, world.keypoints, strict=True):
            matrix = crop_affine(bbox, SIZE, PADDING)
            crops.append(warp_image(world.images[image], matrix, SIZE))
            moved = np.c_[apply_affine(matrix, joints[:, :2]), joints[:, 2]]
            keypoints.append(moved.astype(np.float32))
            diagonals.append(np.hypot(bbox[2] * matrix[0, 0], bbox[3] * matrix[1, 1]))
        self.crops, self.keypoints = np.stack(crops), np.stack(keypoints)
        self.diagonals = np.array(diagonals)


def colour_jitter(image: np.ndarray, rng: np.random.Generator, strength: float = 0.1) -> np.ndarray:
    """Gain, offset and tint of a uint8 picture; mild, so that the target look stays unseen."""
    gain = (1 + strength * rng.uniform(-1, 1)) * (1 + 0.5 * strength * rng.uniform(-1, 1, 3))
    offset = 60 * strength * rng.uniform(-1, 1)
    levels = (np.arange(256)[:, None] - 110) * gain + 110 + offset
    image = cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8).reshape(1, 256, 3))
    if rng.random() < 0.6 * strength:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    if rng.random() < 0.8 * strength:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 1.2))
    noise = rng.standard_normal((*image.shape[:2], 1), np.float32) * np.float32(rng.uniform(0, 2))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def view(table: CropTable, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A turned, zoomed, shifted and possibly mirrored crop, and its keypoints (17, 3) in view pixels."""
    flip = bool(rng.random() < 0.5)
    shift = tuple(rng.uniform(-0.04, 0.04, 2))
    scale = float(np.exp(rng.uniform(-1, 1) * np.log(1.3)))
    matrix = augment_affine(SIZE, rng.uniform(-40, 40), scale, shift, flip)
    fill = tuple(int(v) for v in rng.integers(60, 180, 3))
    image = cv2.warpAffine(table.crops[index], matrix[:2], SIZE, flags=cv2.INTER_LINEAR, borderValue=fill)
    keypoints = table.keypoints[index].copy()
    keypoints[:, :2] = apply_affine(matrix, keypoints[:, :2])
    return colour_jitter(image, rng), keypoints[list(COCO17.flip_indices)] if flip else keypoints


class ViewSource:
    """make(rng) for training.Batches: images (B, 3, H, W) uint8 and keypoints (B, 17, 3)."""

    def __init__(self, table: CropTable, batch: int = 32) -> None:
        self.table, self.batch = table, batch

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        picks = rng.integers(0, len(self.table.crops), self.batch)
        views = [view(self.table, int(i), rng) for i in picks]
        images = np.ascontiguousarray(np.stack([v[0] for v in views]).transpose(0, 3, 1, 2))
        return torch.from_numpy(images), torch.from_numpy(np.stack([v[1] for v in views]).astype(np.float32))


def to_input(images: Tensor) -> Tensor:
    mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def gaussians(keypoints: Tensor) -> Tensor:
    """keypoints (B, K, 2) view pixels -> (B, K, h * w) maps that sum to 1 in view and fade outside."""
    scale = torch.tensor(np.diag(heatmap_affine(SIZE, MAP_SIZE))[:2], dtype=torch.float32)
    points = keypoints * scale
    x, y = torch.arange(MAP_SIZE[0]), torch.arange(MAP_SIZE[1])
    across = torch.exp(-((x - points[..., :1]) ** 2) / (2 * SIGMA**2))
    down = torch.exp(-((y - points[..., 1:]) ** 2) / (2 * SIGMA**2))
    maps = (down[..., :, None] * across[..., None, :]).flatten(2)
    return maps / maps.sum(2, keepdim=True).clamp_min(0.3 * 2 * np.pi * SIGMA**2)


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy between the Gaussian and the softmax over space, mean over annotated joints."""
    images, keypoints = batch
    logits = net(to_input(images)).flatten(2)
    known = (keypoints[..., 2] > 0).float()
    cross = -(gaussians(keypoints[..., :2]) * logits.log_softmax(2)).sum(2)
    value = (cross * known).sum() / known.sum().clamp_min(1)
    return value, dict(cross=value.detach())


class Evaluation:
    """PCK of the box diagonal over all annotated joints, averaged with the mirrored crop; true boxes."""

    def __init__(self, tables: dict[str, CropTable]) -> None:
        self.tables = tables

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> dict[str, float]:
        net.eval()
        marks = {}
        for name, table in self.tables.items():
            error = np.linalg.norm(predict(net, table.crops) - table.keypoints[..., :2], axis=2)
            known = table.keypoints[..., 2] > 0
            for share in (0.05, 0.1):
                hit = error < share * table.diagonals[:, None]
                marks[f"{name}_pck{share}"] = float(hit[known].mean())
        return marks


def predict(net: nn.Module, crops: np.ndarray, batch: int = 64) -> np.ndarray:
    """Keypoints (P, 17, 2) in crop pixels: softmax, mean with the mirrored crop, 5x5 centroid of the peak."""
    points = []
    for first in range(0, len(crops), batch):
        images = to_input(torch.from_numpy(crops[first : first + batch]).permute(0, 3, 1, 2))
        direct = net(images).flatten(2).softmax(2)
        shape = (len(images), JOINTS, MAP_SIZE[1], MAP_SIZE[0])
        mirrored = net(images.flip(3)).flatten(2).softmax(2).view(shape).flip(3)
        maps = (direct.view(shape) + mirrored[:, list(COCO17.flip_indices)]) / 2
        points.append(centroid(maps))
    scale = np.diag(heatmap_affine(SIZE, MAP_SIZE))[:2]
    return torch.cat(points).numpy() / scale


def centroid(maps: Tensor, radius: int = 2) -> Tensor:
    """Mean position (B, K, 2) of the mass within `radius` of each map's peak, in map pixels."""
    h, w = maps.shape[2:]
    peak = maps.flatten(2).argmax(2)
    x, y = torch.arange(w), torch.arange(h)
    across = ((x - (peak % w)[..., None]).abs() <= radius).float()
    down = ((y - (peak // w)[..., None]).abs() <= radius).float()
    near = maps * down[..., :, None] * across[..., None, :]
    mass = near.sum((2, 3))
    return torch.stack([(near.sum(2) * x).sum(2) / mass, (near.sum(3) * y).sum(2) / mass], -1)
