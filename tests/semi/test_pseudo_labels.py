import math

import pytest
import torch
from torch import Tensor

from sagecache.geometry.affine import augment_affine, crop_affine, heatmap_affine
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.fusion import TeacherView, fuse_flip
from sagecache.semi.gating import HybridGate
from sagecache.semi.pseudo_labels import PseudoLabeler

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
