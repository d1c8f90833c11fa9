"""Predictions of a network that can't err come back where the joints are drawn, in image pixels."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from dots import SPLITS, true_joints, write_dots_project
from dots_network import PIXELS, save_checkpoint

from sagecache.errors import SagecacheError
from sagecache.mm.evaluate import evaluation_crops, evaluation_loader, predict, score
from sagecache.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project.open(write_dots_project(tmp_path_factory.mktemp("dots")))


@pytest.fixture(scope="module")
def checkpoint(project):
    """A perfect EMA teacher, and a student that is off by (0, -1) heatmap pixels."""
    return save_checkpoint(project, project.folder / "dots.pth", student=(0.0, -1.0))


def points(result: dict) -> np.ndarray:
    return np.reshape(result["keypoints"], (17, 3))


def test_keypoints_and_boxes_are_those_of_the_picture(project, checkpoint):
    results = predict(project, checkpoint, project.instances("val"))
    truth = true_joints(project.folder, "val")
    assert [one["annotation_id"] for one in results] == sorted(truth)
    for one in results:
        np.testing.assert_allclose(points(one)[:, :2], truth[one["annotation_id"]][:, :2], atol=1.0)
        assert (points(one)[:, 2] > 0.85).all() and one["score"] == pytest.approx(
            points(one)[:, 2].mean(), abs=1e-3
        )
        assert one["image_id"] == one["annotation_id"] // 10 and one["instance"] == one["annotation_id"] % 10
        assert one["bbox"] == [10 + 155 * one["instance"], 30, 120, 146]


def test_the_network_asked_for_is_the_one_that_predicts(project, checkpoint):
    instances = project.instances("val")[:2]
    student, teacher = (predict(project, checkpoint, instances, name) for name in ("student", "ema_teacher"))
    for one, other in zip(student, teacher, strict=True):
        moved = (points(one) - points(other))[:, :2].mean(0)
        np.testing.assert_allclose(moved, [0, -PIXELS[1]], atol=0.5)


def test_predictions_do_not_depend_on_the_other_instances_of_a_batch(project, checkpoint):
    instances = project.instances("val")
    together = predict(project, checkpoint, instances)
    for one, result in zip(instances, together, strict=True):
        alone = predict(project, checkpoint, [one])[0]
        np.testing.assert_allclose(alone["keypoints"], result["keypoints"], atol=1e-3)


def test_batches_hold_every_instance_once_and_progress_ends_at_the_last(project, checkpoint):
    instances = project.instances("unlabeled")
    batches = list(evaluation_loader(evaluation_crops(project, instances), batch_size=4))
    assert [len(batch["inputs"]) for batch in batches] == [4, 2] and len(instances) == 6
    seen = []
    predict(project, checkpoint, instances, report=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)


def test_crops_are_padded_as_the_page_says(project):
    for padding in (1.0, 1.5):
        rules = replace(project.data.evaluation, padding=padding)
        other = copy.copy(project)
        other.data = replace(project.data, evaluation=rules)
        sample = evaluation_crops(other, project.instances("val")[:1])[0]["data_samples"].metainfo
        width, height = sample["input_size"]
        assert sample["input_scale"][0] == pytest.approx(max(120, 146 * width / height) * padding)


def test_a_perfect_network_scores_one_and_a_shifted_one_less(project, checkpoint):
    report, results = score(project, checkpoint, "test")
    assert len(results) == report.persons == SPLITS["test"] + SPLITS["test"] // 2
    assert report.AP == report.AR == report.pck[0.05] == pytest.approx(1.0)
    shifted = save_checkpoint(project, project.folder / "shifted.pth", ema_teacher=(0.0, 4.0))
    assert score(project, shifted, "test")[0].pck[0.05] == 0.0


def test_boxes_of_a_detector_are_scored_by_the_same_truth(project, checkpoint):
    place = project.detections("test")
    place.parent.mkdir(parents=True)
    place.write_text(
        '[{"image_id": 401, "category_id": 1, "bbox": [5, 28, 130, 152], "score": 0.9},'
        ' {"image_id": 402, "category_id": 1, "bbox": [12, 28, 118, 150], "score": 0.8}]'
    )
    report, results = score(project, checkpoint, "test", boxes="detections")
    truth = true_joints(project.folder, "test")
    assert len(results) == 2 and report.unmatched == len(truth) - 2
    for one in results:
        np.testing.assert_allclose(points(one)[:, :2], truth[10 * one["image_id"]][:, :2], atol=1.0)
    assert report.pck[0.05] == pytest.approx(2 / len(truth))


def test_a_checkpoint_that_is_not_there_says_how_to_make_one(project, tmp_path):
    with pytest.raises(SagecacheError, match="no such checkpoint.*sagecache train"):
        predict(project, tmp_path / "none.pth", project.instances("val"))
