import math

import pytest
import torch
from torch import Tensor

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import augment_affine, crop_affine, heatmap_affine, transform_points
from sagecache.geometry.heatmap import decode
from sagecache.semi.fusion import TeacherView, ViewFusion, fuse_flip

FLIP = torch.tensor([0, 2, 1])  # nose, left, right
INPUT, MAP, SIGMA = (96, 128), (48, 64), 1.5
TO_MAP = torch.from_numpy(heatmap_affine(INPUT, MAP)).float()
JOINTS = torch.tensor([[100.0, 80.0], [120.0, 130.0], [85.0, 135.0]])  # image pixels; [1] is the left one
CROP = torch.from_numpy(crop_affine((50.0, 40.0, 100.0, 140.0), INPUT)).float()
MIRROR = torch.tensor([[-1.0, 0, INPUT[0] - 1], [0, 1, 0], [0, 0, 1]])


def drawn(points: Tensor, peak: float = 1.0) -> Tensor:
    """Maps (1, K, h, w) of ideal peak 1 times `peak`, points (K, 2) in map pixels."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    square = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
    return peak * torch.exp(-square / (2 * SIGMA**2))[None]


def seen(view_from_crop: Tensor, joints: Tensor = JOINTS) -> Tensor:
    """What a right network draws in a view: a mirrored left hand is a right hand."""
    matrix = TO_MAP @ view_from_crop @ CROP
    points = transform_points(matrix, joints)
    return drawn(points[FLIP] if torch.linalg.det(matrix) < 0 else points)


def view(matrix: Tensor, joints: Tensor = JOINTS, mirrored: bool = False) -> TeacherView:
    other = seen(MIRROR @ matrix, joints) if mirrored else None
    return TeacherView(seen(matrix, joints), "heatmap", (matrix @ CROP)[None], other)


def augmented(**options) -> Tensor:
    return torch.from_numpy(augment_affine(INPUT, **options)).float()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "options", [dict(), dict(rotation=15.0), dict(flip=True, scale=1.2), dict(rotation=-10.0, shift=(0.1, 0))]
)
def test_views_of_a_right_teacher_fuse_to_the_joints_of_the_first_view(options, mirrored):
    views = [view(torch.eye(3), mirrored=mirrored), view(augmented(**options), mirrored=mirrored)]
    fused = ViewFusion(SIGMA)(views, TO_MAP, FLIP)
    points, confidence = decode(fused.probability, SIGMA)
    assert (points - transform_points(TO_MAP @ CROP, JOINTS)).abs().max() < 0.15
    assert confidence.min() > 0.85 and fused.agreement.min() > 0.999 and not fused.disagree.any()
    torch.testing.assert_close(fused.probability.sum((-2, -1)), torch.ones(1, 3))


def test_one_view_is_left_as_it_is():
    fused = ViewFusion(SIGMA)([view(torch.eye(3))], TO_MAP, FLIP)
    expected = seen(torch.eye(3)) / seen(torch.eye(3)).sum((-2, -1), keepdim=True)
    torch.testing.assert_close(fused.probability, expected, atol=5e-5, rtol=0)
    assert fused.agreement.eq(1).all() and not fused.disagree.any()


def normalised(maps: Tensor) -> Tensor:
    return maps / maps.sum((-2, -1), keepdim=True)


def pair(distance: float, blur: float = 0.0) -> Tensor:
    """Two views (2, 1, 1, h, w): modes this far apart; the second one flattened by a pedestal."""
    first = drawn(torch.tensor([[10.0, 20.0]]))
    second = drawn(torch.tensor([[10.0 + distance, 20.0]])) + blur
    return torch.stack([normalised(first), normalised(second)])


@pytest.mark.parametrize("temperature", [0.25, 0.5, 2.0])
def test_weights_are_a_softmax_of_the_confidences(temperature):
    maps = pair(1.0, blur=0.02)
    seen = torch.ones(2, 1, 1, dtype=torch.bool)
    fused = ViewFusion(SIGMA, temperature=temperature).fuse(maps, seen)
    peak = [2 * math.pi * SIGMA**2 * one.max().item() for one in maps]
    alpha = 1 / (1 + math.exp((min(1, peak[1]) - min(1, peak[0])) / temperature))
    torch.testing.assert_close(fused.probability, alpha * maps[0] + (1 - alpha) * maps[1])


def test_two_opinions_are_not_averaged_and_cost_confidence():
    maps, seen = pair(8.0, blur=0.001), torch.ones(2, 1, 1, dtype=torch.bool)
    fusions = {rule: ViewFusion(SIGMA, on_disagreement=rule) for rule in ("average", "best", "drop")}
    results = {rule: fusion.fuse(maps, seen) for rule, fusion in fusions.items()}
    assert all(result.disagree.all() for result in results.values())
    torch.testing.assert_close(results["best"].probability, maps[0])
    torch.testing.assert_close(results["drop"].probability, maps[0])
    assert results["average"].probability[0, 0, 20, 18] > 0.3 * maps[1].max()  # the other mode is still there
    whole = {rule: decode(r.probability, SIGMA)[1] * r.agreement for rule, r in results.items()}
    torch.testing.assert_close(whole["best"], whole["average"], atol=0.01, rtol=0)
    assert 0.45 < whole["best"].item() < 0.65


@pytest.mark.parametrize("distance, two", [(0, False), (3, False), (4, True), (9, True)])
def test_opinions_differ_beyond_two_sigmas(distance, two):
    fused = ViewFusion(SIGMA).fuse(pair(distance), torch.ones(2, 1, 1, dtype=torch.bool))
    assert bool(fused.disagree) == two


def test_a_joint_out_of_a_view_is_left_to_the_others():
    away = augmented(shift=(0.9, 0.0))
    fused = ViewFusion(SIGMA, on_disagreement="drop")([view(torch.eye(3)), view(away)], TO_MAP, FLIP)
    alone = ViewFusion(SIGMA)([view(torch.eye(3))], TO_MAP, FLIP)
    torch.testing.assert_close(fused.probability[:, 1], alone.probability[:, 1])  # the left one left the view
    assert not fused.disagree[:, 1] and fused.agreement[:, 1] == 1


def test_one_weight_a_person_cannot_trust_one_view_s_wrist_and_the_other_s_hip():
    first = torch.cat([pair(0.0)[0], pair(0.0, blur=0.05)[1]], 1)  # sure of joint 0, unsure of joint 1
    second = first.flip(1)
    maps, seen = torch.stack([first, second]), torch.ones(2, 1, 2, dtype=torch.bool)
    by_joint = ViewFusion(SIGMA, temperature=0.1).fuse(maps, seen)
    by_person = ViewFusion(SIGMA, temperature=0.1, by="instance").fuse(maps, seen)
    assert decode(by_joint.probability, SIGMA)[1].min() > decode(by_person.probability, SIGMA)[1].max() + 0.1
    torch.testing.assert_close(by_person.probability[:, 0], by_person.probability[:, 1])


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_the_surest_person_s_mode_is_the_one_that_weighs_most(temperature):
    """The first view is surer of the person, the second one of joint 0, which it puts elsewhere."""
    first = torch.cat([pair(0.0, blur=0.02)[1], pair(0.0)[0], pair(0.0)[0]], 1)
    second = torch.cat([pair(8.0)[1], pair(0.0, blur=0.05)[1], pair(0.0, blur=0.05)[1]], 1)
    maps, seen = torch.stack([first, second]), torch.ones(2, 1, 3, dtype=torch.bool)
    fused = ViewFusion(SIGMA, temperature=temperature, by="instance").fuse(maps, seen)
    assert fused.disagree[0].tolist() == [True, False, False] and fused.agreement.min() > 0.5
    torch.testing.assert_close(fused.probability[:, 0], first[:, 0])


def test_flipped_passes_that_disagree_halve_the_confidence():
    maps = torch.zeros(1, 3, 64, 48)
    maps[:, :, 20, 10] = 1
    other = maps.roll(20, -1)
    assert fuse_flip(maps, other.flip(-1)[:, FLIP], FLIP).amax((-2, -1)).tolist() == [[0.5] * 3]
    assert torch.equal(fuse_flip(maps, maps.flip(-1)[:, FLIP], FLIP), maps)


@pytest.mark.parametrize(
    "options", [dict(temperature=0.0), dict(by="limb"), dict(disagreement=-1.0), dict(on_disagreement="vote")]
)
def test_unknown_or_impossible_options_are_named(options):
    with pytest.raises(SagecacheError, match=next(iter(options))):
        ViewFusion(SIGMA, **options)


def test_a_mirrored_pass_of_another_frame_is_put_in_place_exactly():
    """Divided by the stride of 2, x' = 47.5 - x: a peak at 20 is seen at 27.5, half of it in 27 and in 28."""
    plain, mirrored = torch.zeros(2, 1, 3, 64, 48)
    plain[..., 5, 20] = 1
    mirrored[..., 5, 27:29] = 0.5
    mirror = torch.tensor([[-1.0, 0, 47.5], [0, 1, 0], [0, 0, 1]])
    fused = fuse_flip(plain, mirrored, FLIP, mirror)[0, 0, 5]
    torch.testing.assert_close(fused[19:22], torch.tensor([0.125, 0.75, 0.125]))
    marked = mirrored.clone()
    marked[:, 1] = 0
    assert fuse_flip(plain, marked, FLIP, mirror)[0, 2, 5, 20] == 0.5  # and channels change places
