"""A teacher and a detector that are exact functions of the pixels, and images for them."""

import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from sagecache.precompute.jobs import DetectJob, GeoJob
from sagecache.precompute.plan import CropRule
from sagecache.structures import Instance
from sagecache.teachers.base import TeacherSpec

SPEC = TeacherSpec("toy", (12, 16), (6, 8), ("depth", "normal", "mask"), "metric", "m")


class ToyTeacher:
    """Depth, normals and mask from colours; notes the size of each batch, and waits a little where asked.

    poison: first pixel of a crop -> what to spoil: 'nan', 'empty' or 'flat' (normals without length).
    """

    def __init__(self, spec: TeacherSpec = SPEC, pause: float = 0.0, version: int = 1) -> None:
        self.spec, self.pause, self.version = spec, pause, version
        self.batches: list[int] = []
        self.poison: dict[int, str] = {}

    def fingerprint(self) -> dict:
        return {"name": "toy", "version": self.version}

    def __call__(self, crops: np.ndarray) -> dict[str, torch.Tensor]:
        self.batches.append(len(crops))
        time.sleep(self.pause)
        small = torch.from_numpy(crops[:, ::2, ::2].copy()).float().permute(0, 3, 1, 2) / 255
        maps = {
            "depth": 2 + small[:, :1],
            "normal": torch.cat([small[:, :2] - 0.5, -torch.ones_like(small[:, :1])], 1),
            "mask": (small[:, 2:] > 0.3).float(),
        }
        for position, value in enumerate(crops[:, 0, 0, 0].tolist()):
            _spoil(maps, position, self.poison.get(value, ""))
        return {name: maps[name] for name in self.spec.outputs}


def _spoil(maps: dict[str, torch.Tensor], position: int, how: str) -> None:
    if how == "nan":
        maps["depth"][position] = float("nan")
    elif how == "empty":
        maps["mask"][position] = 0
    elif how == "flat":
        maps["normal"][position] = 0


class ToyDetector:
    """As many boxes as the image's first pixel says, modulo four; one more without area."""

    def __init__(self, pause: float = 0.0, score: float = 0.3) -> None:
        self.pause, self.score = pause, score
        self.batches: list[int] = []

    def fingerprint(self) -> dict:
        return {"name": "toy", "score": self.score}

    def __call__(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        self.batches.append(len(images))
        time.sleep(self.pause)
        found = []
        for image in images:
            count = int(image[0, 0, 0]) % 4
            boxes = [[1.126 + k, 2 + k, 20 + k, 30.25] for k in range(count)] + [[5, 5, 5, 9]]
            scores = [1 / (k + 3) for k in range(count + 1)]
            found.append((np.array(boxes, np.float32), np.array(scores, np.float32)))
        return found


def write_images(folder: Path, count: int, seed: int = 0) -> list[tuple[int, Path]]:
    """(image_id, path) of small noisy pictures with ids 3, 4, …"""
    folder.mkdir(parents=True, exist_ok=True)
    rng, images = np.random.default_rng(seed), []
    for image_id in range(3, 3 + count):
        path = folder / f"{image_id:012d}.png"
        pixels = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (40, 50))
        assert cv2.imwrite(str(path), pixels)
        images.append((image_id, path))
    return images


def make_instances(images: Sequence[tuple[int, Path]], each: int = 2) -> list[Instance]:
    return [
        Instance(image_id, number, path, (4.0 + 3 * number, 5.0, 20.0, 30.0))
        for image_id, path in images
        for number in range(each)
    ]


def geo_job(root: Path, instances: Sequence[Instance], shard_size: int = 4, batch_size: int = 3) -> GeoJob:
    return GeoJob(
        root,
        instances,
        CropRule(),
        {"split": "x", "command": "sagecache precompute geo --split x"},
        shard_size,
        batch_size,
    )


def detect_job(folder: Path, images: Sequence[tuple[int, Path]]) -> DetectJob:
    return DetectJob(folder / "detections.json", images, part_size=3, batch_size=2)
