"""Predictions on upright crops, and their score; the same crops, flips and decoding as in validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from sagecache.data.coco import load_coco
from sagecache.evaluation.keypoints import KeypointReport, evaluate
from sagecache.mm.checkpoints import load_network
from sagecache.mm.registry import build_student
from sagecache.mm.samples import EvaluationCrops, coco_result
from sagecache.project import Project
from sagecache.skeleton.category import person_category, require_skeleton
from sagecache.structures import Instance


def evaluation_crops(project: Project, instances: Sequence[Instance]) -> EvaluationCrops:
    return EvaluationCrops(instances, project.model, project.data.evaluation, project.skeleton)


def evaluation_loader(
    crops: EvaluationCrops, sampler: Sampler | None = None, batch_size: int = 64
) -> DataLoader:
    """Batches as mmpose's ``pseudo_collate`` makes them: lists of inputs and samples."""
    return DataLoader(crops, batch_size=batch_size, sampler=sampler, collate_fn=_lists)


def _lists(items: list[dict]) -> dict[str, list]:
    return {key: [item[key] for item in items] for key in items[0]}


def network_to_judge(project: Project, checkpoint: Path, network: str = "ema_teacher") -> nn.Module:
    """A network of a checkpoint, on the machine's device and ready to predict."""
    student = build_student(project.model)
    load_network(student, checkpoint, network)
    return student.to("cuda" if torch.cuda.is_available() else "cpu").eval()


@torch.no_grad()
def predict(
    project: Project,
    checkpoint: Path,
    instances: Sequence[Instance],
    network: str = "ema_teacher",
    report: Callable[..., None] | None = None,
) -> list[dict]:
    """COCO keypoint results (with ``instance`` and ``annotation_id``), one for each instance."""
    student = network_to_judge(project, checkpoint, network)
    results: list[dict] = []
    for batch in evaluation_loader(evaluation_crops(project, instances)):
        results += [coco_result(sample.to_dict()) for sample in student.test_step(batch)]
        if report is not None:
            report(len(results), len(instances))
    return results


def score(
    project: Project,
    checkpoint: Path,
    split: str,
    boxes: str = "annotations",
    network: str = "ema_teacher",
    report: Callable[..., None] | None = None,
) -> tuple[KeypointReport, list[dict]]:
    """Evaluate a checkpoint on a split's ground truth; boxes: 'annotations' | 'detections'."""
    truth = ground_truth(project, split)
    results = predict(project, checkpoint, project.instances(split, boxes), network, report)
    category = person_category(truth)
    for result in results:
        result["category_id"] = category
    return judge(project, truth, results), results


def ground_truth(project: Project, split: str) -> dict:
    """A split's COCO annotations. Raises SagecacheError where they are of another skeleton."""
    annotations = project.path(project.split(split).annotations)
    truth = load_coco(annotations)
    require_skeleton(truth, project.skeleton, annotations)
    return truth


def judge(
    project: Project, truth: dict, results: Sequence[dict], *, keep_order: bool = False
) -> KeypointReport:
    """COCO keypoint results by the project's rules. keep_order: as in `evaluate`."""
    rules = project.data.evaluation
    return evaluate(
        results,
        truth,
        project.skeleton,
        area_rule=rules.area,
        normaliser=rules.pck_normaliser,
        keep_order=keep_order,
    )
