"""What an implausible structure does to its own weight: torn joints, a slow oracle, real statistics."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from sagecache.errors import SagecacheError
from sagecache.geometry.pose import JOINT_NOISE, Limits, angle_limits, limb_limits
from sagecache.semi.coupling import (
    ANGLE_SOFTNESS,
    LEAST,
    LIMB_SOFTNESS,
    StructuralCoupling,
    structural_weight,
)
from sagecache.skeleton import COCO17
from sagecache.skeleton.stats import compute_stats


def bodies(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """COCO bodies about one pose, with boxes (count, 4)."""
    rng = np.random.default_rng(seed)
    x = [0, 5, -5, 10, -10, 25, -25, 40, -40, 50, -50, 15, -15, 25, -25, 20, -20]
    y = [0, -5, -5, 0, 0, 20, 20, 45, 45, 70, 70, 80, 80, 115, 115, 150, 150]
    points = np.stack([x, y], -1) + rng.normal(0, 4, (count, 17, 2))
    boxes = np.concatenate([points.min(1), points.max(1) - points.min(1)], 1)
    return np.concatenate([points, np.full((count, 17, 1), 2.0)], -1), boxes


@pytest.fixture(scope="module")
def stats():
    return compute_stats(*bodies(300), COCO17)


@pytest.fixture(scope="module")
def normal(stats):
    """Fresh bodies that lie within the ranges, or nearly."""
    keypoints, scale = tensors(*bodies(60, seed=1))
    usual = StructuralCoupling(stats)(keypoints, everything(keypoints), scale).amin(1) > 0.9
    assert usual.sum() >= 40
    return keypoints[usual][:40], scale[usual][:40]


def tensors(keypoints: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
    sides = torch.from_numpy(boxes[:, 2:]).float()
    return torch.from_numpy(keypoints[..., :2]).float(), sides.prod(1).sqrt()


def everything(keypoints: Tensor) -> Tensor:
    return torch.ones(keypoints.shape[:2], dtype=torch.bool)


def test_labeled_bodies_keep_their_weight(stats):
    keypoints, scale = tensors(*bodies(300))
    weight = StructuralCoupling(stats)(keypoints, everything(keypoints), scale)
    assert (weight == 1).float().mean() > 0.97 and weight.mean() > 0.99


@pytest.mark.parametrize("joint", [9, 10, 15, 16])
@pytest.mark.parametrize("direction", [(0.0, 1.0), (1.0, 0.0), (0.7, 0.7)])
def test_a_torn_end_joint_loses_its_weight_and_the_others_keep_theirs(joint, direction, stats, normal):
    """By half of sqrt(w h), away from its limb or across it; towards it the joint may end on another pose."""
    direction = (direction[0] * (1 if joint % 2 else -1), direction[1])  # left joints lie at x > 0
    keypoints, scale = normal
    torn = keypoints.clone()
    torn[:, joint] += 0.5 * scale[:, None] * torch.tensor(direction)
    away = (torn[:, joint] - torn[:, joint - 2]).norm(dim=-1) / scale > 0.5
    weight = StructuralCoupling(stats)(torn, everything(torn), scale)[away]
    assert weight[:, joint].max() < 0.3 and away.float().mean() > 0.3
    others = torch.arange(17) != joint
    assert weight[:, others].min() > 0.8


def test_a_torn_elbow_takes_its_wrist_along_and_nobody_else(stats, normal):
    keypoints, scale = normal
    torn = keypoints.clone()
    torn[:, 7, 0] += 0.8 * scale
    weight = StructuralCoupling(stats)(torn, everything(torn), scale)
    assert weight[:, [7, 9]].max() < 0.3
    assert weight[:, [k for k in range(17) if k not in (7, 9)]].min() > 0.8


def test_a_folded_elbow_lowers_the_wrist_by_its_angle_alone(stats, normal):
    """The wrist on the upper arm: its limb has its labeled length, the angle no labeled body's."""
    keypoints, scale = normal
    folded = keypoints.clone()
    back = keypoints[:, 5] - keypoints[:, 7]
    length = (keypoints[:, 9] - keypoints[:, 7]).norm(dim=-1, keepdim=True)
    folded[:, 9] = keypoints[:, 7] + length * back / back.norm(dim=-1, keepdim=True)
    weight = StructuralCoupling(stats)(folded, everything(folded), scale)
    assert weight[:, 9].max() < 0.01 and weight[:, [k for k in range(17) if k != 9]].min() > 0.8


def test_two_joints_torn_together_vouch_for_each_other(stats, normal):
    """The limit of a local judgement, which the docstring states."""
    keypoints, scale = normal
    torn = keypoints.clone()
    along = keypoints[:, 7] - keypoints[:, 5]  # no angle changes
    along = 0.4 * scale[:, None] * along / along.norm(dim=-1, keepdim=True)
    torn[:, [7, 9]] += along.unsqueeze(1)
    weight = StructuralCoupling(stats)(torn, everything(torn), scale)
    assert weight.min() > 0.8
    torn[:, 9] -= 3 * along  # apart from each other neither has a limb left that fits
    assert StructuralCoupling(stats)(torn, everything(torn), scale)[:, [7, 9]].max() < 0.3


def slow(points, present, scale, limbs: Limits, angles: Limits, softness: float) -> list[float]:
    """One body, plain loops."""
    weights = []
    for k in range(len(points)):
        best_limb, best_angle = None, None
        for (a, b), low, high in zip(
            limbs.rows.tolist(), limbs.low.tolist(), limbs.high.tolist(), strict=True
        ):
            if k in (a, b) and present[a] and present[b]:
                length = math.dist(points[a], points[b]) / scale
                beyond = max(0, length - high) + 0.25 * max(0, low - length)
                value = math.exp(-((beyond / softness / LIMB_SOFTNESS) ** 2))
                best_limb = value if best_limb is None else max(best_limb, value)
        for (a, v, b), low, high in zip(
            angles.rows.tolist(), angles.low.tolist(), angles.high.tolist(), strict=True
        ):
            if k in (a, v, b) and present[a] and present[v] and present[b]:
                u, w = (points[a] - points[v]) / scale, (points[b] - points[v]) / scale
                trust = np.prod([side @ side / (side @ side + JOINT_NOISE**2) for side in (u, w)])
                angle = math.acos(np.clip(u @ w / np.linalg.norm(u) / np.linalg.norm(w), -1, 1))
                beyond = trust * (max(0, angle - high) + max(0, low - angle))
                value = math.exp(-((beyond / softness / ANGLE_SOFTNESS) ** 2))
                best_angle = value if best_angle is None else max(best_angle, value)
        value = (1 if best_limb is None else best_limb) * (1 if best_angle is None else best_angle)
        weights.append(max(value, LEAST))
    return weights


@pytest.mark.parametrize("softness", [1.0, 5.0])
def test_against_a_slow_loop(softness, stats, normal):
    generator = torch.Generator().manual_seed(0)
    keypoints = normal[0].double() + 25 * torch.randn(40, 17, 2, generator=generator, dtype=torch.float64)
    present = torch.rand(40, 17, generator=generator) < 0.8
    scale, limits = normal[1].double(), (limb_limits(stats), angle_limits(stats))
    scattered = torch.where(present.unsqueeze(-1), keypoints, torch.nan)
    found = structural_weight(scattered, present, scale, *limits, softness)
    expected = [
        slow(keypoints[b].numpy(), present[b].tolist(), scale[b].item(), *limits, softness) for b in range(40)
    ]
    assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)
    assert found.min() > 0 and found.max() == 1 and found.std() > 0.1
    assert_close(StructuralCoupling(stats, softness)(scattered, present, scale), found)


def test_joints_that_are_absent_or_have_no_limbs_keep_one(stats, normal):
    keypoints, scale = normal
    wild = keypoints + 200 * torch.randn(keypoints.shape, generator=torch.Generator().manual_seed(1))
    weight = StructuralCoupling(stats)
    assert (weight(wild, everything(wild), scale)[:, :5] == 1).all()
    present = everything(wild)
    present[:, 9] = False
    assert (weight(wild, present, scale)[:, 9] == 1).all()
    assert (weight(wild * torch.nan, torch.zeros_like(present), scale) == 1).all()


def test_position_size_rotation_and_mirror_make_no_difference(stats, normal):
    keypoints, scale = normal
    torn = keypoints.clone()
    torn[:, [7, 14]] += 0.45 * scale[:, None, None]
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    weight, present = StructuralCoupling(stats), everything(torn)
    here = weight(torn, present, scale)
    assert_close(weight(3 * (torn @ turn.T) + 50, present, 3 * scale), here, atol=1e-3, rtol=0)
    flip = torch.tensor(COCO17.flip_indices)
    mirrored = torn[:, flip] * torch.tensor([-1.0, 1.0])
    assert_close(weight(mirrored, present, scale)[:, flip], here, atol=1e-3, rtol=0)


def test_softness_forgives(stats, normal):
    keypoints, scale = normal
    torn = keypoints.clone()
    torn[:, 9, 1] += 0.2 * scale
    strict, lax = (
        StructuralCoupling(stats, s)(torn, everything(torn), scale)[:, 9].mean() for s in (0.5, 5.0)
    )
    assert strict < 0.3 < 0.8 < lax


def test_nothing_waits_for_the_device_and_autocast_changes_nothing(stats, normal):
    names = set()

    class Calls(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            names.add(function.__name__)
            return function(*args, **(kwargs or {}))

    keypoints, scale = normal
    coupling, present = StructuralCoupling(stats), everything(keypoints)
    with Calls():
        plain = coupling(keypoints * 1.3, present, scale)
    assert "scatter_reduce" in names
    assert not names & {
        "tensor",
        "as_tensor",
        "item",
        "tolist",
        "cpu",
        "__bool__",
        "nonzero",
        "masked_select",
    }
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(coupling(keypoints * 1.3, present, scale), plain)
    assert not coupling.state_dict()


def test_what_can_not_work_is_refused(stats):
    with pytest.raises(SagecacheError, match="softness is 0.0, it must be positive"):
        StructuralCoupling(stats, 0.0)
    with pytest.raises(SagecacheError, match="too few labeled persons show a limb"):
        StructuralCoupling(compute_stats(*bodies(5), COCO17))
