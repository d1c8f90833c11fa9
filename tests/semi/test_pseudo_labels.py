import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from sagecache.geometry.affine import augment_affine, crop_affine, heatmap_affine
from sagecache.semi.coupling import StructuralCoupling
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.fusion import TeacherView, ViewFusion, fuse_flip
from sagecache.semi.gating import HybridGate, Plausibility
from sagecache.semi.instances import InstanceGate
from sagecache.semi.pseudo_labels import PseudoLabeler
from sagecache.semi.swaps import FacingVote, SwapCheck
from sagecache.skeleton import COCO17
from sagecache.skeleton.stats import compute_stats
from sagecache.structures import Fate

FLIP = torch.tensor([0, 2, 1])  # nose, left, right
INPUT, MAP, SIGMA = (96, 128), (48, 64), 1.5
HEATMAP_FROM_WEAK = torch.from_numpy(heatmap_affine(INPUT, MAP)).float()
JOINTS = torch.tensor([[[100.0, 80.0], [120.0, 130.0], [85.0, 135.0]]])  # image pixels; [1] is the left one
BOX = (50.0, 40.0, 100.0, 140.0)


def weak_view(flip: bool = False, rotation: float = 0.0) -> Tensor:
    view = augment_affine(INPUT, rotation=rotation, flip=flip) @ crop_affine(BOX, INPUT)
    return torch.from_numpy(view).float()[None]


def perfect_teacher(weak_from_image: Tensor, peak: float = 1.0) -> Tensor:
    """Heatmaps (1, K, h, w) as a right network draws them: a mirrored left hand is a right hand."""
    matrix = (HEATMAP_FROM_WEAK @ weak_from_image[0]).double()
    points = JOINTS[0].double() @ matrix[:2, :2].T + matrix[:2, 2]
    if torch.linalg.det(matrix) < 0:
        points = points[FLIP]
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    square = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
    return peak * torch.exp(-square / (2 * SIGMA**2)).float()[None]


def labeler(gate: HybridGate | None = None, threshold: float = 0.5) -> PseudoLabeler:
    return PseudoLabeler(SIGMA, FLIP, KeypointFilter(3, threshold), gate or HybridGate())


def label(module: PseudoLabeler, maps: Tensor, view: Tensor, mirrored: Tensor | None = None, **options):
    views = [TeacherView(maps, "heatmap", view, mirrored)]
    return module(views, HEATMAP_FROM_WEAK, torch.tensor([118.0]), **options)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [0.0, 12.0])
def test_a_perfect_teacher_gives_back_the_persons_joints_in_the_image(flip, rotation):
    view = weak_view(flip, rotation)
    labels = label(labeler(), perfect_teacher(view), view)
    pixel = 1 / (HEATMAP_FROM_WEAK @ view[0])[:2, :2].det().abs().sqrt()  # a heatmap pixel in the image
    assert (labels.keypoints - JOINTS).abs().max() < 0.1 * pixel
    assert labels.confidence.min() > 0.9
    assert labels.keep.all() and labels.teacher_a.all() and labels.weights.eq(1).all()
    assert torch.equal(labels.corrected, labels.keypoints)
    torch.testing.assert_close(labels.probability.sum((-2, -1)), torch.ones(1, 3))


def test_maps_stay_in_the_view_but_channels_are_the_persons_own():
    view = weak_view(flip=True)
    maps = perfect_teacher(view)
    labels = label(labeler(), maps, view)
    for k in range(3):
        assert labels.probability[0, k].argmax() == maps[0, FLIP[k]].argmax()


def test_the_mirrored_pass_agrees_where_the_teacher_is_right():
    view = weak_view()
    mirrored_view = torch.tensor([[-1.0, 0, INPUT[0] - 1], [0, 1, 0], [0, 0, 1]]) @ view
    alone = label(labeler(), perfect_teacher(view), view)
    fused = label(labeler(), perfect_teacher(view), view, mirrored=perfect_teacher(mirrored_view))
    torch.testing.assert_close(fused.probability, alone.probability, atol=1e-5, rtol=0)


def test_passes_that_disagree_halve_the_confidence():
    maps = torch.zeros(1, 3, 64, 48)
    maps[:, :, 20, 10] = 1
    other = maps.roll(20, -1)
    fused = fuse_flip(maps, other.flip(-1)[:, FLIP], FLIP)
    assert fused.amax((-2, -1)).tolist() == [[0.5] * 3]
    assert torch.equal(fuse_flip(maps, maps.flip(-1)[:, FLIP], FLIP), maps)


def test_unsure_joints_are_dropped_and_kept_ones_judge_the_pose():
    view = weak_view()
    maps = perfect_teacher(view)
    maps[0, 2] = maps[0, 2] + 0.02  # a pedestal takes mass from the peak
    labels = label(labeler(threshold=0.8), maps, view)
    assert labels.keep.tolist() == [[True, True, False]]
    assert labels.plausibility.item() == pytest.approx(labels.confidence[0, :2].mean().item())
    assert label(labeler(threshold=1.0), maps, view).plausibility.item() == 0


def test_the_prior_is_asked_in_the_image_and_teaches_softly():
    seen = []

    def correct(keypoints: Tensor, confidence: Tensor) -> Tensor:
        seen.append((keypoints, confidence))
        moved = keypoints + 3
        moved[0, 1] = math.nan
        return moved

    gate = HybridGate(teacher_b="diffusion", weight_b=0.4)
    gate.threshold_plausibility = 2.0  # nobody reaches it
    view = weak_view(flip=True)
    labels = label(labeler(gate), perfect_teacher(view), view, correct=correct)
    assert torch.equal(seen[0][0], labels.keypoints) and torch.equal(seen[0][1], labels.confidence)
    assert not labels.teacher_a.any()
    assert labels.weights.tolist() == [[pytest.approx(0.4), 0, pytest.approx(0.4)]]
    torch.testing.assert_close(labels.corrected[0, [0, 2]], labels.keypoints[0, [0, 2]] + 3)
    assert labels.corrected.isfinite().all()


def test_labels_carry_no_gradient():
    view = weak_view()
    labels = label(labeler(), perfect_teacher(view).requires_grad_(), view)
    assert not labels.probability.requires_grad and not labels.keypoints.requires_grad


@pytest.mark.parametrize("what", [math.nan, math.inf])
@pytest.mark.parametrize("joints", [[1], [0, 1, 2]])
def test_what_is_not_finite_is_dropped_and_not_handed_on(what, joints):
    view = weak_view()
    maps = perfect_teacher(view).repeat(2, 1, 1, 1)
    maps[0, joints] = what
    labels = label(labeler(), maps, view)
    assert all(getattr(labels, one.name).isfinite().all() for one in fields(labels))
    kept = torch.ones(2, 3, dtype=torch.bool)
    kept[0, joints] = False
    assert torch.equal(labels.keep, kept)
    alone = label(labeler(), perfect_teacher(view), view)
    torch.testing.assert_close(labels.keypoints[1:], alone.keypoints)


# -- left and right --------------------------------------------------------------------------------------

PAIRS, TORSO = torch.tensor(COCO17.mirrored_joints), torch.tensor(COCO17.torso_joints)
PARTNER = torch.tensor(COCO17.flip_indices)
PARTS = ("gate", "plausibility", "instances", "coupling")


def infant() -> Tensor:
    """(17, 2) image pixels: on its back, head up, its left at the picture's right."""
    height = torch.tensor([52.0, 48, 50, 70, 88, 104, 116, 138, 160])
    width = torch.tensor([0.0, 6, 10, 22, 27, 30, 16, 21, 25])
    points = torch.empty(17, 2)
    points[0] = torch.tensor([100.0, height[0]])
    points[PAIRS[:, 0]] = torch.stack([100 + width[1:], height[1:]], -1)
    points[PAIRS[:, 1]] = torch.stack([100 - width[1:], height[1:]], -1)
    return points


def infant_view(points: Tensor, flip: bool = False) -> TeacherView:
    """What a right network sees of joints (17, 2) in the image."""
    view = weak_view(flip)
    matrix = HEATMAP_FROM_WEAK @ view[0]
    points = points @ matrix[:2, :2].T + matrix[:2, 2]
    points = points[PARTNER] if flip else points
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    square = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
    return TeacherView(torch.exp(-square / (2 * SIGMA**2))[None], "heatmap", view)


def label_views(views: list[TeacherView], fixed_votes: Tensor | None, parts: dict, box=118.0, **options):
    swaps = (FacingVote(PAIRS, TORSO, SIGMA), SwapCheck(PARTNER, weight_back=3.0))
    parts = dict(keypoint_filter=KeypointFilter(17), gate=HybridGate(), swaps=swaps) | parts
    module = PseudoLabeler(SIGMA, PARTNER, **parts)
    assert module.votes(views, HEATMAP_FROM_WEAK, torch.tensor([box])).item() > 0.4
    return module(views, HEATMAP_FROM_WEAK, torch.tensor([box]), fixed_votes=fixed_votes, **options)


def label_infant(fixed_votes: Tensor | None, flip: bool = False, box: float = 118.0, **options):
    parts = {name: options.pop(name) for name in PARTS if name in options}
    return label_views([infant_view(infant(), flip)], fixed_votes, parts, box, **options)


@pytest.mark.parametrize("flip", [False, True])
def test_names_that_contradict_a_sure_vote_are_exchanged(flip):
    alike, other = label_infant(torch.tensor([0.9]), flip), label_infant(torch.tensor([-0.9]), flip)
    assert (alike.keypoints[0] - infant()).abs().max() < 0.6
    torch.testing.assert_close(other.keypoints, alike.keypoints[:, PARTNER])
    torch.testing.assert_close(other.probability, alike.probability[:, PARTNER])
    assert alike.fate.eq(Fate.KEPT).all() and alike.weights.eq(1).all()
    paired = PARTNER != torch.arange(17)
    assert torch.equal(other.fate[0] == Fate.CORRECTED, paired) and other.weights.eq(3).all()
    assert alike.places.eq(0).all() and other.places.eq(0).all()


def test_names_that_nobody_is_sure_of_are_silent_and_their_places_are_not():
    labels = label_infant(torch.tensor([0.05]))
    paired = PARTNER != torch.arange(17)
    assert torch.equal(labels.fate[0] == Fate.SWAPPED, paired)
    assert labels.weights[0].tolist() == (~paired).float().tolist()
    assert labels.places[0].tolist() == paired.float().tolist()


def test_silent_names_are_not_learned_from_the_prior_s_pose_either():
    gate = HybridGate(teacher_b="diffusion")
    gate.threshold_plausibility = 2.0  # nobody reaches it
    labels = label_infant(torch.tensor([0.05]), gate=gate, correct=lambda keypoints, _: keypoints)
    paired = PARTNER != torch.arange(17)
    assert not labels.teacher_a.any() and torch.equal(labels.keep[0], ~paired)
    assert torch.equal(labels.fate[0] == Fate.SWAPPED, paired)


def test_without_a_vote_names_stay_as_they_are():
    labels = label_infant(None)
    assert labels.fate.eq(Fate.KEPT).all() and labels.places.eq(0).all()


SILENT, FRONT = torch.tensor([0.05]), torch.tensor([0.9])
GIANT = 40.0  # the box that makes a giant of the infant


@pytest.fixture(scope="module")
def stats():
    points = infant().numpy() + np.random.default_rng(0).normal(0, 2, (100, 17, 2))
    seen = np.concatenate([points, np.full((100, 17, 1), 2.0)], -1)
    return compute_stats(seen, np.tile([0.0, 0.0, 118.0, 118.0], (100, 1)), COCO17)


def test_whole_persons_are_judged_by_their_silent_joints_too(stats):
    gate = InstanceGate(stats, SIGMA, size=1.2)
    fit, giant = (label_infant(SILENT, box=box, instances=gate) for box in (118.0, GIANT))
    assert fit.places.sum() == 16
    assert giant.places.eq(0).all() and giant.weights.eq(0).all() and giant.fate.eq(Fate.INSTANCE).all()


def test_a_person_that_the_gate_refuses_teaches_no_places():
    labels = label_infant(SILENT, gate=HybridGate(threshold_confidence=1.0))
    assert not labels.teacher_a.any() and labels.places.eq(0).all() and labels.fate.eq(Fate.REFUSED).all()


def test_a_silent_body_is_as_plausible_as_a_named_one(stats):
    scores = [
        [
            label_infant(vote, box=box, plausibility=Plausibility.from_stats(stats)).plausibility.item()
            for vote in (SILENT, FRONT)
        ]
        for box in (118.0, GIANT)
    ]
    assert scores[0][0] == scores[0][1] > 0.9 and scores[1][0] == scores[1][1] < 0.8


def test_an_implausible_structure_lowers_the_weights_of_places_as_well(stats):
    coupling = StructuralCoupling(stats)
    silent, named = (label_infant(vote, box=GIANT, coupling=coupling) for vote in (SILENT, FRONT))
    paired = PARTNER != torch.arange(17)
    assert named.weights[0, 5:].max() < 0.5
    torch.testing.assert_close(silent.places[0, paired], named.weights[0, paired])


@pytest.mark.parametrize(("vote", "dropped"), [(0.9, 9), (-0.9, 10)])
def test_the_views_disagreement_goes_with_the_joint_that_is_renamed(vote, dropped):
    other = infant()
    other[9] += torch.tensor([-20.0, 25.0])  # the teacher's left wrist
    views = [infant_view(infant()), infant_view(other)]
    parts = dict(
        fusion=ViewFusion(SIGMA, on_disagreement="drop"), keypoint_filter=KeypointFilter(17, threshold=0.2)
    )
    labels = label_views(views, torch.tensor([vote]), parts)
    assert (labels.weights[0] == 0).nonzero().flatten().tolist() == [dropped]
    assert labels.fate[0, dropped] == Fate.DISAGREE


def test_one_blind_joint_leaves_the_body_its_vote():
    view = infant_view(infant())
    view.heatmaps[:, 9] = math.nan
    labels = label_views([view], torch.tensor([-0.9]), {})
    assert labels.fate[0, 9:11].tolist() == [Fate.CORRECTED, Fate.LOW_CONFIDENCE]
    assert labels.places.eq(0).all() and labels.keypoints.isfinite().all()
