"""The instance gate on hand-made skeletons, against a slow oracle and real statistics."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import transform_points
from sagecache.geometry.confidence import expected_oks, visibility
from sagecache.geometry.heatmap import decode, gaussian
from sagecache.semi.instances import InstanceGate, Reason
from sagecache.skeleton import COCO17, Skeleton
from sagecache.skeleton.measure import inversion, relative_size
from sagecache.skeleton.stats import compute_stats

SIGMA, MAP = 1.5, (48, 64)
HEAD, SHOULDERS, HIPS, FEET = [0, 1, 2, 3, 4], [5, 6], [11, 12], [15, 16]


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
    return compute_stats(*bodies(200), COCO17)


@pytest.fixture(scope="module")
def normal():
    """Twenty fresh bodies and sqrt(w h) of their boxes."""
    keypoints, boxes = bodies(20, seed=1)
    return torch.from_numpy(keypoints[..., :2]).float(), torch.from_numpy(
        boxes[:, 2] * boxes[:, 3]
    ).sqrt().float()


def judge(gate: InstanceGate, keypoints: Tensor, scale: Tensor, present=None, confidence=None, maps=None):
    count = len(keypoints)
    present = torch.ones(count, 17, dtype=torch.bool) if present is None else present
    confidence = torch.full((count, 17), 0.9) if confidence is None else confidence
    return gate(maps, torch.eye(3).expand(count, 3, 3), keypoints, present, confidence, scale)


def turned(points: Tensor, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ torch.tensor([[c, s], [-s, c]]) + 300


FREE = ("zeros", "__eq__", "__get__", "__len__", "_set_grad_enabled")


def test_with_all_keys_off_everyone_stays_and_nothing_is_computed(stats, normal):
    class Nothing(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            assert function.__name__ in FREE, function.__name__
            return function(*args, **(kwargs or {}))

    gate, (keypoints, scale) = InstanceGate(stats, SIGMA), normal
    present, sure = torch.ones(20, 17, dtype=torch.bool), torch.ones(20, 17)
    with Nothing():
        decision = gate(None, None, keypoints, present, sure, scale)
    assert decision.keep.all() and decision.score is None and decision.reason.dtype == torch.int64
    assert list(gate.buffers()) == []


@pytest.mark.parametrize("degrees", range(0, 360, 45))
def test_plausible_bodies_pass_whichever_way_they_lie(degrees, stats, normal):
    gate, (keypoints, scale) = InstanceGate(stats, SIGMA, confidence=0.5, size=1.1, inverted=True), normal
    assert judge(gate, turned(keypoints, degrees), scale).keep.all()
    assert judge(gate, turned(keypoints * torch.tensor([-1.0, 1.0]), degrees), scale).keep.all()


@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_giants_and_dwarfs_are_silenced(factor, stats, normal):
    keypoints, scale = normal
    decision = judge(InstanceGate(stats, SIGMA, size=1.1), factor * keypoints, scale)
    assert (decision.reason == Reason.SIZE).all() and not decision.keep.any()
    assert judge(InstanceGate(stats, SIGMA, size=3.0), factor * keypoints, scale).keep.all()
    assert judge(InstanceGate(stats, SIGMA, inverted=True), factor * keypoints, scale).keep.all()


def test_missing_joints_or_a_torn_one_make_no_giant(stats, normal):
    keypoints, scale = normal
    gate = InstanceGate(stats, SIGMA, size=1.1)
    present = torch.zeros(20, 17, dtype=torch.bool)
    present[:, [5, 6, 7, 8, 11]] = True  # five joints of a size by their own limbs
    scattered = torch.where(present.unsqueeze(-1), keypoints, torch.nan)
    assert judge(gate, scattered, scale, present).keep.all()
    assert not judge(gate, 2 * scattered, scale, present).keep.any()
    torn = keypoints.clone()
    torn[:, 9] += 0.8 * scale[:, None]
    assert judge(gate, torn, scale).keep.all()
    present[:, SHOULDERS + HIPS] = False  # no limb is left, so that nobody knows
    assert judge(gate, 9 * keypoints, scale, present).keep.all()


@pytest.mark.parametrize("degrees", range(0, 360, 60))
def test_a_head_at_the_feet_is_inverted_and_a_whole_body_turned_is_not(degrees, stats, normal):
    keypoints, scale = normal
    gate = InstanceGate(stats, SIGMA, inverted=True)
    wrong = keypoints.clone()
    wrong[:, HEAD] = keypoints[:, FEET].mean(1, keepdim=True) + keypoints[:, HEAD] - keypoints[:, :1]
    wrong[:, FEET] = keypoints[:, [0, 0]]
    decision = judge(gate, turned(wrong, degrees), scale)
    assert (decision.reason == Reason.INVERTED).all()
    assert judge(gate, turned(keypoints, degrees + 180), scale).keep.all()
    trunk = keypoints.clone()
    trunk[:, SHOULDERS + HIPS] = keypoints[:, HIPS + SHOULDERS]
    assert not judge(gate, turned(trunk, degrees), scale).keep.any()


def test_inversion_is_not_judged_by_absent_joints(stats, normal):
    keypoints, scale = normal
    wrong = keypoints.clone()
    wrong[:, HEAD] = keypoints[:, FEET].mean(1, keepdim=True)
    gate = InstanceGate(stats, SIGMA, inverted=True)
    for hidden in (HEAD, [5], [12]):
        present = torch.ones(20, 17, dtype=torch.bool)
        present[:, hidden] = False
        assert judge(gate, torch.where(present.unsqueeze(-1), wrong, torch.nan), scale, present).keep.all()
    present[:, HEAD[1:]] = False
    present[:, [5, 12]] = True  # one joint of the head is enough
    assert not judge(gate, wrong, scale, present).keep.any()


def test_low_confidence_is_the_mean_over_joints(stats, normal):
    keypoints, scale = normal
    confidence = torch.full((20, 17), 0.6)
    confidence[::2, :9] = 0.3
    decision = judge(InstanceGate(stats, SIGMA, confidence=0.5), keypoints, scale, confidence=confidence)
    assert decision.keep.tolist() == [False, True] * 10
    assert decision.reason[0] == Reason.CONFIDENCE


def maps_of(keypoints: Tensor, scale: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of joints uncertain by spread (B,) heatmap px, and heatmap_from_image (bodies of 45 px)."""
    zoom = 45 / keypoints.amax((1, 2))
    to_map = torch.zeros(len(zoom), 3, 3)
    to_map[:, 0, 0] = to_map[:, 1, 1] = zoom
    to_map[:, 0, 2], to_map[:, 1, 2], to_map[:, 2, 2] = 24, 8, 1
    points = transform_points(to_map, keypoints)
    width = (SIGMA**2 + spread**2).sqrt().tolist()
    maps = [gaussian(one[None], MAP, each) for one, each in zip(points, width, strict=True)]
    return torch.cat(maps), to_map


def test_the_score_is_the_mean_expected_oks_and_its_threshold_drops(stats, normal):
    keypoints, scale = normal[0][:4], normal[1][:4]
    spread = torch.tensor([0.0, 1.0, 3.0, 8.0])
    maps, to_map = maps_of(keypoints, scale, spread)
    points, confidence = decode(maps, SIGMA)
    read = transform_points(torch.linalg.inv(to_map), points)
    present = torch.ones(4, 17, dtype=torch.bool)
    zoom = to_map[:, 0, 0]
    each = expected_oks(maps, points, scale * zoom, torch.tensor(COCO17.sigmas).float(), SIGMA)
    decision = InstanceGate(stats, SIGMA, expected_oks=0.5)(maps, to_map, read, present, confidence, scale)
    assert_close(decision.score, each.mean(1), atol=1e-4, rtol=0)
    assert decision.score[0] > 0.97 and (decision.score.diff() < -0.03).all()
    assert torch.equal(decision.keep, each.mean(1) >= 0.5) and decision.keep.tolist()[::3] == [True, False]
    weighed = InstanceGate(stats, SIGMA, expected_oks=0.5, visibility=True)
    found = weighed(maps, to_map, read, present, confidence, scale).score
    assert_close(found, (each * visibility(maps, SIGMA)).mean(1), atol=1e-4, rtol=0)
    assert (found[1:] < decision.score[1:] - 0.05).all()


def test_the_first_reason_counts(stats, normal):
    """A giant, inverted and unsure: each key alone names its own reason, all together the first."""
    keypoints, scale = normal
    odd = 3 * keypoints.clone()
    odd[:, HEAD] = odd[:, FEET].mean(1, keepdim=True)
    unsure = torch.full((20, 17), 0.1)
    maps = torch.full((20, 17, 16, 12), 1 / 192)
    keys = [
        (dict(inverted=True), Reason.INVERTED),
        (dict(size=1.1), Reason.SIZE),
        (dict(expected_oks=1.0), Reason.EXPECTED_OKS),
        (dict(confidence=0.5), Reason.CONFIDENCE),
    ]
    together = {}
    for options, reason in keys:
        together |= options
        for chosen in (options, together):
            decision = judge(InstanceGate(stats, SIGMA, **chosen), odd, scale, confidence=unsure, maps=maps)
            assert (decision.reason == reason).all(), chosen


def test_against_the_measures_of_the_statistics(stats):
    """Random poses with random joints: kept exactly where skeleton.measure's numbers are in range."""
    generator = np.random.default_rng(5)
    points = generator.uniform(0, 100, (300, 17, 2)) * generator.uniform(0.3, 1.5, (300, 1, 1))
    seen = generator.random((300, 17)) < 0.8
    scale = np.full(300, 100.0)
    limbs = stats.limb()
    ends = COCO17.limb_edges
    lengths = np.linalg.norm(points[:, ends[:, 0]] - points[:, ends[:, 1]], axis=-1) / 100
    lengths[~seen[:, ends].all(-1)] = np.nan
    size, upside = relative_size(lengths, limbs.median), inversion(points, seen, COCO17)
    out = (size < stats.body.q01[0] / 1.3) | (size > 1.3 * stats.body.q99[0])
    over = upside > max(0, stats.body.q99[1])
    expected = np.where(out, Reason.SIZE, np.where(over, Reason.INVERTED, Reason.KEPT))
    assert set(expected.tolist()) == {0, Reason.SIZE, Reason.INVERTED}
    gate = InstanceGate(stats, SIGMA, size=1.3, inverted=True)
    decision = judge(gate, torch.tensor(points).float(), torch.tensor(scale).float(), torch.tensor(seen))
    assert decision.reason.tolist() == expected.tolist()


def test_nothing_waits_for_the_device(stats, normal):
    names = set()

    class Calls(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            names.add(function.__name__)
            return function(*args, **(kwargs or {}))

    keypoints, scale = normal
    gate = InstanceGate(
        stats, SIGMA, expected_oks=0.5, visibility=True, confidence=0.5, size=1.2, inverted=True
    )
    maps = gaussian(torch.rand(20, 17, 2) * 10, (12, 16), SIGMA)
    with Calls():
        judge(gate, keypoints, scale, maps=maps)
    assert "nanmedian" in names
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


def test_keys_are_checked(stats):
    for key in ("expected_oks", "confidence"):
        with pytest.raises(SagecacheError, match=rf"{key} is 1.5, it must be in \[0, 1\]"):
            InstanceGate(stats, SIGMA, **{key: 1.5})
    for size in (0.5, -1.0, math.inf, math.nan):
        with pytest.raises(SagecacheError, match="size is .*0 or at least 1"):
            InstanceGate(stats, SIGMA, size=size)
    with pytest.raises(SagecacheError, match="visibility weighs the expected OKS, which is off"):
        InstanceGate(stats, SIGMA, visibility=True)


def test_what_too_few_labels_show_can_not_be_asked_for():
    few = compute_stats(*bodies(5), COCO17)
    InstanceGate(few, SIGMA, expected_oks=0.5, confidence=0.5)
    both = "size 0, inverted 5, of 10 .*semi.instances.size=0 semi.instances.inverted=False"
    for asked, told in (
        (dict(size=1.0), r"compares with: size 0, of 10 that are needed.*semi.instances.size=0$"),
        (dict(inverted=True), "compares with: inverted 5, of 10"),
        (dict(size=1.0, inverted=True), both),
    ):
        with pytest.raises(SagecacheError, match=told):
            InstanceGate(few, SIGMA, **asked)
    hand = Skeleton("hand", ("wrist", "thumb"), [[0, 1]], [0, 1], [0.1, 0.1])
    limbs = compute_stats(np.random.default_rng(0).random((30, 2, 3)) + 1, np.ones((30, 4)), hand)
    with pytest.raises(SagecacheError, match="inverted 0, of 10"):
        InstanceGate(limbs, SIGMA, inverted=True)
    InstanceGate(limbs, SIGMA, size=1.0)
