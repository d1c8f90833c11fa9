"""A SimCC network through the interface of heatmaps: maps, pseudo labels, losses, three steps of training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmpose.registry import KEYPOINT_CODECS, MODELS
from torch import Tensor

from sagecache.geometry.affine import augment_affine, transform_points
from sagecache.geometry.heatmap import decode, gaussian, log_probability, probability
from sagecache.mm.codecs import (
    codec_of,
    heatmap_from_input,
    map_frame,
    map_sigma,
    map_size,
)
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.outputs import head_maps, map_kind, network_maps, simcc_maps
from sagecache.mm.registry import build_student
from sagecache.mm.samples import LabelEncoder
from sagecache.project import Project
from sagecache.semi.consistency import Consistency
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.gating import HybridGate
from sagecache.semi.pseudo_labels import PseudoLabeler
from sagecache.skeleton.definition import COCO17

FLIP = torch.tensor(COCO17.flip_indices)
INPUT = (96, 128)
SIMCC = dict(type="SimCCLabel", input_size=INPUT, sigma=(4.9, 5.66), simcc_split_ratio=2.0, normalize=False)
MSRA = dict(type="MSRAHeatmap", input_size=INPUT, heatmap_size=(24, 32), sigma=2, unbiased=True)
ATTENTION = dict(
    hidden_dims=32, s=16, expansion_factor=2, dropout_rate=0.0, drop_path=0.0, act_fn="SiLU",
    use_rel_bias=False, pos_enc=False,
)  # fmt: skip


def page_of(head: dict, **test_cfg) -> dict:
    backbone = dict(type="PoseNet", width=8)
    return dict(copy.deepcopy(Project.open().model), backbone=backbone, head=head, test_cfg=test_cfg)


def simcc_page(decoder: dict = SIMCC, input_size: tuple[int, int] = INPUT, **loss) -> dict:
    """RTMPose's head, small, on the demo's backbone."""
    head = dict(
        type="RTMCCHead",
        in_channels=8,
        out_channels=17,
        input_size=input_size,
        in_featuremap_size=tuple(side // 4 for side in input_size),
        simcc_split_ratio=decoder.get("simcc_split_ratio", 2.0),
        gau_cfg=ATTENTION,
        loss=dict(type="KLDiscretLoss", use_target_weight=True)
        | (loss or dict(beta=10.0, label_softmax=True)),
        decoder=decoder,
    )
    return page_of(head, flip_test=True)


def msra_page() -> dict:
    head = dict(
        type="HeatmapHead", in_channels=8, out_channels=17, deconv_out_channels=None, decoder=dict(MSRA)
    )
    return page_of(head, flip_test=True, flip_mode="heatmap", shift_heatmap=True)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return build_student(simcc_page())


def joints(count: int, margin: float = 12.0, size: tuple[int, int] = INPUT) -> Tensor:
    """(count, 17, 2) input pixels."""
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.uniform(margin, np.array(size) - margin, (count, 17, 2)).astype(np.float32))


def perfect_logits(points: Tensor, page: dict) -> tuple[Tensor, Tensor]:
    """What a network without any loss returns: KLDiscretLoss is at its minimum there (tested below)."""
    codec, loss = page["head"]["decoder"], page["head"]["loss"]
    split, outputs = codec["simcc_split_ratio"], []
    for axis, sigma in enumerate(np.broadcast_to(codec["sigma"], 2).tolist()):
        bins = torch.arange(round(codec["input_size"][axis] * split))
        square = (bins - points[..., axis, None] * split).square() / (2 * sigma**2)
        softmax = loss.get("label_softmax", False)
        outputs.append(
            (loss.get("label_beta", 10.0) * (-square).exp() if softmax else -square) / loss["beta"]
        )
    return tuple(outputs)


class Answers(torch.nn.Module):
    """Stands in for a head's layers: returns what it is given."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.decoder, self.loss_module = head.decoder, head.loss_module

    def forward(self, output):
        return output


@pytest.mark.parametrize(
    "page",
    [
        simcc_page(),
        simcc_page(beta=1.0, label_softmax=True, label_beta=10.0),
        simcc_page(dict(SIMCC, sigma=6.0, normalize=True), beta=1.0),
    ],
    ids=["rtmpose", "rtmw", "simcc"],
)
def test_a_perfect_output_reads_as_its_joints_with_confidence(page):
    """Within .1 map pixels at a confidence above .9, wherever between the bins and pixels the joint lies."""
    points = joints(30)
    head = Answers(build_student(page).head)
    maps, kind = head_maps(head, perfect_logits(points, page))
    assert maps.shape == (30, 17, 32, 24) and maps.dtype == torch.float32 and kind == "logits"
    keypoints, confidence = decode(probability(maps, kind), map_sigma(codec_of(page)))
    truth = transform_points(heatmap_from_input(codec_of(page)), points)
    assert (keypoints - truth).abs().max() < 0.05
    assert confidence.min() > 0.9
    whole = truth.round()
    logits = perfect_logits(
        transform_points(torch.linalg.inv(heatmap_from_input(codec_of(page))), whole), page
    )
    _, confidence = decode(probability(*head_maps(head, logits)), 2.0)
    assert confidence.min() > 0.97  # on a pixel's centre a perfect map reads as 1, but for its ground


@pytest.mark.parametrize("loss", [dict(beta=10.0, label_softmax=True), dict(beta=1.0)])
def test_the_output_called_perfect_is_the_minimum_of_mmpose_s_loss(loss):
    """So the temperature is the loss's beta: with another one confidence would not be the network's own."""
    page = simcc_page(dict(SIMCC, normalize=not loss.get("label_softmax")), **loss)
    points = (joints(4) * 2).round() / 2  # labels lie on bins
    encoder, module = KEYPOINT_CODECS.build(page["head"]["decoder"]), MODELS.build(page["head"]["loss"])
    encoded = [encoder.encode(one[None].numpy(), np.ones((1, 17), np.float32)) for one in points]
    target = [
        torch.from_numpy(np.concatenate([one[f"keypoint_{axis}_labels"] for one in encoded])) for axis in "xy"
    ]
    output = [logits.double().requires_grad_() for logits in perfect_logits(points, page)]
    module(output, [one.double() for one in target], torch.ones(4, 17)).backward()
    assert max(one.grad.abs().max() for one in output) < 1e-8
    other = [(2 * logits).double().requires_grad_() for logits in perfect_logits(points, page)]
    module(other, [one.double() for one in target], torch.ones(4, 17)).backward()
    assert min(one.grad.abs().max() for one in other) > 5e-6


def test_maps_are_the_mean_drawing_under_the_network_s_distribution():
    """Against a loop that draws every pair of bins with geometry.heatmap.gaussian."""
    torch.manual_seed(0)
    size, split, beta = (24, 16), 1.0, 3.0
    x, y = torch.randn(1, 2, 24), torch.randn(1, 2, 16)
    maps = simcc_maps(x, y, size, split, beta, (0.0, 0.0))
    assert maps.shape == (1, 2, 4, 6)
    p_x, p_y = (beta * x).softmax(-1), (beta * y).softmax(-1)
    expected = torch.zeros(1, 2, 4, 6)
    for i in range(24):
        for j in range(16):
            place = torch.tensor([[[i * 5 / 23, j * 3 / 15]]])
            drawn = gaussian(place, (6, 4), 2.0)
            drawn = drawn / drawn.sum()
            expected += (p_x[..., i] * p_y[..., j])[..., None, None] * drawn
    torch.testing.assert_close(maps.exp(), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(log_probability(maps, "logits"), maps)  # sums to one already


def test_an_unsure_output_is_unsure_and_two_places_are_not_averaged():
    page = simcc_page()
    head = Answers(build_student(page).head)
    points = torch.tensor([[[30.0, 60.0]] * 17])
    x, y = perfect_logits(points, page)
    certain = decode(probability(*head_maps(head, (x, y))), 2.0)[1]
    faint = decode(probability(*head_maps(head, (0.5 * x, 0.5 * y))), 2.0)[1]
    blank = decode(probability(*head_maps(head, (0 * x, 0 * y))), 2.0)[1]
    assert (blank < 0.06).all() and (blank < faint).all() and (faint < certain).all()
    other, _ = perfect_logits(points + torch.tensor([40.0, 0.0]), page)
    keypoints, confidence = decode(probability(*head_maps(head, (torch.maximum(x, other * 1.01), y))), 2.0)
    assert ((keypoints[..., 0] - 70 * 23 / 95).abs() < 0.3).all() and (confidence < 0.6).all()


def test_a_joint_held_for_impossible_still_pulls_with_its_whole_gradient():
    x = torch.full((1, 1, 192), 0.0)
    x[..., 20] = 20.0  # a softmax of e^-20 elsewhere
    x.requires_grad_()
    maps = simcc_maps(x, torch.zeros(1, 1, 256), INPUT, 2.0, 1.0, (0.0, 0.0))
    target = gaussian(torch.tensor([[[20.0, 16.0]]]), (24, 32), 2.0)
    (-(target * log_probability(maps, "logits")).sum()).backward()
    assert x.grad.isfinite().all() and x.grad[0, 0, 20] == pytest.approx(1.0, abs=0.01)
    assert x.grad[0, 0, 150:].sum() < -0.5


def test_gradients_of_maps_are_those_of_differences():
    torch.manual_seed(0)
    x, y = (torch.randn(1, 1, n, dtype=torch.float64, requires_grad=True) for n in (24, 16))
    assert torch.autograd.gradcheck(
        lambda x, y: simcc_maps(x, y, (12, 8), 2.0, 1.5, (0.2, 0.3)).exp(), (x, y)
    )


def test_half_precision_outputs_are_read_in_float32(student):
    page = simcc_page()
    x, y = (one.bfloat16() for one in perfect_logits(joints(1), page))
    maps, _ = head_maps(Answers(student.head), (x, y))
    assert maps.dtype == torch.float32 and maps.isfinite().all()


def test_maps_of_a_network_are_its_head_s(student):
    images = torch.randn(2, 3, 128, 96)
    maps, kind = network_maps(student, images)
    assert kind == map_kind(student.head) == "logits" and maps.shape[2:] == (32, 24)
    demo = build_student(Project.open().model).eval()
    maps, kind = network_maps(demo, images)
    assert kind == "heatmap"
    torch.testing.assert_close(maps, demo.head(demo.extract_feat(images)))


def build(page: dict) -> SemiPoseEstimator:
    torch.manual_seed(0)
    codec = codec_of(page)
    labeler = PseudoLabeler(map_sigma(codec), FLIP, KeypointFilter(17, threshold=0.0), HybridGate())
    return SemiPoseEstimator(
        build_student(page),
        map_frame(codec),
        labeler,
        {"consistency": (1.0, Consistency(FLIP, map_sigma(codec)))},
    )


def batches(page: dict, count: int = 2, strong: int = 2) -> tuple[dict, dict]:
    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.integers(0, 256, (count, 3, 128, 96), dtype=np.uint8))
    labeled = LabelEncoder(codec_of(page), COCO17)(
        dict(image=image, keypoints=joints(count), visible=torch.ones(count, 17))
    )
    matrices = [augment_affine(INPUT, 10.0 * i, 1.1, (0.05, 0), bool(i % 2)) for i in range(count * strong)]
    unlabeled = dict(
        weak=image,
        weak_from_image=torch.eye(3).repeat(count, 1, 1),
        strong=torch.from_numpy(rng.integers(0, 256, (count, strong, 3, 128, 96), dtype=np.uint8)),
        strong_from_image=torch.from_numpy(np.stack(matrices)).float().view(count, strong, 3, 3),
        bbox_scale=torch.full((count,), 60.0),
    )
    return labeled, unlabeled


def test_the_codec_hands_the_head_its_labels():
    labeled, _ = batches(simcc_page())
    labels = labeled["data_samples"][0].gt_instance_labels
    assert labels.keypoint_x_labels.shape == (1, 17, 192) and labels.keypoint_y_labels.shape == (1, 17, 256)
    peak = torch.stack([labels.keypoint_x_labels.argmax(-1), labels.keypoint_y_labels.argmax(-1)], -1)[0] / 2
    assert (peak - joints(2)[0]).abs().max() <= 0.25 and labels.keypoint_weights.eq(1).all()


@pytest.mark.parametrize("page", [simcc_page(), msra_page()], ids=["simcc", "msra"])
def test_three_steps_of_semi_supervised_training(page):
    estimator = build(page)
    estimator.train()
    labeled, unlabeled = batches(page)
    for step in range(3):
        estimator.step = step
        losses = estimator(labeled=labeled, unlabeled=unlabeled, mode="loss")
        assert all(torch.as_tensor(one).isfinite().all() for one in losses.values())
        parameters = list(estimator.student.parameters())
        for name in ("loss_kpt", "loss_consistency") if step == 0 else ():
            grad = torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
            assert grad[0].abs().max() > 0 and grad[-1].abs().max() > 0  # backbone and head
        estimator.student.zero_grad()
        (losses["loss_kpt"] + losses["loss_consistency"]).backward()
        with torch.no_grad():
            for one in estimator.student.parameters():
                one -= 1e-3 * one.grad
        estimator.update_ema(step)


@pytest.mark.parametrize("view", ["plain", "mirrored"])
def test_pseudo_labels_of_a_perfect_simcc_teacher_are_the_joints_in_the_image(view, monkeypatch):
    """Both passes of the weak view, fused: a network that is right says the same in the mirror."""
    page, points = simcc_page(), joints(2)
    estimator = build(page)
    weak = torch.from_numpy(augment_affine(INPUT, flip=view == "mirrored")).float().expand(2, 3, 3)
    mirror = torch.from_numpy(augment_affine(INPUT, flip=True)).float()
    seen = transform_points(weak, points)
    seen = seen[:, FLIP] if view == "mirrored" else seen
    turned = transform_points(mirror, seen)[:, FLIP]
    answer = perfect_logits(torch.cat([seen, turned]), page)
    monkeypatch.setattr(estimator.ema_teacher.head, "forward", lambda _features: answer)
    labels = estimator.pseudo_labels(batches(page)[1] | dict(weak_from_image=weak))
    error = transform_points(heatmap_from_input(codec_of(page)), labels.keypoints) - transform_points(
        heatmap_from_input(codec_of(page)), points
    )
    assert error.abs().max() < 0.1 and labels.confidence.min() > 0.9
    assert map_size(codec_of(page)) == labels.probability.shape[:1:-1]
