from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn

from sagecache.data.hiding import AdaptiveMasking
from sagecache.data.mixing import StrongMixing
from sagecache.errors import SagecacheError
from sagecache.geometry.affine import augment_affine, transform_points
from sagecache.geometry.distortion import bend_points, radial
from sagecache.mm.codecs import codec_of, map_frame
from sagecache.mm.estimator import SemiPoseEstimator, _repeated
from sagecache.mm.registry import build_student
from sagecache.mm.samples import LabelEncoder
from sagecache.priors.denoiser import Denoiser
from sagecache.priors.diffusion import DiffusionGuidance, DiffusionPrior
from sagecache.project import Project
from sagecache.project.recipe import AppearanceTeacher, TeacherSettings
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.gating import HybridGate
from sagecache.semi.pseudo_labels import PseudoLabeler
from sagecache.skeleton.definition import COCO17
from sagecache.structures import TermOutput, UnlabeledBatch

FLIP = torch.tensor(COCO17.flip_indices)
SIZE = (96, 128)


class Probe(nn.Module):
    """A term that keeps its batch and pulls the student's keypoints to the corner."""

    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        self.batch = batch
        return TermOutput(batch.student_keypoints.mean(), {"seen": torch.tensor(3.0)})


def build(gate: HybridGate | None = None, **options) -> SemiPoseEstimator:
    torch.manual_seed(0)
    model = Project.open().model
    labeler = PseudoLabeler(1.25, FLIP, KeypointFilter(17, threshold=0.0), gate or HybridGate())
    student = build_student(model)
    return SemiPoseEstimator(
        student,
        map_frame(codec_of(model)),
        labeler,
        **dict(terms={"probe": (0.5, Probe())}, ramp_up_steps=10) | options,
    )


@pytest.fixture
def estimator():
    return build()


def labeled(count: int = 2) -> dict:
    rng = np.random.default_rng(0)
    batch = dict(
        image=torch.from_numpy(rng.integers(0, 256, (count, 3, 128, 96), dtype=np.uint8)),
        keypoints=torch.from_numpy(rng.uniform(10, 80, (count, 17, 2)).astype(np.float32)),
        visible=torch.ones(count, 17),
    )
    return LabelEncoder(codec_of(Project.open().model), COCO17)(batch)


def unlabeled(count: int = 3, strong: int = 2) -> dict:
    rng = np.random.default_rng(1)
    matrices = [
        augment_affine(SIZE, rng.uniform(-30, 30), rng.uniform(0.8, 1.2), (0.05, 0), bool(i % 2))
        for i in range(count * strong)
    ]
    return dict(
        weak=torch.from_numpy(rng.integers(0, 256, (count, 3, 128, 96), dtype=np.uint8)),
        weak_from_image=torch.eye(3).repeat(count, 1, 1),
        strong=torch.from_numpy(rng.integers(0, 256, (count, strong, 3, 128, 96), dtype=np.uint8)),
        strong_from_image=torch.from_numpy(np.stack(matrices)).float().view(count, strong, 3, 3),
        bbox_scale=torch.tensor([50.0, 60.0, 70.0]),
    )


def test_without_unlabeled_images_it_is_the_student_s_own_loss(estimator):
    estimator.train()
    batch = labeled()
    losses = estimator(labeled=batch, mode="loss")
    expected = estimator.student.loss(estimator.normalise(batch["image"]), batch["data_samples"])
    assert losses.keys() == expected.keys() == {"loss_kpt"}
    torch.testing.assert_close(losses["loss_kpt"], expected["loss_kpt"])


@pytest.mark.parametrize("step, ramp", [(0, 0.0), (5, 0.5), (20, 1.0)])
def test_terms_are_weighted_and_ramped_and_their_scalars_named(estimator, step, ramp):
    estimator.train()
    estimator.step = step
    losses = estimator(labeled=labeled(), unlabeled=unlabeled(), mode="loss")
    probe = estimator.terms["probe"]
    torch.testing.assert_close(losses["loss_probe"], ramp * 0.5 * probe.batch.student_keypoints.mean())
    assert losses["probe_seen"] == 3
    counts = [losses[name] for name in ("num_use_teacherA", "num_use_teacherB", "num_unused")]
    assert sum(counts) == 6  # counted by strong view


def test_a_refused_sample_without_weight_is_not_teacher_b_s(estimator):
    labels = dict(
        teacher_a=torch.tensor([True, True, False, False, False, False]),
        weights=torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.3, 0.0], [0.0, 0.0], [0.0, 0.3], [0.0, 0.0]]),
        keep=torch.ones(6, 2, dtype=torch.bool),
        fate=torch.zeros(6, 2, dtype=torch.int64),
        confidence=torch.ones(6, 2),
        plausibility=torch.ones(6),
    )
    estimator.terms.clear()
    logged = estimator.term_losses(SimpleNamespace(pseudo_labels=SimpleNamespace(**labels)))
    assert [logged[name].item() for name in ("num_use_teacherA", "num_use_teacherB", "num_unused")] == [
        2,
        2,
        2,
    ]


def test_the_gradient_reaches_the_student_and_never_the_teacher(estimator):
    estimator.train()
    estimator.step = 20
    estimator(labeled=labeled(), unlabeled=unlabeled(), mode="loss")["loss_probe"].backward()
    assert max(p.grad.abs().max() for p in estimator.student.parameters() if p.grad is not None) > 0
    assert all(p.grad is None and not p.requires_grad for p in estimator.ema_teacher.parameters())


def test_views_of_one_image_stay_together_with_their_matrices(estimator):
    estimator.train()
    views = unlabeled()
    estimator(labeled=labeled(), unlabeled=views, mode="loss")
    batch = estimator.terms["probe"].batch
    assert len(batch.student_heatmaps) == 6 and batch.strong_size == SIZE
    torch.testing.assert_close(batch.bbox_scale, torch.tensor([50.0, 50.0, 60.0, 60.0, 70.0, 70.0]))
    torch.testing.assert_close(batch.pseudo_labels.keypoints[0], batch.pseudo_labels.keypoints[1])
    to_map = torch.diag(torch.tensor([23 / 95, 31 / 127, 1.0]))
    for i in range(6):
        strong = views["strong_from_image"][i // 2, i % 2]
        expected = to_map @ strong @ torch.linalg.inv(to_map)  # the weak view is the image itself
        torch.testing.assert_close(batch.student_from_teacher[i], expected, atol=1e-3, rtol=1e-3)


def test_the_teacher_stays_in_evaluation_mode(estimator):
    estimator.train()
    assert estimator.student.training and not estimator.ema_teacher.training
    assert not any(module.training for module in estimator.ema_teacher.modules())


def test_inputs_are_what_mmpose_s_own_preprocessor_makes_of_bgr(estimator):
    images = labeled()["image"]
    bgr = [image.flip(0) for image in images]
    for flag in (True, False):
        estimator.student.data_preprocessor._channel_conversion = flag
        ours = estimator.normalise(images)
        theirs = estimator.student.data_preprocessor(dict(inputs=bgr, data_samples=[]))["inputs"]
        torch.testing.assert_close(ours, theirs)


def test_ema_moves_once_per_call_towards_the_student(estimator):
    with torch.no_grad():
        for parameter in estimator.student.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in estimator.ema_teacher.parameters()]
    estimator.update_ema(updates=1)  # min(.999, 1 - 1/2) = .5
    for old, new in zip(before, estimator.ema_teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)


# -- two views, two teachers -----------------------------------------------------------------------------


def two_views(count: int = 3) -> dict:
    views = unlabeled(count)
    turned = torch.from_numpy(augment_affine(SIZE, 10.0, 1.1, (0, 0), True)).float()
    return views | dict(
        appearance=views["weak"].roll(1, 0),
        appearance_from_image=views["weak_from_image"],
        weak_from_image=turned.repeat(count, 1, 1),
    )


def dual(**appearance) -> TeacherSettings:
    return TeacherSettings("dual", appearance=AppearanceTeacher(**appearance))


def forwards(network: torch.nn.Module) -> list[int]:
    """Batch sizes of the network's forward passes from now on."""
    sizes: list[int] = []
    network.backbone.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("flip, passes", [(False, 6), (True, 12)])
def test_one_teacher_sees_both_views_in_one_forward_pass(flip, passes):
    estimator = build(teacher=TeacherSettings(flip=flip)).eval()
    sizes, batch = forwards(estimator.ema_teacher), two_views()
    views = estimator.teacher_views(batch)
    assert sizes == [passes]
    for name, view in zip(("appearance", "weak"), views, strict=True):
        alone = estimator.ema_teacher.head(
            estimator.ema_teacher.extract_feat(estimator.normalise(batch[name]))
        )
        torch.testing.assert_close(view.heatmaps, alone, atol=1e-5, rtol=1e-4)
        assert view.view_from_image is batch[f"{name}_from_image"] and (view.mirrored is not None) == flip
    labels = estimator.pseudo_labels(batch)
    batch_of_terms = estimator.unlabeled_batch(torch.zeros(6, 17, 32, 24), batch, labels)
    to_map, strong = estimator.heatmap_from_input, batch["strong_from_image"].flatten(0, 1)
    expected = to_map @ strong @ torch.linalg.inv(to_map)  # the appearance view is the image itself
    torch.testing.assert_close(batch_of_terms.student_from_teacher, expected, atol=1e-3, rtol=1e-3)


def test_each_of_two_teachers_sees_its_own_view_and_moves_at_its_own_pace():
    estimator = build(ema_decay=0.9, teacher=dual(decay=0.5)).train()
    seen, other = forwards(estimator.ema_teacher), forwards(estimator.appearance_teacher)
    estimator.teacher_views(two_views())
    assert seen == other == [6]
    with torch.no_grad():
        for parameter in estimator.student.parameters():
            parameter.add_(1.0)
    start = [p.clone() for p in estimator.ema_teacher.parameters()]
    estimator.update_ema(updates=100)
    for old, slow, fast in zip(
        start, estimator.ema_teacher.parameters(), estimator.appearance_teacher.parameters(), strict=True
    ):
        torch.testing.assert_close(slow, old + 0.1, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fast, old + 0.5, atol=1e-5, rtol=1e-5)


def test_alternate_teachers_take_turns():
    estimator = build(teacher=dual(alternate=True)).train()
    teachers = (estimator.ema_teacher, estimator.appearance_teacher)
    moved = []
    for updates in range(100, 104):
        with torch.no_grad():
            for parameter in estimator.student.parameters():
                parameter.add_(1.0)
        before = [next(one.parameters()).clone() for one in teachers]
        estimator.update_ema(updates)
        moved.append(
            [not torch.equal(a, next(b.parameters())) for a, b in zip(before, teachers, strict=True)]
        )
    assert moved == [[True, False], [False, True]] * 2


def test_a_second_teacher_s_own_norm_is_measured_in_training_alone():
    estimator = build(teacher=dual(own_norm=True))
    norms = [m for m in estimator.appearance_teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    estimator.train()
    before = norms[0].running_mean.clone()
    estimator.teacher_views(two_views())
    assert norms and not torch.equal(before, norms[0].running_mean)
    estimator.eval()
    assert not any(norm.training for norm in norms)


def test_two_teachers_of_one_kind_are_refused():
    with pytest.raises(SagecacheError, match="one network, twice"):
        build(teacher=dual(decay=0.999))


def test_without_labels_the_terms_alone_are_the_loss(estimator):
    losses = estimator.train()(unlabeled=unlabeled(), mode="loss")
    assert [name for name in losses if name.startswith("loss")] == ["loss_probe"]


def test_every_joint_s_fate_is_counted_once(estimator):
    losses = estimator.train()(labeled=labeled(), unlabeled=unlabeled(), mode="loss")
    shares = {name: value.item() for name, value in losses.items() if name.startswith("fate/")}
    assert sum(shares.values()) == pytest.approx(1) and shares["fate/kept"] == losses["keep_mean"].item()


# -- the prior as teacher B ------------------------------------------------------------------------------


def small_prior() -> DiffusionPrior:
    return DiffusionPrior(COCO17, Denoiser(34, 17, width=8, blocks=1)).freeze()


def test_the_whole_estimator_moves_to_another_device_and_the_prior_with_it():
    prior = small_prior()
    moved = build(prior=prior).to("meta")
    parts = [*moved.parameters(), *moved.buffers(), *prior.parameters(), *prior.buffers()]
    assert {part.device.type for part in parts} == {"meta"}


def test_teacher_b_s_poses_are_the_prior_s():
    prior, views = small_prior(), unlabeled()
    gate = HybridGate(teacher_b="diffusion", keep_b=0.0)
    gate.threshold_plausibility = 2.0  # nobody reaches it
    labels = build(gate, prior=prior).eval().pseudo_labels(views)
    expected = prior.correct(labels.keypoints, labels.confidence)
    torch.testing.assert_close(labels.corrected, expected)
    assert (expected - labels.keypoints).norm(dim=-1).max() > 0.1


@pytest.mark.parametrize("get_state", [lambda model: model.state_dict(), get_state_dict])
def test_the_prior_enters_a_checkpoint_with_the_term_alone(get_state):
    """It has a file of its own; mmengine reads and writes states by functions of its own."""
    plain, prior = build(), small_prior()
    gated = build(prior=prior)
    assert get_state(gated).keys() == get_state(plain).keys()
    guided = build(prior=prior, terms={"diffusion": (0.2, DiffusionGuidance(prior))})
    held = [key for key in get_state(guided) if "prior." in key]
    assert held and all(key.startswith("terms.diffusion.prior.") for key in held)
    for model in (gated, guided):
        model.load_state_dict(get_state(model), strict=True)
        load_state_dict(model, get_state(model), strict=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalising_leaves_the_images_as_they_are(estimator, dtype):
    images = labeled()["image"].to(dtype)
    before = images.clone()
    estimator.normalise(images)
    torch.testing.assert_close(images, before, rtol=0, atol=0)


# -- mixing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bent", [False, True])
def test_joints_that_left_the_strong_view_do_not_look_hard(bent):
    """A perfect student: the maximum of its map lies at the border at best."""
    estimator = build(mixing=StrongMixing(COCO17, akm=AdaptiveMasking()))
    views = unlabeled(strong=1)
    if bent:
        lens = radial(0.4, 0.1, SIZE)
        lattices = torch.from_numpy(np.stack([lens.forward, lens.inverse])).float()
        views["strong_distortion"] = lattices.expand(3, 1, -1, -1, -1, -1)
    labels = estimator.pseudo_labels(views)
    labels.keypoints = torch.rand(3, 17, 2) * torch.tensor(SIZE)
    labels.weights = torch.ones(3, 17)
    batch = estimator.unlabeled_batch(torch.zeros(3, 17, 32, 24), views, labels)
    points = transform_points(batch.strong_from_image, labels.keypoints)
    points = bend_points(points, batch.distortion[0], SIZE) if bent else points
    last = torch.tensor(SIZE) - 1
    inside = ((points >= 0) & (points <= last)).all(-1)
    student = torch.minimum(points.clamp_min(0), last)
    student = bend_points(student, batch.distortion[1], SIZE) if bent else student
    mirrored = torch.linalg.det(batch.strong_from_image) < 0
    batch.student_keypoints = torch.where(mirrored[:, None, None], student[:, FLIP], student)
    covered = torch.zeros(3, 17, dtype=torch.bool)
    covered[:, 3] = True
    estimator._remember_errors(batch, covered)
    assert estimator.hardness.error.max() < 0.002 and 0.5 < inside.float().mean() < 0.95
    assert estimator.hardness.updates.tolist() == (inside & ~covered).any(0).long().tolist()


def test_what_loses_its_weight_under_foreign_pixels_loses_its_place_as_well():
    estimator, views = build(mixing=StrongMixing(COCO17, hide=17, covered="drop")), unlabeled(strong=1)
    labels = estimator.pseudo_labels(views)
    labels.weights, labels.places = torch.ones(3, 17), torch.full((3, 17), 0.5)
    _, remaining, covered = estimator.strong_images(views, labels)
    assert covered.any() and not covered.all()
    assert torch.equal(remaining.weights, 1.0 - covered.float())
    assert torch.equal(remaining.places, 0.5 - 0.5 * covered.float())


def test_views_of_one_person_are_no_donors_of_each_other():
    estimator = build(mixing=StrongMixing(COCO17, cutmix=1.0))
    views = unlabeled(count=1, strong=4)
    views["strong_from_image"] = torch.eye(3).repeat(1, 4, 1, 1)
    views["bbox_scale"] = views["bbox_scale"][:1]
    labels = estimator.pseudo_labels(views)
    labels.keypoints, labels.weights = torch.rand(1, 17, 2) * 30 + 30, torch.ones(1, 17)
    labels = _repeated(labels, 4)
    for _ in range(5):
        images, _, covered = estimator.strong_images(views, labels)
        assert torch.equal(images, views["strong"][0]) and not covered.any()
