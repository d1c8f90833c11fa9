"""What the store replaces: a training step that runs the frozen teacher itself, for the same targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sagecache.data.coco import read_image
from sagecache.data.dataset import build_loader
from sagecache.data.sampling import StepDraws
from sagecache.data.targets import dequantise
from sagecache.data.views import warp_image
from sagecache.geometry.affine import crop_affine, resize_affine
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.precompute.plan import BORDERS
from sagecache.store import StoreReader
from sagecache.structures import Instance, PseudoLabels, UnlabeledBatch
from sagecache.teachers.base import Teacher, TeacherSpec


class WithCrops(Dataset):
    """Training batches without a store, with the crops that the teacher would have been shown added.

    The loader's workers cut them, as they cut the views.
    """

    def __init__(self, steps: Dataset, instances: list[Instance], spec: TeacherSpec, crop) -> None:
        self.steps, self.spec, self.crop = steps, spec, crop
        self.instances = {one.key: one for one in instances}

    def __getitem__(self, draws: StepDraws) -> dict:
        batch = self.steps[draws]
        unlabeled = batch["unlabeled"]
        keys = zip(unlabeled["image_id"].tolist(), unlabeled["instance"].tolist(), strict=True)
        crops, matrices = zip(*(self._cut(self.instances[key]) for key in keys), strict=True)
        unlabeled |= {
            "crops": torch.from_numpy(np.stack(crops)),
            "target_from_image": torch.from_numpy(np.stack(matrices)).float(),
        }
        return batch

    def _cut(self, instance: Instance) -> tuple[np.ndarray, np.ndarray]:
        matrix = crop_affine(instance.bbox, self.spec.input_size, self.crop.padding)
        image = read_image(instance.path)
        crop = warp_image(image, matrix, self.spec.input_size, BORDERS[self.crop.border])
        return crop, resize_affine(self.spec.input_size, self.spec.map_size) @ matrix


def online_loader(loader: DataLoader, instances: list[Instance], spec: TeacherSpec, crop) -> DataLoader:
    """loader: of the same recipe without geometry terms."""
    return build_loader(WithCrops(loader.dataset, instances, spec, crop), loader.sampler, loader.num_workers)


def run_teacher(teacher: Teacher, unlabeled: dict) -> dict[str, Tensor]:
    """What ``dequantise`` would give of a store that this teacher had filled."""
    maps = teacher(unlabeled["crops"].numpy())
    mask = maps["mask"] > 0.5
    return {"depth": maps["depth"] * mask, "normal": maps["normal"] * mask, "mask": mask}


class OnlineEstimator(SemiPoseEstimator):
    """The estimator with a teacher in its step. Made of one that is built; shares all of its parts."""

    teacher: Teacher

    @classmethod
    def of(cls, estimator: SemiPoseEstimator, teacher: Teacher) -> OnlineEstimator:
        estimator.__class__ = cls
        estimator.teacher = teacher
        return estimator

    def unlabeled_batch(self, heatmaps: Tensor, unlabeled: dict, labels: PseudoLabels) -> UnlabeledBatch:
        batch = super().unlabeled_batch(heatmaps, unlabeled, labels)
        targets = run_teacher(self.teacher, unlabeled)
        return replace(batch, targets=targets, target_from_image=unlabeled["target_from_image"])


def differences(root, batch: dict, teacher: Teacher) -> dict[str, float]:
    """How far a store's targets are from the teacher's own, for the unlabeled part of an online batch.

    depth: largest difference, of the instance's range. normal: largest 1 - cosine. mask: share of pixels that
    differ. matrix: largest difference of target_from_image, pixels.
    """
    unlabeled = batch["unlabeled"]
    keys = zip(unlabeled["image_id"].tolist(), unlabeled["instance"].tolist(), strict=True)
    read = {name: torch.from_numpy(value) for name, value in StoreReader(root).read_many(list(keys)).items()}
    stored, online = dequantise(read), run_teacher(teacher, unlabeled)
    on = stored["mask"] & online["mask"]
    far = torch.where(on, online["depth"], -torch.inf).amax((2, 3))
    near = torch.where(on, online["depth"], torch.inf).amin((2, 3))
    error = ((stored["depth"] - online["depth"]).abs() * on).amax((2, 3))
    cosine = (stored["normal"] * online["normal"]).sum(1, keepdim=True)
    matrix = read["target_from_image"].float() - unlabeled["target_from_image"]
    return {
        "depth": float((error / (far - near)).max()),
        "normal": float(((1 - cosine) * on).max()),
        "mask": float((stored["mask"] != online["mask"]).float().mean()),
        "matrix": float(matrix.abs().max()),
    }
