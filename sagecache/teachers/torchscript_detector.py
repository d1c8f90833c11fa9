"""Persons by any detector exported to TorchScript: YOLO, RTMDet and others, each with its layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sagecache.errors import SagecacheError, nearest
from sagecache.strict import positive
from sagecache.teachers.base import file_hash, in_threads, known_device, to_tensor
from sagecache.teachers.detectors import BATCH, OF_OTHERS, BoxRule, Found, letterbox
from sagecache.teachers.torchscript import load_torchscript

LAYOUTS = ("xyxy", "cxcywh")


@dataclass(frozen=True)
class TorchScriptDetectorSettings:
    """What a detector's TorchScript file takes and gives.

    It takes (B, 3, H, W) of input_size (width, height), letterboxed, RGB grey levels minus mean over std, and
    returns a tuple: boxes (B, N, 4) and scores (B, N) or (B, N, classes); or boxes with the score in front of
    them, (B, N, 5), and labels (B, N), as mmdeploy exports. box_layout: 'xyxy' | 'cxcywh'. unit_boxes: True
    where boxes are shares of the input instead of its pixels. person: index of the class that counts.
    score, nms, limit: as in BoxRule, by default those of OF_OTHERS. device: where it runs.
    """

    path: str
    input_size: tuple[int, int] = (640, 640)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    box_layout: str = "xyxy"
    unit_boxes: bool = False
    person: int = 0
    score: float = OF_OTHERS.score
    nms: float = OF_OTHERS.nms
    limit: int = OF_OTHERS.limit
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.box_layout not in LAYOUTS:
            raise SagecacheError(
                f"unknown box_layout '{self.box_layout}'", fix=nearest(self.box_layout, LAYOUTS)
            )
        known_device(self.device)
        for name in ("std", "input_size"):
            for value in getattr(self, name):
                positive(name, value)

    @property
    def rule(self) -> BoxRule:
        return BoxRule(self.score, self.nms, self.limit)


class TorchScriptDetector:
    """Persons by a TorchScript file; see TorchScriptDetectorSettings. Raises SagecacheError without it."""

    def __init__(self, settings: TorchScriptDetectorSettings) -> None:
        self._settings, self._path = settings, Path(settings.path)
        if not self._path.is_file():
            raise SagecacheError(
                "TorchScript file not found", file=self._path, fix="Correct its path in data.py."
            )
        self._hash, self._rule = file_hash(self._path), settings.rule

    def __call__(self, images: list[np.ndarray]) -> list[Found]:
        _ = self._module  # loaded once, before threads ask for it
        if torch.device(self._settings.device).type == "cpu":
            raw = in_threads(lambda image: self._answers([image])[0], images)
        else:
            parts = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
            raw = [one for part in parts for one in self._answers(part)]
        return [
            self._rule(boxes, scores, (image.shape[1], image.shape[0]))
            for image, (boxes, scores) in zip(images, raw, strict=True)
        ]

    def fingerprint(self) -> dict[str, object]:
        values = {
            key: value for key, value in asdict(self._settings).items() if key not in ("path", "device")
        }
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return dict(name="torchscript-detector", weights=self._hash, preprocessing=values)

    @cached_property
    def _module(self) -> torch.jit.ScriptModule:
        return load_torchscript(self._path, self._settings.device)

    @torch.inference_mode()
    def _answers(self, images: Sequence[np.ndarray]) -> list[Found]:
        settings = self._settings
        fitted = [letterbox(image, settings.input_size) for image in images]
        pixels = to_tensor(np.stack([picture for picture, _, _ in fitted]), settings.device)
        mean, std = (pixels.new_tensor(value).view(3, 1, 1) for value in (settings.mean, settings.std))
        try:
            answer = self._module((pixels - mean) / std)
        except (RuntimeError, torch.jit.Error) as error:  # the last is what a script raises itself
            reason = [line for line in str(error).strip().splitlines() if line.strip()][-1]
            raise SagecacheError(
                f"the network failed on a batch {tuple(pixels.shape)}: {reason}",
                file=self._path,
                fix="Check input_size.",
            ) from error
        boxes, scores = self._boxes_and_scores(answer, len(images))
        return [
            ((box - np.array([*offset, *offset])) / scale - 0.5, score)
            for box, score, (_, scale, offset) in zip(boxes, scores, fitted, strict=True)
        ]

    def _boxes_and_scores(self, answer: object, count: int) -> Found:
        """Boxes xyxy (B, N, 4), continuous pixels of the input, and scores (B, N) of persons."""
        person, (width, height) = self._settings.person, self._settings.input_size
        first, second = self._checked(answer, count)
        first = first.double()
        if first.shape[2] == 5:
            boxes, scores = first[..., :4], torch.where(second == person, first[..., 4], 0)
        else:
            boxes, scores = first, (second[..., person] if second.ndim == 3 else second).double()
        if self._settings.unit_boxes:
            boxes = boxes * boxes.new_tensor([width, height, width, height])
        if self._settings.box_layout == "cxcywh":
            middle, half = boxes[..., :2], boxes[..., 2:] / 2
            boxes = torch.cat([middle - half, middle + half], -1)
        return boxes.cpu().numpy(), scores.double().cpu().numpy()

    def _checked(self, answer: object, count: int) -> tuple[Tensor, Tensor]:
        """The first two of what the file returns, in shapes that settings tell of. Raises SagecacheError."""
        several = isinstance(answer, (tuple, list))
        parts = tuple(answer[:2]) if several else ()
        if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts) or not _fit(*parts, count):
            named = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in parts]
            raise SagecacheError(
                f"the file returns {named if several else type(answer).__name__}, expected "
                "boxes (B, N, 4) and scores (B, N) or (B, N, classes), or boxes with scores (B, N, 5) and "
                f"labels (B, N), where B is {count}",
                file=self._path,
                fix="Export it so.",
            )
        person, second = self._settings.person, parts[1]
        if second.ndim == 3 and not 0 <= person < second.shape[2]:
            raise SagecacheError(
                f"person is class {person}, the file has {second.shape[2]} classes, counted from 0",
                file=self._path,
                fix="Correct person in data.py.",
            )
        return parts


def _fit(first: Tensor, second: Tensor, count: int) -> bool:
    """Whether boxes, and what stands beside them, are of one batch, as many, and in a layout that is read."""
    ranks = {4: (2, 3), 5: (2,)}
    right = first.ndim == 3 and len(first) == count and second.ndim in ranks.get(first.shape[2], ())
    return right and second.shape[:2] == first.shape[:2]
