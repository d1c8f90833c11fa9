"""Training of the person detector on whole frames of the generic and the source look."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sagecache.models.convnet import PersonDetector
from sagecache.teachers.demo import DemoDetector
from sagecache.teachers.measure import detection_ap50

from .photometry import degrade
from .world import SIDE, World

SIZE = PersonDetector.INPUT_SIZE[0]
CELLS = SIZE // PersonDetector.STRIDE


class Frames:
    """Frames and boxes xyxy (n, 4) in continuous pixels (pixel i covers [i, i + 1]), from several worlds."""

    def __init__(self, worlds: list[World]) -> None:
        self.images, self.boxes = [], []
        for world in worlds:
            self.images += list(world.images)
            edges = np.concatenate([world.bboxes[:, :2], world.bboxes[:, :2] + world.bboxes[:, 2:]], 1) + 0.5
            self.boxes += [edges[world.persons[:, 0] == image] for image in range(len(world.images))]

    def coco(self) -> dict:
        """Ground truth as COCO, pixel centres at integers."""
        annotations = []
        for image, boxes in enumerate(self.boxes):
            for x0, y0, x1, y1 in boxes.astype(float):
                box = [x0 - 0.5, y0 - 0.5, x1 - x0, y1 - y0]
                annotations.append(dict(image_id=image, category_id=1, bbox=box))
        images = [dict(id=image) for image in range(len(self.images))]
        return dict(images=images, annotations=annotations, categories=[dict(id=1, name="person")])


def place(image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A frame zoomed, stretched, shifted, mirrored or transposed in the detector's picture, with its boxes.

    Small frames lie on their mean colour, as the letterbox of the product does; boxes are clipped to the
    picture and those that lose half of their area are dropped.
    """
    if rng.random() < 0.5:
        image, boxes = image.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    if rng.random() < 0.5:
        image, boxes = (
            image[:, ::-1],
            np.stack([SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]], 1),
        )
    if rng.random() < 0.5:
        image, boxes = (
            image[::-1],
            np.stack([boxes[:, 0], SIDE - boxes[:, 3], boxes[:, 2], SIDE - boxes[:, 1]], 1),
        )
    zoom = SIZE / SIDE * np.exp(rng.uniform(np.log(0.6), np.log(1.25)))
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    scale = np.array([zoom * stretch, zoom / stretch])
    offset = (SIZE - SIDE * scale) / 2 + rng.uniform(-0.5, 0.5, 2) * np.abs(SIZE - SIDE * scale)
    matrix = np.c_[np.diag(scale), scale * 0.5 + offset - 0.5]
    mean = tuple(float(v) for v in image.reshape(-1, 3).mean(0))
    image = cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), max(0.35 / zoom, 0.3))
    picture = cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=mean)
    moved = boxes * np.tile(scale, 2) + np.tile(offset, 2)
    clipped = moved.clip(0, SIZE)
    area, left = ((b[:, 2:] - b[:, :2]).prod(1) for b in (moved, clipped))
    return picture, clipped[left > 0.5 * area]


def targets(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre map (h, w) in [0, 1], weight of the sides (h, w), and their distances (4, h, w) in cells.

    A Gaussian of an eighth of the box about its centre; where two overlap the nearer centre owns the cell.
    """
    heat, weight = np.zeros((2, CELLS, CELLS), np.float32)
    sides = np.ones((4, CELLS, CELLS), np.float32)
    grid = np.arange(CELLS) + 0.5
    for x0, y0, x1, y1 in boxes / PersonDetector.STRIDE:
        across = (grid - (x0 + x1) / 2) ** 2 / (2 * ((x1 - x0) / 8 + 0.3) ** 2)
        down = (grid - (y0 + y1) / 2) ** 2 / (2 * ((y1 - y0) / 8 + 0.3) ** 2)
        bell = np.exp(-(down[:, None] + across[None]))
        owned = (bell > heat) & (bell > 0.3)
        heat = np.maximum(heat, bell)
        row, column = (min(int((low + high) / 2), CELLS - 1) for low, high in ((y0, y1), (x0, x1)))
        heat[row, column] = 1
        weight[owned] = bell[owned]
        here = np.stack(
            np.broadcast_arrays(grid[None] - x0, grid[:, None] - y0, x1 - grid[None], y1 - grid[:, None])
        )
        sides[:, owned] = here[:, owned].clip(min=0.3)
    return heat.astype(np.float32), weight, sides


class FrameSource:
    """make(rng) for training.Batches: pictures (B, 3, H, W) uint8 and the three targets."""

    def __init__(self, frames: Frames, batch: int = 24) -> None:
        self.frames, self.batch = frames, batch

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        pictures, goals = [], []
        for index in rng.integers(0, len(self.frames.images), self.batch):
            picture, boxes = place(self.frames.images[index], self.frames.boxes[index], rng)
            pictures.append(degrade(picture, rng) if rng.random() < 0.85 else picture)
            goals.append(targets(boxes))
        images = np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))
        return (
            torch.from_numpy(images),
            *(torch.from_numpy(np.stack(goal)) for goal in zip(*goals, strict=True)),
        )


def loss(net: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """CenterNet's focal loss of the centres plus -log IoU of the boxes near them."""
    images, heat, weight, sides = batch
    out = net((images.float() / 255).contiguous(memory_format=torch.channels_last))
    log_yes, log_no = F.logsigmoid(out[:, 0]), F.logsigmoid(-out[:, 0])
    found = (heat == 1).float()
    hit = found * log_no.exp() ** 2 * log_yes
    miss = (1 - found) * (1 - heat) ** 4 * log_yes.exp() ** 2 * log_no
    centre = -(hit + miss).sum() / found.sum().clamp_min(1)
    left, top, right, bottom = out[:, 1:].clamp(-4, 5).exp().unbind(1)
    x0, y0, x1, y1 = sides.unbind(1)
    overlap = (torch.minimum(left, x0) + torch.minimum(right, x1)) * (
        torch.minimum(top, y0) + torch.minimum(bottom, y1)
    )
    union = (left + right) * (top + bottom) + (x0 + x1) * (y0 + y1) - overlap
    box = (-(overlap / union).log() * weight).sum() / weight.sum().clamp_min(1)
    return centre + 2 * box, dict(centre=centre.detach(), box=box.detach())


class Evaluation:
    """AP50 on frames of a look that the detector never saw."""

    def __init__(self, world: World) -> None:
        self.frames = Frames([world])
        self.truth = self.frames.coco()

    def __call__(self, net: nn.Module) -> dict[str, float]:
        detector = DemoDetector(score=0.01, net=net, weights_hash="in training")
        predictions = []
        for image, (boxes, scores) in enumerate(detector(self.frames.images)):
            for (x0, y0, x1, y1), score in zip(boxes.astype(float), scores, strict=True):
                box = [x0, y0, x1 - x0, y1 - y0]
                predictions.append(dict(image_id=image, category_id=1, bbox=box, score=float(score)))
        return dict(ap50=detection_ap50(predictions, self.truth))
