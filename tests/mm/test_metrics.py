"""The metric that training shows against pycocotools' own evaluation of the same predictions."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from mmengine.evaluator import Evaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sagecache.mm.metrics import KeypointMetric
from sagecache.skeleton.definition import COCO17

PERSONS = 12


@pytest.fixture(scope="module")
def truth() -> dict:
    """Two persons in each of six images, some joints without label."""
    rng = np.random.default_rng(0)
    images = [dict(id=i, file_name=f"{i}.jpg", width=400, height=400) for i in range(1, 7)]
    annotations = []
    for i in range(PERSONS):
        x, y = 20.0 + 180 * (i % 2), 30.0
        joints = np.c_[
            rng.uniform([x, y], [x + 120, y + 200], (17, 2)), rng.choice([0, 1, 2], 17, p=[0.2, 0.2, 0.6])
        ]
        annotations.append(
            dict(
                id=i + 1,
                image_id=1 + i // 2,
                category_id=1,
                iscrowd=0,
                bbox=[x, y, 120.0, 200.0],
                area=9000.0 + 500 * i,
                keypoints=joints.round(2).ravel().tolist(),
                num_keypoints=int((joints[:, 2] > 0).sum()),
            )
        )
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name="person")])


def samples(truth: dict) -> list[dict]:
    """What mmpose's predict leaves: the truth, off by 0 to 22 pixels."""
    rng, found = np.random.default_rng(1), []
    for i, one in enumerate(truth["annotations"]):
        x, y, width, height = one["bbox"]
        points = np.reshape(one["keypoints"], (17, 3))[:, :2] + 2 * i * rng.uniform(-1, 1, (17, 2))
        found.append(
            dict(
                img_id=one["image_id"],
                instance=i % 2,
                annotation_id=one["id"],
                pred_instances=dict(keypoints=points[None], keypoint_scores=rng.uniform(0.3, 1, (1, 17))),
                gt_instances=dict(bboxes=np.array([[x, y, x + width, y + height]]), bbox_scores=np.ones(1)),
            )
        )
    return found


def judged(truth: dict, predicted: list[dict], area_rule: str) -> dict[str, float]:
    """AP, AP50, AP75 and AR by pycocotools alone."""
    annotations = [dict(one) for one in truth["annotations"]]
    for one in annotations:
        if area_rule == "bbox53":
            one["area"] = 0.53 * one["bbox"][2] * one["bbox"][3]
    results = []
    for sample in predicted:
        points, scores = (
            sample["pred_instances"]["keypoints"][0],
            sample["pred_instances"]["keypoint_scores"][0],
        )
        triplets = np.c_[points, scores].ravel().tolist()
        results.append(
            dict(image_id=sample["img_id"], category_id=1, keypoints=triplets, score=float(scores.mean()))
        )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth | dict(annotations=annotations)
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "keypoints")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(("AP", "AP50", "AP75", "AR"), judge.stats[[0, 1, 2, 5]], strict=True))


def measured(truth: dict, batches: list[list[dict]], area_rule: str = "bbox53"):
    metric = KeypointMetric(truth, COCO17, area_rule, "diagonal")
    evaluator = Evaluator(metric)
    for batch in batches:
        evaluator.process(data_samples=batch, data_batch=None)
    return evaluator.evaluate(PERSONS), metric


@pytest.mark.parametrize("area_rule", ["bbox53", "annotation"])
def test_it_agrees_with_pycocotools(truth, area_rule):
    predicted = samples(truth)
    figures, metric = measured(truth, [predicted[:5], predicted[5:]], area_rule)
    expected = judged(truth, predicted, area_rule)
    assert 0.2 < expected["AP"] < 0.95, "a case in which all or nothing is right would show little"
    for name, value in expected.items():
        assert figures[f"keypoints/{name}"] == pytest.approx(value, abs=1e-3), name
    assert metric.report.persons == len(metric.predictions) == PERSONS


def test_pck_counts_joints_within_the_diagonal(truth):
    predicted = samples(truth)
    figures, _ = measured(truth, [predicted])
    distance = []
    for one, sample in zip(truth["annotations"], predicted, strict=True):
        joints = np.reshape(one["keypoints"], (17, 3))
        error = np.linalg.norm(sample["pred_instances"]["keypoints"][0] - joints[:, :2], axis=1)
        distance += (error / np.hypot(120, 200))[joints[:, 2] > 0].tolist()
    for threshold in (0.05, 0.1):
        share = np.mean(np.array(distance) <= threshold)
        assert figures[f"keypoints/PCK@{threshold}"] == pytest.approx(share, abs=1e-9)
    assert figures["keypoints/PCK@0.05"] < figures["keypoints/PCK@0.1"]


def test_an_instance_that_a_sampler_repeats_counts_once(truth):
    predicted = samples(truth)
    once, _ = measured(truth, [predicted])
    metric = KeypointMetric(truth, COCO17, "bbox53", "diagonal")
    metric.process(None, [*predicted, *predicted[:3]])
    assert metric.compute_metrics(metric.results) == {
        name.removeprefix("keypoints/"): value for name, value in once.items()
    }
    assert len(metric.predictions) == PERSONS


def test_a_second_validation_starts_from_nothing(truth):
    predicted = samples(truth)
    metric = KeypointMetric(truth, COCO17, "bbox53", "diagonal")
    evaluator = Evaluator(metric)
    figures = []
    for batch in (predicted, predicted[:6]):
        evaluator.process(data_samples=batch, data_batch=None)
        figures.append(evaluator.evaluate(len(batch))["keypoints/AR"])
    assert figures[1] < figures[0] and metric.report.unmatched == PERSONS - 6
