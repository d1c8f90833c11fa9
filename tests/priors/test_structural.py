"""The structural prior against a slow loop, gradcheck, known arms, and as terms of a batch."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import (
    augment_affine,
    crop_affine,
    heatmap_affine,
    is_mirrored,
    swap_mirrored,
    transform_points,
)
from sagecache.geometry.heatmap import gaussian, probability, soft_argmax
from sagecache.geometry.pose import JOINT_NOISE, Limits, angle_limits, limb_limits, offset_limits
from sagecache.priors import structural
from sagecache.priors.frames import labels_in_view
from sagecache.skeleton import COCO17
from sagecache.skeleton.stats import compute_stats
from sagecache.structures import Fate, PseudoLabels, UnlabeledBatch

FLIP = torch.tensor(COCO17.flip_indices)
INPUT, MAP, SIGMA = (96, 128), (24, 32), 1.5


@pytest.fixture(scope="module")
def labeled(family):
    keypoints = family(200, 3)
    low, high = keypoints[..., :2].min(1), keypoints[..., :2].max(1)
    return keypoints, np.concatenate([low, high - low], 1)


@pytest.fixture(scope="module")
def stats(labeled):
    return compute_stats(*labeled, COCO17)


@pytest.fixture(scope="module")
def bodies(labeled):
    """Eight of the labeled bodies: keypoints, present, bbox_scale, float64."""
    keypoints, boxes = labeled[0][:8], labeled[1][:8]
    scale = torch.from_numpy(np.sqrt(boxes[:, 2] * boxes[:, 3])).double()
    return torch.from_numpy(keypoints[..., :2]).double(), torch.ones(8, 17, dtype=torch.bool), scale


LOSSES = {
    "bone": (structural.bone_loss, limb_limits),
    "topology": (structural.topology_loss, offset_limits),
    "angle": (structural.angle_loss, angle_limits),
}


def total(name: str, stats, keypoints: Tensor, present: Tensor, scale: Tensor) -> Tensor:
    loss, weight = LOSSES[name][0](keypoints, present, scale, LOSSES[name][1](stats))
    return (weight * loss).sum()


# --- known arms: shoulder, elbow, wrist ----------------------------------------------------------

BONES = Limits(torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.2, 0.2]), torch.tensor([0.5, 0.5]))
BEND = Limits(torch.tensor([[0, 1, 2]]), torch.tensor([math.radians(60)]), torch.tensor([math.radians(150)]))
OFFSET = Limits(torch.tensor([[-0.5, 1, -0.5]]), torch.tensor([0.1]), torch.tensor([0.3]))
SCALE, SEEN = torch.tensor([100.0]), torch.ones(1, 3, dtype=torch.bool)


def arm(upper: float, fore: float, degrees: float) -> Tensor:
    angle = math.radians(degrees)
    wrist = [fore * math.cos(angle), fore * math.sin(angle)]
    return torch.tensor([[[upper, 0.0], [0.0, 0.0], wrist]])


def smooth(excess: float, beta: float) -> float:
    return excess**2 / (2 * beta) if excess < beta else excess - beta / 2


@pytest.mark.parametrize(
    "fore, price",
    [(35, 0), (21, 0), (49, 0), (52, smooth(0.02, 0.05)), (90, 0.375), (18, 0.25 * 0.004), (0, 0.25 * 0.175)],
)
def test_a_limb_costs_what_lies_beyond_its_range(fore, price):
    loss, weight = structural.bone_loss(arm(30, fore, 90), SEEN, SCALE, BONES)
    assert weight.tolist() == [[1, 1]] and loss[0, 0] == 0
    assert loss[0, 1].item() == pytest.approx(price, abs=1e-4)


def test_short_is_the_price_of_the_lower_side():
    for short in (0.0, 1.0):
        loss, _ = structural.bone_loss(arm(90, 0.0, 90), SEEN, SCALE, BONES, short)
        assert_close(loss[0], torch.tensor([0.375, short * 0.175]), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "degrees, price", [(61, 0), (149, 0), (155, smooth(math.radians(5), 0.2)), (30, math.radians(30) - 0.1)]
)
def test_an_angle_costs_both_ways_and_a_short_side_says_little(degrees, price):
    loss, weight = structural.angle_loss(arm(30, 30, degrees), SEEN, SCALE, BEND)
    assert loss.item() == pytest.approx(price, abs=1e-4) and weight.item() == pytest.approx(0.98, abs=0.005)
    loss, weight = structural.angle_loss(arm(30, 100 * JOINT_NOISE, degrees), SEEN, SCALE, BEND)
    assert loss.item() == pytest.approx(price, abs=1e-4) and weight.item() == pytest.approx(0.495, abs=0.005)


@pytest.mark.parametrize("height, price", [(20, 0), (50, 0.175), (2, 0.25 * 0.055)])
def test_a_torn_joint_lies_far_from_the_mean_of_its_neighbours(height, price):
    points = torch.tensor([[[-30.0, 0.0], [0.0, height], [30.0, 0.0]]])
    loss, weight = structural.topology_loss(points, SEEN, SCALE, OFFSET)
    assert weight.item() == 1 and loss.item() == pytest.approx(price, abs=1e-4)


# --- whole bodies --------------------------------------------------------------------------------


def slow(name: str, stats, points: np.ndarray, scale: float) -> float:
    """The same sums by plain loops, from the statistics' own rows; left and right share the wider range."""
    skeleton, price = stats.skeleton, 0.0

    def wider(summary, names, twin, low, high):
        lows, highs = getattr(summary, low), getattr(summary, high)
        return min(lows[names], lows[twin]), max(highs[names], highs[twin])

    def row_of(rows, wanted):
        return next(
            i for i, row in enumerate(rows) if sorted(row) == sorted(wanted) and row[1:2] == wanted[1:2]
        )

    if name == "bone":
        rows = skeleton.limb_edges.tolist()
        for e, (a, b) in enumerate(rows):
            mirrored = {int(FLIP[a]), int(FLIP[b])}
            twin = next(i for i, row in enumerate(rows) if set(row) == mirrored)
            low, high = wider(stats.limb(), e, twin, "q01", "q99")
            length = math.dist(points[a], points[b]) / scale
            price += smooth(max(0, length - high), 0.05) + 0.25 * smooth(max(0, low - length), 0.05)
    elif name == "topology":
        for k in range(17):
            near = [int(a if b == k else b) for a, b in skeleton.edges if k in (a, b)]
            low, high = wider(stats.offsets, k, int(FLIP[k]), "q01", "q99")
            length = math.dist(points[k], np.mean([points[j] for j in near], 0)) / scale
            price += smooth(max(0, length - high), 0.05) + 0.25 * smooth(max(0, low - length), 0.05)
    else:
        rows = skeleton.angle_triplets.tolist()
        for t, (a, v, b) in enumerate(rows):
            twin = row_of(rows, [int(FLIP[k]) for k in (a, v, b)])
            low, high = wider(stats.angles, t, twin, "q025", "q975")
            u, w = (points[a] - points[v]) / scale, (points[b] - points[v]) / scale
            angle = math.acos(np.clip(u @ w / np.linalg.norm(u) / np.linalg.norm(w), -1, 1))
            trust = np.prod([side @ side / (side @ side + JOINT_NOISE**2) for side in (u, w)])
            price += trust * (smooth(max(0, angle - high), 0.2) + smooth(max(0, low - angle), 0.2))
    return price


@pytest.mark.parametrize("name", LOSSES)
def test_against_a_slow_loop(name, stats, bodies):
    keypoints, present, scale = bodies
    generator = torch.Generator().manual_seed(0)
    moved = keypoints + 0.15 * scale[:, None, None] * torch.randn(keypoints.shape, generator=generator)
    expected = sum(slow(name, stats, moved[b].numpy(), scale[b].item()) for b in range(8))
    assert expected > 0.1
    assert total(name, stats, moved, present, scale).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_the_differences(name, stats, bodies):
    keypoints, present, scale = (value[:2] for value in bodies)
    generator = torch.Generator().manual_seed(1)
    noise = 0.2 * torch.randn(2, 17, 2, generator=generator, dtype=torch.float64)
    points = (keypoints / scale[:, None, None] + noise).requires_grad_()
    function, limits = LOSSES[name][0], LOSSES[name][1](stats)
    assert function(points, present, torch.ones(2), limits)[0].sum() > 0.1
    assert torch.autograd.gradcheck(
        lambda p: function(p, present, torch.ones(2).double(), limits)[0], (points,)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_labeled_bodies_cost_next_to_nothing_and_a_wrong_wrist_does(name, stats, labeled):
    """A wrist torn off, and for angles one that lies on the shoulder: its limb has about its length."""
    keypoints = torch.from_numpy(labeled[0][..., :2])
    scale = torch.from_numpy(np.sqrt(labeled[1][:, 2] * labeled[1][:, 3]))
    present = torch.ones(len(keypoints), 17, dtype=torch.bool)
    torn = keypoints.clone()
    torn[:, 9] = torn[:, 5] if name == "angle" else torn[:, 9] + scale[:, None] * torch.tensor([0.6, 0.0])
    normal, odd = (total(name, stats, each, present, scale).item() for each in (keypoints, torn))
    assert normal / len(keypoints) < 0.01 and odd > 10 * normal


@pytest.mark.parametrize("name", LOSSES)
def test_position_size_and_rotation_make_no_difference(name, stats, bodies):
    keypoints, present, scale = bodies
    torn = keypoints.clone()
    torn[:, [9, 14]] += 0.4 * scale[:, None, None]
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    here, there = total(name, stats, torn, present, scale), 3 * (torn @ turn.T) + 50
    assert here > 0.1
    assert_close(total(name, stats, there, present, 3 * scale), here, rtol=1e-4, atol=1e-6)
    mirrored = torn[:, FLIP] * torch.tensor([-1.0, 1.0])
    assert_close(total(name, stats, mirrored, present, scale), here, rtol=1e-4, atol=1e-6)


def test_a_body_gains_nothing_by_shrinking(stats, bodies):
    """p^T L p falls with the square of the size; here a smaller body costs more, and the slope agrees."""
    keypoints, present, scale = bodies
    centre = keypoints.mean(1, keepdim=True)
    edges = torch.tensor(COCO17.edges)

    def sizes(function) -> list[float]:
        return [function(centre + size * (keypoints - centre)) for size in (1.0, 0.6, 0.3, 0.01)]

    def dirichlet(points: Tensor) -> float:
        return (points[:, edges[:, 0]] - points[:, edges[:, 1]]).square().sum().item()

    assert sizes(dirichlet) == sorted(sizes(dirichlet), reverse=True)
    for name in ("bone", "topology"):
        prices = sizes(lambda points, name=name: total(name, stats, points, present, scale).item())
        assert prices == sorted(prices) and prices[-1] > 10 * prices[0] + 0.1, (name, prices)
    size = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    total("bone", stats, centre + size * (keypoints - centre), present, scale).backward()
    assert size.grad < 0


@pytest.mark.parametrize("name", LOSSES)
def test_absent_joints_hold_anything_and_get_no_gradient(name, stats, bodies):
    keypoints, present, scale = bodies
    torn, present = keypoints.clone(), present.clone()
    torn[:, 9] += 0.5 * scale[:, None]
    torn[:, 9, 0] = math.nan
    torn[:, 8] += 0.6 * scale[:, None]
    present[:, 9] = False
    torn.requires_grad_()
    price = total(name, stats, torn, present, scale)
    price.backward()
    assert price > 0.1 and torn.grad.isfinite().all()
    assert (torn.grad[:, 9] == 0).all() and torn.grad[:, 8].abs().max() > 0
    nobody = total(name, stats, torn, torch.zeros_like(present), scale)
    assert nobody == 0


@pytest.mark.parametrize("name", LOSSES)
def test_all_joints_in_one_place_give_a_finite_gradient(name, stats):
    points = torch.full((1, 17, 2), 30.0, requires_grad=True)
    total(name, stats, points, torch.ones(1, 17, dtype=torch.bool), torch.tensor([80.0])).backward()
    assert points.grad.isfinite().all()


def test_autocast_changes_nothing(stats, bodies):
    keypoints, present, scale = (value.float() if value.is_floating_point() else value for value in bodies)
    torn = keypoints + 30 * torch.randn(keypoints.shape, generator=torch.Generator().manual_seed(2))
    for name in LOSSES:
        with torch.autocast("cpu", torch.bfloat16):
            inside = total(name, stats, torn, present, scale)
        assert torch.equal(inside, total(name, stats, torn, present, scale)) and inside.dtype == torch.float32


# --- terms ---------------------------------------------------------------------------------------


def terms(stats) -> list[structural.StructuralTerm]:
    return [
        structural.BoneLength(limb_limits(stats), FLIP),
        structural.Topology(offset_limits(stats), FLIP),
        structural.JointAngle(angle_limits(stats), FLIP),
    ]


def make_batch(labeled, predicted: Tensor, **options) -> UnlabeledBatch:
    """Four labeled bodies seen on strong views; predicted (4, 17, 2): the student's pose, image pixels."""
    truth = torch.from_numpy(labeled[0][:4, :, :2])
    crops = torch.from_numpy(np.stack([crop_affine(box, INPUT) for box in labeled[1][:4]])).float()
    strong = torch.from_numpy(augment_affine(INPUT, **options)).float() @ crops
    student = swap_mirrored(transform_points(strong, predicted), is_mirrored(strong), FLIP)
    ones = torch.ones(4, 17)
    labels = PseudoLabels(
        probability=torch.zeros(4, 17, 1, 1),
        keypoints=truth,
        confidence=ones,
        plausibility=ones[:, 0],
        teacher_a=ones[:, 0] > 0,
        weights=0 * ones,  # the prior takes part all the same
        fate=torch.full((4, 17), Fate.LOW_CONFIDENCE),
        places=torch.zeros(4, 17),
        corrected=truth,
    )
    boxes = torch.from_numpy(labeled[1][:4])
    return UnlabeledBatch(
        student_heatmaps=torch.zeros(4, 17, MAP[1], MAP[0]),
        heatmap_kind="logits",
        student_keypoints=student,
        student_from_teacher=torch.eye(3).expand(4, 3, 3),
        heatmap_from_strong=torch.from_numpy(heatmap_affine(INPUT, MAP)).float(),
        strong_from_image=strong,
        target_from_image=torch.eye(3).expand(4, 3, 3),
        bbox_scale=(boxes[:, 2] * boxes[:, 3]).sqrt(),
        pseudo_labels=labels,
        targets={},
        step=0,
        strong_size=INPUT,
    )


@pytest.fixture(scope="module")
def torn(labeled):
    """Left arms torn off to one side: what mirrored views must not take for right ones."""
    points = torch.from_numpy(labeled[0][:4, :, :2]).clone()
    scale = torch.from_numpy(np.sqrt(labeled[1][:4, 2] * labeled[1][:4, 3]))
    points[:, 9] += scale[:, None] * torch.tensor([0.5, 0.3])
    return points


@pytest.mark.parametrize("options", [dict(scale=0.6, flip=True), dict(scale=0.5, rotation=-40.0)])
def test_terms_are_the_same_on_every_view_that_holds_the_body(options, stats, labeled, torn):
    uneven = limb_limits(stats)
    uneven = uneven._replace(high=uneven.high + 0.2 * (uneven.rows == 7).any(-1))  # left and right differ
    for term in [*terms(stats), structural.BoneLength(uneven, FLIP)]:
        here, there = term(make_batch(labeled, torn, scale=0.9)), term(make_batch(labeled, torn, **options))
        assert here.loss > 1e-3 and 0 < here.scalars["outside"] < 1
        assert_close(there.loss, here.loss, rtol=1e-3, atol=1e-6)
        assert_close(there.scalars, here.scalars)


def test_the_loss_is_the_mean_over_what_was_measured(stats, labeled, torn):
    batch = make_batch(labeled, torn, scale=0.9)
    loss, weight = structural.bone_loss(torn, torch.ones(4, 17) > 0, batch.bbox_scale, limb_limits(stats))
    output = structural.BoneLength(limb_limits(stats), FLIP)(batch)
    assert_close(output.loss, loss.mean(), rtol=1e-4, atol=1e-6)
    assert_close(output.scalars["outside"], (loss > 0).float().mean())
    assert weight.min() == 1


def test_joints_that_left_the_strong_view_take_no_part(stats, labeled, torn):
    """By where the teacher saw them: the student's own maximum never lies outside."""
    truth = torch.from_numpy(labeled[0][:4, :, :2])
    batch = make_batch(labeled, torn, shift=(0.5, 0.1))
    present = labels_in_view(batch)
    inside = transform_points(batch.strong_from_image, truth)
    expected = ((inside >= 0) & (inside <= torch.tensor(INPUT) - 1)).all(-1)
    assert torch.equal(present, expected) and 0.1 < present.float().mean() < 0.9
    for term in terms(stats)[:2]:
        batch = make_batch(labeled, torn, scale=0.8)
        before = term(batch).loss
        batch.pseudo_labels.keypoints = truth.clone()
        batch.pseudo_labels.keypoints[:, 9] = 9999  # now the torn wrists alone are out of view
        assert term(batch).loss < 0.05 * before


def test_descent_through_the_maps_brings_a_torn_joint_back(stats, labeled, torn):
    """From raw maps over soft-argmax: gradients are finite, and the wrist comes nearer to its elbow."""
    batch = make_batch(labeled, torn, flip=True, scale=0.8)
    points = transform_points(batch.heatmap_from_strong, batch.student_keypoints)
    raw = (gaussian(points, MAP, SIGMA) + 1e-4).log().requires_grad_()
    from_map = torch.linalg.inv(batch.heatmap_from_strong)

    def loss_of(term) -> Tensor:
        peaks = soft_argmax(probability(raw, "logits"), SIGMA)
        batch.student_keypoints = transform_points(from_map, peaks)
        return term(batch).loss

    for term in terms(stats)[:2]:
        before = loss_of(term)
        (pull,) = torch.autograd.grad(before, raw)
        assert pull.isfinite().all() and pull[:, 10].abs().max() > 0  # channel 10: the view is mirrored
        assert pull[:, [0, 15, 16]].abs().max() == 0  # those are where labeled ones are
        with torch.no_grad():
            raw -= 20 * pull / pull.abs().max()
            after = loss_of(term)
            raw += 20 * pull / pull.abs().max()
        assert after < before


def test_keys_are_checked_and_silence_is_refused(stats, family):
    for cls, of in ((structural.BoneLength, limb_limits), (structural.Topology, offset_limits)):
        with pytest.raises(SagecacheError, match=r"short is -0.5, it must be in \[0, 1\]"):
            cls(of(stats), FLIP, short=-0.5)
    few = family(6, 0)
    limits = limb_limits(compute_stats(few, np.tile([0.0, 0, 9, 9], (6, 1)), COCO17))
    with pytest.raises(SagecacheError, match="too few labeled bodies.*'BoneLength'.*silent.*weight 0"):
        structural.BoneLength(limits, FLIP)
    assert not structural.BoneLength(limb_limits(stats), FLIP).state_dict()
