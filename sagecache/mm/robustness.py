"""How a trained network holds up when its crops are disturbed: as in strong views, by a camera, by a patch.

Joints are found as in validation, and compared with the truth in the disturbed crop. The same seed disturbs
the same crop in the same way for every network, so their figures are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sagecache.data.dataset import Draw, LabeledViews
from sagecache.data.views import ViewConfig
from sagecache.errors import SagecacheError, nearest
from sagecache.mm.evaluate import evaluation_loader, network_to_judge
from sagecache.mm.samples import EvaluationCrops
from sagecache.project import Project
from sagecache.structures import Instance

# Keys of a view at strength 1, each kind about what training's strong views do; no zoom and no mirror image,
# so that PCK keeps its unit and joints their names.
KINDS: dict[str, dict[str, float]] = {
    "strong": dict(rotation=45, colour=0.35, grey=0.2, blur=0.28, noise=8, cutout=2, fill=0.5),
    "camera": dict(radial=0.25, tilt=15),
    "hidden": dict(),  # a flat patch about a joint; its side is strength times the crop's height
}
PROBABILITIES = ("grey", "blur", "fill")
TOLERANCE = 0.05  # of the box's diagonal
SEED = 20261


@dataclass(frozen=True, eq=False)
class Disturbed:
    """Sums over what was counted, by joint (K,): correct joints, all joints, their confidences.

    strength as in `view_config`. Of kind 'hidden' only joints beneath the patch count.
    """

    strength: float
    correct: np.ndarray
    counted: np.ndarray
    confidence: np.ndarray

    @property
    def pck(self) -> float:
        return float(self.correct.sum() / max(self.counted.sum(), 1))

    @property
    def mean_confidence(self) -> float:
        return float(self.confidence.sum() / max(self.counted.sum(), 1))

    def as_dict(self) -> dict[str, Any]:
        arrays = dict(correct=self.correct, counted=self.counted, confidence=self.confidence)
        return dict(strength=self.strength, **{name: value.tolist() for name, value in arrays.items()})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Disturbed:
        return cls(values["strength"], *(np.array(values[n]) for n in ("correct", "counted", "confidence")))


def view_config(kind: str, strength: float) -> ViewConfig:
    """The view that a strength asks for: keys grow in proportion, probabilities end at 1."""
    if kind not in KINDS:
        raise SagecacheError(f"unknown disturbance '{kind}'", fix=nearest(kind, KINDS))
    keys: dict[str, float] = {}
    for name, value in KINDS[kind].items():
        grown = value * strength
        keys[name] = min(1.0, grown) if name in (*PROBABILITIES, "colour") else grown
    if "cutout" in keys:
        keys["cutout"] = round(keys["cutout"])
    return ViewConfig(**keys)


class DisturbedCrops(EvaluationCrops):
    """Crops of annotated persons, disturbed, sampled as training views. Items as `EvaluationCrops`, keypoints
    in crop pixels, and

    ``truth`` (K, 2) crop pixels, ``counts`` (K,) bool: joints to judge, ``unit``: the box's diagonal there.
    """

    def __init__(self, project: Project, instances: Sequence[Instance], kind: str, strength: float) -> None:
        rules, config = project.data.evaluation, view_config(kind, strength)
        super().__init__(instances, project.model, rules, project.skeleton)
        self.views = LabeledViews(self.instances, self.size, rules.padding, config, project.skeleton)
        self.patch = round(strength * self.size[1]) if kind == "hidden" else 0

    def __getitem__(self, index: int) -> dict:
        item, instance = self.views[Draw(index, (SEED, index))], self.instances[index]
        image, counts = item["image"], item["visible"] > 0
        if self.patch:
            image, beneath = hide(
                image, item["keypoints"], counts, self.patch, np.random.default_rng((SEED, 1, index))
            )
            counts &= beneath
        scale = abs(np.linalg.det(item["view_from_image"][:2, :2].astype(np.float64))) ** 0.5
        return dict(
            inputs=torch.from_numpy(image[::-1].copy()),  # BGR, as mmpose's own crops
            data_samples=self._sample(instance, np.eye(3)),
            truth=item["keypoints"],
            counts=counts,
            unit=float(np.hypot(*instance.bbox[2:]) * scale),
        )


def hide(
    image: np.ndarray, keypoints: np.ndarray, visible: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a flat square about one of the visible joints; returns the image and which joints lie beneath.

    image (3, H, W) uint8, keypoints (K, 2) its pixels, visible (K,) bool, side pixels.
    """
    if not visible.any():
        return image, np.zeros(len(keypoints), bool)
    centre = keypoints[rng.choice(np.flatnonzero(visible))]
    low = np.round(centre - side / 2).astype(int)
    top, left = max(low[1], 0), max(low[0], 0)
    image = image.copy()
    image[:, top : low[1] + side, left : low[0] + side] = rng.integers(30, 220, (3, 1, 1))
    beneath = ((keypoints >= low - 0.5) & (keypoints <= low + side - 0.5)).all(1)
    return image, beneath


@torch.no_grad()
def disturbed(
    project: Project,
    checkpoint: Path,
    instances: Sequence[Instance],
    kind: str,
    strengths: Sequence[float],
    report: Callable[..., None] | None = None,
) -> list[Disturbed]:
    """Judge the EMA teacher of a checkpoint on crops of annotated persons, at each strength."""
    student = network_to_judge(project, checkpoint)
    found, joints = [], project.skeleton.num_keypoints
    for number, strength in enumerate(strengths):
        crops = DisturbedCrops(project, instances, kind, strength)
        sums = np.zeros((3, joints))
        for batch in evaluation_loader(crops):
            sums += _judge(student, batch)
        found.append(Disturbed(float(strength), *sums))
        if report is not None:
            report(number + 1, len(strengths), kind)
    return found


def _judge(student: torch.nn.Module, batch: dict[str, list]) -> np.ndarray:
    """(3, K): correct, counted, and summed confidence."""
    mmpose_batch = {key: batch[key] for key in ("inputs", "data_samples")}
    predicted = [sample.pred_instances for sample in student.test_step(mmpose_batch)]
    places = np.stack([np.asarray(one.keypoints[0]) for one in predicted])  # (B, K, 2)
    confidence = np.stack([np.asarray(one.keypoint_scores[0]) for one in predicted])  # (B, K)
    error = np.linalg.norm(places - np.stack(batch["truth"]), axis=-1)
    counts = np.stack(batch["counts"])
    correct = counts & (error <= TOLERANCE * np.array(batch["unit"])[:, None])
    return np.stack([correct.sum(0), counts.sum(0), (confidence * counts).sum(0)]).astype(np.float64)
