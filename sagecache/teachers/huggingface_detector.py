"""Persons by detectors out of Hugging Face folders: RT-DETR, D-FINE, DETR, YOLOS and their like.

On a CPU an image goes through alone, a thread each; on a GPU as many at once as have one size. Nothing is
padded, so no image changes another's boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sagecache.errors import SagecacheError, nearest
from sagecache.teachers.base import file_hash, in_threads, known_device, usable_device
from sagecache.teachers.detectors import BATCH, OF_OTHERS, BoxRule, Found
from sagecache.teachers.huggingface import (
    PERSON,
    PREPROCESSOR,
    architecture,
    class_indices,
    folder_hash,
    load_network,
    load_processor,
    told_of,
)


class HuggingFaceDetector:
    """Persons by a folder's network for object detection.

    path: folder that save_pretrained wrote, or a download of one, with its preprocessor_config.json.
    label: the class of its id2label that counts. score, nms, limit: as in BoxRule, by default
    those of OF_OTHERS. device: where it runs.
    Raises SagecacheError for a folder of something else, and without transformers.
    """

    def __init__(
        self,
        path: str,
        label: str = PERSON,
        score: float = OF_OTHERS.score,
        nms: float = OF_OTHERS.nms,
        limit: int = OF_OTHERS.limit,
        device: str = "cpu",
    ) -> None:
        self._folder, self._rule, self._device = Path(path), BoxRule(score, nms, limit), device
        known_device(device)
        self._hash = folder_hash(self._folder)
        labels = class_indices(self._folder)
        if label.lower() not in labels:
            raise SagecacheError(f"has no class '{label}'", file=self._folder, fix=nearest(label, labels))
        self._label, self._label_name = labels[label.lower()], label

    def __call__(self, images: list[np.ndarray]) -> list[Found]:
        return [
            self._rule(boxes, scores, (image.shape[1], image.shape[0]))
            for image, (boxes, scores) in zip(images, self._raw(images), strict=True)
        ]

    def fingerprint(self) -> dict[str, object]:
        page = self._folder / PREPROCESSOR
        preprocessing = file_hash(page) if page.is_file() else "none"
        rule = asdict(self._rule) | dict(label=self._label_name)
        return dict(name="huggingface-detector", weights=self._hash, preprocessing=preprocessing, rule=rule)

    @cached_property
    def _parts(self) -> tuple[torch.nn.Module, Any]:
        if not architecture(self._folder).endswith("ForObjectDetection"):
            raise SagecacheError(
                f"a {architecture(self._folder)} is no detector",
                file=self._folder,
                fix="Take a …ForObjectDetection.",
            )
        device, processor = usable_device(self._device), load_processor(self._folder)
        return load_network(self._folder).to(device), processor

    def _raw(self, images: list[np.ndarray]) -> list[Found]:
        _ = self._parts  # loaded once, before threads ask for it
        if torch.device(self._device).type == "cpu":
            return in_threads(lambda image: self._answers([image])[0], images)
        return [one for batch in _of_one_size(images, BATCH) for one in self._answers(batch)]

    @torch.inference_mode()
    def _answers(self, images: Sequence[np.ndarray]) -> list[Found]:
        network, processor = self._parts
        sizes = [image.shape[:2] for image in images]
        try:
            inputs = processor(images=list(images), input_data_format="channels_last", return_tensors="pt")
            outputs = network(pixel_values=inputs["pixel_values"].to(self._device))
            found = processor.post_process_object_detection(
                outputs, threshold=self._rule.score, target_sizes=sizes
            )
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise told_of(error, f"the network failed on images of {sizes}", self._folder) from error
        results = []
        for one in found:
            persons = one["labels"] == self._label
            # continuous coordinates (pixel i covers [i, i + 1]) -> centres at integers
            boxes = one["boxes"][persons].double().cpu().numpy() - 0.5
            results.append((boxes, one["scores"][persons].double().cpu().numpy()))
        return results


def _of_one_size(images: Sequence[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """The images in their order, in groups of neighbours of one size."""
    group: list[np.ndarray] = []
    for image in images:
        if group and (len(group) == most or image.shape != group[0].shape):
            yield group
            group = []
        group.append(image)
    if group:
        yield group
