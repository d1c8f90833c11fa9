from __future__ import annotations

import math

import pytest
import torch
from mmpose.structures import PoseDataSample
from torch.nn import functional as F

from sagecache.errors import SagecacheError
from sagecache.mm.registry import SpatialCrossEntropyLoss, build_student
from sagecache.models.convnet import PIXEL_MEAN, PIXEL_STD
from sagecache.project import Project

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
