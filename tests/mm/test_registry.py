from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmpose.codecs import UDPHeatmap
from mmpose.registry import KEYPOINT_CODECS
from mmpose.structures import PoseDataSample
from torch.nn import functional as F

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import invert_affine, transform_points
from sagecache.geometry.heatmap import decode, probability
from sagecache.mm.registry import SpatialCrossEntropyLoss, build_student, codec_of, heatmap_from_input
from sagecache.models.convnet import PIXEL_MEAN, PIXEL_STD
from sagecache.project import Project
from sagecache.semi.fusion import fuse_flip

CODEC = dict(type="UDPHeatmap", input_size=(96, 128), heatmap_size=(24, 32), sigma=4 / 3)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return build_student(Project.open().model)


def test_loss_is_cross_entropy_with_soft_targets():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    weights = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.5]])
    expected = F.cross_entropy(
        logits.flatten(2).reshape(6, 20),
        (target / target.sum((2, 3), keepdim=True)).flatten(2).reshape(6, 20),
        reduction="none",
    )
    loss = SpatialCrossEntropyLoss()(logits, target, weights)
    torch.testing.assert_close(loss, (expected * weights.flatten()).sum() / 6)


def test_a_joint_without_target_mass_gives_no_gradient():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    target = torch.zeros(1, 2, 4, 4)
    target[0, 0, 1, 1] = 1
    SpatialCrossEntropyLoss()(logits, target, torch.ones(1, 2)).backward()
    assert logits.grad[0, 0].abs().sum() > 0
    assert logits.grad[0, 1].abs().sum() == 0


def test_head_gives_logits_in_training_and_unit_peaks_in_evaluation(student):
    features = student.extract_feat(torch.randn(2, 3, 128, 96))
    student.head.train()
    logits = student.head(features)
    assert logits.shape == (2, 17, 32, 24)
    assert student.head.map_kind == "logits"
    student.head.eval()
    maps = student.head(features)
    assert student.head.map_kind == "heatmap"
    expected = logits.flatten(2).softmax(-1).view_as(logits) * 2 * math.pi * (4 / 3) ** 2
    torch.testing.assert_close(maps, expected)


def test_the_demo_page_feeds_the_student_what_it_was_pretrained_on(student):
    """tools/demo_networks/student.py pretrains on RGB; mmpose hands over BGR."""
    torch.manual_seed(0)
    rgb = torch.randint(0, 256, (1, 3, 128, 96), dtype=torch.uint8)
    batch = dict(inputs=[rgb[0].flip(0)], data_samples=[PoseDataSample()])
    got = student.data_preprocessor(batch, training=False)["inputs"]
    mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
    torch.testing.assert_close(got, (rgb - mean) / std)


def test_heatmap_scale_maps_corners_to_corners():
    moved = heatmap_from_input(CODEC) @ torch.tensor([95.0, 127.0, 1.0])
    torch.testing.assert_close(moved, torch.tensor([23.0, 31.0, 1.0]))


@pytest.mark.parametrize("x", [30.0, 40.0, 61.5])
def test_perfect_maps_of_an_accepted_codec_fuse_with_their_mirror_to_the_true_place(x):
    """MSRAHeatmap's would not: at x = 40 its pair fuses to 38.6."""
    codec = dict(codec_of(Project.open().model))
    encoder = KEYPOINT_CODECS.build(codec)
    points = torch.tensor([[x, 60.0], [95 - x, 60.0]]).numpy()[:, None]  # the joint, and it in the mirror
    plain, mirrored = (
        torch.from_numpy(encoder.encode(one[None], torch.ones(1, 1).numpy())["heatmaps"])[None]
        for one in points
    )
    fused = fuse_flip(probability(plain, "heatmap"), probability(mirrored, "heatmap"), torch.tensor([0]))
    keypoints, _ = decode(fused, codec["sigma"])
    back = transform_points(invert_affine(heatmap_from_input(codec))[None], keypoints)
    assert back[0, 0, 0].item() == pytest.approx(x, abs=0.5)


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(type="MSRAHeatmap"), "model.py: the head's decoder is MSRAHeatmap.*type='UDPHeatmap'"),
        (dict(type="SimCCLabel"), "the head's decoder is SimCCLabel"),
        (dict(heatmap_type="combined"), "UDPHeatmap of type 'combined'"),
        (None, "the head's decoder is none"),
        ({"heatmap_size": None}, "no 'heatmap_size'"),
        (dict(input_size=[96]), r"the decoder's input_size is \[96\].*\(width, height\)"),
        (dict(input_size=[96.0, 128.0]), r"the decoder's input_size is \[96.0, 128.0\]"),
        (dict(sigma=0), "the decoder's sigma is 0"),
        (dict(sigma="a"), "the decoder's sigma is 'a'"),
    ],
)
def test_a_codec_that_views_and_mirrored_maps_do_not_fit_is_refused(change, told):
    model = Project.open().model
    decoder = {key: one for key, one in {**CODEC, **(change or {})}.items() if one is not None}
    head = dict(model["head"], decoder=decoder if change is not None else None)
    for use in (codec_of, build_student):
        with pytest.raises(SagecacheError, match=told):
            use(dict(model, head=head))
    with pytest.raises(SagecacheError, match="decoder is none"):
        codec_of(dict(type="TopdownPoseEstimator"))


def test_mirrored_maps_that_are_in_place_are_not_shifted():
    model = Project.open().model
    model["test_cfg"] = dict(model["test_cfg"], shift_heatmap=True)
    with pytest.raises(SagecacheError, match="shift_heatmap"):
        codec_of(model)


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(decoder=dict(CODEC, heatmap_size=(24, 33))), r"maps are \(1, 17, 32, 24\).*is 24x33"),
        (dict(decoder=dict(CODEC, input_size=(96, 160))), r"maps are \(1, 17, 40, 24\).*is 24x32"),
        (dict(in_channels=7), "the network can't take images of 96x128: .*channel"),
    ],
)
def test_a_network_whose_maps_are_not_those_of_its_codec_is_refused_before_the_first_step(change, told):
    model = Project.open().model
    with pytest.raises(SagecacheError, match=told):
        build_student(dict(model, head=dict(model["head"], **change)))


def test_a_model_without_a_preprocessor_is_refused():
    with pytest.raises(SagecacheError, match="no data_preprocessor.*PoseDataPreprocessor"):
        build_student(dict(Project.open().model, data_preprocessor=None))


def test_a_model_that_mmpose_does_not_know_is_one_clear_error():
    model = dict(Project.open().model, backbone=dict(type="PoseNett"))
    with pytest.raises(SagecacheError, match="model.py.*PoseNett"):
        build_student(model)


def test_mmpose_draws_labels_aside_near_an_edge_unless_three_sigma_is_whole():
    """Why codec_of is strict: the peak of a label three pixels from the left edge."""
    peaks = []
    for sigma in (1.25, 4 / 3):
        codec = UDPHeatmap((96, 128), (24, 32), sigma=sigma)
        point = np.array([[[3.0 * 95 / 23, 16.0 * 127 / 31]]], np.float32)
        peaks.append(int(codec.encode(point, np.ones((1, 1), np.float32))["heatmaps"][0, 16].argmax()))
    assert peaks == [4, 3]
    model = dict(Project.open().model)
    model["head"] = dict(model["head"], decoder=dict(CODEC, sigma=1.25))
    with pytest.raises(SagecacheError, match="sigma 1.25.*one pixel off"):
        build_student(model)
