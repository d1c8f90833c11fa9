from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmpose.datasets.transforms import GetBBoxCenterScale, TopdownAffine
from mmpose.models import TopdownPoseEstimator
from mmpose.registry import KEYPOINT_CODECS

from sagecache.data.coco import read_image
from sagecache.geometry.affine import apply_affine, crop_affine
from sagecache.mm.registry import build_student
from sagecache.mm.samples import EvaluationCrops, LabelEncoder, coco_result
from sagecache.project import Project
from sagecache.project.settings import EvaluationSettings
from sagecache.skeleton.definition import COCO17
from sagecache.structures import Instance

SIZE = (96, 128)
MAPS = dict(input_size=SIZE, heatmap_size=(24, 32), sigma=2)
SIMCC = dict(type="SimCCLabel", input_size=SIZE, sigma=5.0, normalize=False)
CODECS = [
    (dict(type="UDPHeatmap", **MAPS), 0.01, 0.05),
    (dict(type="MSRAHeatmap", unbiased=True, **MAPS), 0.01, 0.05),
    (dict(type="MSRAHeatmap", **MAPS), 0.2, 1.01),
    (SIMCC, 0.05, 0.26),
    (dict(SIMCC, use_dark=True), 0.05, 0.26),
]
# mmpose 1.3.2 calls np.maximum(heatmaps, 1e-10, heatmaps) in MSRAHeatmap's refinement with `unbiased`
DARK_WARNS = pytest.mark.filterwarnings("ignore:Passing more than 2 positional arguments:DeprecationWarning")
ATTENTION = dict(
    hidden_dims=16, s=8, expansion_factor=2, dropout_rate=0.0, drop_path=0.0, act_fn="SiLU",
    use_rel_bias=False, pos_enc=False,
)  # fmt: skip


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
    crops = EvaluationCrops([instance], Project.open().model, EvaluationSettings(), COCO17)
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


@pytest.mark.parametrize("bbox", [(60.0, 50.0, 120.0, 200.0), (-20.0, -40.0, 180.0, 260.0)])
def test_pixels_are_mmpose_s_where_that_is_asked_for(instance, bbox):
    """The second box reaches outside the picture, where mmpose's crop is black and ours repeats the edge."""
    noise = np.random.default_rng(1).integers(0, 256, (300, 240, 3), np.uint8)
    cv2.imwrite(str(instance.path), cv2.GaussianBlur(noise, (0, 0), 2))
    one, rules = replace(instance, bbox=bbox), EvaluationSettings(sampling="mmpose")
    found = EvaluationCrops([one], Project.open().model, rules, COCO17)[0]["inputs"]
    corners = np.array([[bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]]], np.float32)
    results = dict(img=read_image(one.path)[..., ::-1], bbox=corners)
    for step in (GetBBoxCenterScale(padding=1.25), TopdownAffine(SIZE, use_udp=True)):
        results = step.transform(results)
    expected = results["img"].transpose(2, 0, 1).astype(int)
    assert np.abs(found.numpy().astype(int) - expected).max() <= 2  # of 255: the matrices are of other code
    ours = EvaluationCrops([one], Project.open().model, EvaluationSettings(), COCO17)[0]["inputs"]
    assert np.abs(ours.numpy().astype(int) - expected).max() > 2


def page(codec: dict, **test_cfg) -> dict:
    """The demo's model page with another codec; RTMPose's head for SimCC."""
    head = dict(type="HeatmapHead", in_channels=32, out_channels=17, deconv_out_channels=None)
    if codec["type"] == "SimCCLabel":
        head = dict(type="RTMCCHead", in_channels=32, out_channels=17, in_featuremap_size=(24, 32))
        head |= dict(input_size=SIZE, gau_cfg=ATTENTION)
    return dict(Project.open().model, head=dict(head, decoder=codec), test_cfg=test_cfg)


def perfect_output(codec: dict, points: np.ndarray):
    """What a network returns that puts each joint (17, 2), input pixels, where the codec's frame has it."""
    places = points * [23 / 95, 31 / 127] if codec["type"] == "UDPHeatmap" else points / 4
    if codec["type"] == "SimCCLabel":
        bins = [np.arange(2 * side) - 2 * points[:, axis, None] for axis, side in enumerate(SIZE)]
        return tuple(torch.from_numpy(np.exp(-(one**2) / 50)).float()[None] for one in bins)
    squares = (np.arange(24) - places[:, 0, None, None]) ** 2
    squares = squares + (np.arange(32)[:, None] - places[:, 1, None, None]) ** 2
    return torch.from_numpy(np.exp(-squares / (2 * codec["sigma"] ** 2))).float()[None]


@DARK_WARNS
@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("codec, mean, most", CODECS, ids=["udp", "msra-dark", "msra", "simcc", "simcc-dark"])
def test_every_codec_s_predictions_return_to_the_image(instance, codec, mean, most, flip_test):
    """mmpose's own predict on perfect outputs of both passes: errors in crop pixels, their mean and the most.

    MSRA without `unbiased` steps a quarter of a map pixel from the highest pixel, SimCC without `use_dark`
    takes the highest bin: that is their resolution, and on average they must not be aside either.
    """
    model = page(
        codec, flip_test=flip_test, flip_mode="heatmap", shift_heatmap=codec["type"] == "MSRAHeatmap"
    )
    head = build_student(model).head
    rng, errors = np.random.default_rng(0), []
    for _ in range(8):
        instance = replace(
            instance, keypoints=np.c_[rng.uniform([70, 60], [170, 240], (17, 2)), np.full(17, 2)]
        )
        sample = EvaluationCrops([instance], model, EvaluationSettings(), COCO17)[0]["data_samples"]
        crop_from_image = crop_affine(instance.bbox, SIZE, 1.25)
        points = apply_affine(crop_from_image, instance.keypoints[:, :2])
        mirrored = (points * [-1, 1] + [SIZE[0] - 1, 0])[COCO17.flip_indices]
        answers = iter([perfect_output(codec, points), perfect_output(codec, mirrored)])
        head.forward = lambda _features, answers=answers: next(answers)
        features = [None, None] if flip_test else None
        predicted = head.predict(features, [sample], test_cfg=model["test_cfg"])
        done = TopdownPoseEstimator.add_pred_to_datasample(
            SimpleNamespace(test_cfg=model["test_cfg"]), predicted, None, [sample]
        )
        found = done[0].pred_instances.keypoints[0]
        errors.append((found - instance.keypoints[:, :2]) * np.diag(crop_from_image)[:2])
    errors = np.concatenate(errors)
    assert np.abs(errors.mean(0)).max() < mean and np.abs(errors).max() < most


@DARK_WARNS
@pytest.mark.parametrize("unbiased, mean, most", [(True, 0.01, 0.05), (False, 0.25, 2.01)])
def test_msra_s_labels_are_decoded_to_the_joints_they_were_drawn_for(unbiased, mean, most):
    """In crop pixels, off the edges (there .2). Without `unbiased` labels are rounded to map pixels of 4."""
    codec = dict(type="MSRAHeatmap", input_size=SIZE, heatmap_size=(24, 32), sigma=2, unbiased=unbiased)
    xy = torch.from_numpy(np.random.default_rng(0).uniform(24, 70, (20, 17, 2)).astype(np.float32))
    batch = dict(image=torch.zeros(20, 3, 128, 96), keypoints=xy, visible=torch.ones(20, 17))
    samples = LabelEncoder(codec, COCO17)(batch)["data_samples"]
    decoder = KEYPOINT_CODECS.build(codec)
    found = np.concatenate([decoder.decode(one.gt_fields.heatmaps.numpy())[0] for one in samples])
    errors = found - xy.numpy()
    assert np.abs(errors.mean((0, 1))).max() < mean and np.abs(errors).max() < most
