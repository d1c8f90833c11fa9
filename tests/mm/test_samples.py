from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from sagecache.mm.registry import build_student
from sagecache.mm.samples import EvaluationCrops, LabelEncoder, coco_result
from sagecache.project import Project
from sagecache.skeleton.definition import COCO17
from sagecache.structures import Instance

SIZE = (96, 128)


@pytest.fixture
def instance(tmp_path):
    """One bright dot per joint on black; the picture is the ground truth."""
    rng = np.random.default_rng(0)
    keypoints = np.c_[rng.uniform([60, 40], [180, 260], (17, 2)), np.full(17, 2.0)]
    path = tmp_path / "000000000007.png"
    cv2.imwrite(str(path), np.zeros((300, 240, 3), np.uint8))
    return Instance(7, 0, path, (50.0, 30.0, 140.0, 240.0), 0.5, keypoints, 100.0, 3)


def test_codec_labels_peak_where_the_keypoints_are():
    codec = dict(type="UDPHeatmap", input_size=SIZE, heatmap_size=(24, 32), sigma=2)
    xy = torch.tensor([[[40.0, 60.0]] * 17, [[8.0, 100.0]] * 17])
    batch = dict(image=torch.zeros(2, 3, 128, 96), keypoints=xy, visible=torch.ones(2, 17))
    batch["visible"][1, 4] = 0
    samples = LabelEncoder(codec, COCO17)(batch)["data_samples"]
    for sample, point in zip(samples, xy[:, 0], strict=True):
        y, x = np.unravel_index(int(sample.gt_fields.heatmaps[0].argmax()), (32, 24))
        assert (x, y) == tuple((point * torch.tensor([23 / 95, 31 / 127])).round().int().tolist())
    assert samples[1].gt_instance_labels.keypoint_weights[0, 4] == 0
    assert samples[1].gt_instance_labels.keypoint_weights[0, 5] == 1


def test_predictions_return_to_the_image(instance):
    """A network that answers with perfect maps must give back the true keypoints in image pixels."""
    crops = EvaluationCrops([instance], SIZE, 1.25, COCO17)
    item = crops[0]
    assert item["inputs"].shape == (3, 128, 96)
    sample = item["data_samples"]
    student = build_student(Project.open().model)
    scale = (np.array(SIZE) - 1) / sample.metainfo["input_scale"]
    left_top = sample.metainfo["input_center"] - sample.metainfo["input_scale"] / 2
    in_crop = (instance.keypoints[:, :2] - left_top) * scale
    codec = student.head.decoder
    encoded = codec.encode(in_crop[None].astype(np.float32), np.ones((1, 17), np.float32))
    maps = torch.from_numpy(encoded["heatmaps"])[None]
    decoded = student.head.decode(maps)
    predicted = student.add_pred_to_datasample(decoded, None, [sample])[0]
    result = coco_result(predicted.to_dict())
    found = np.array(result["keypoints"]).reshape(17, 3)[:, :2]
    np.testing.assert_allclose(found, instance.keypoints[:, :2], atol=0.5)
    assert result["bbox"] == list(instance.bbox)
    assert (result["image_id"], result["instance"], result["annotation_id"]) == (7, 0, 3)
    assert result["score"] == pytest.approx(0.5 * np.mean(predicted.pred_instances.keypoint_scores), abs=1e-6)
