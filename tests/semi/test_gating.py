import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sagecache.errors import SagecacheError
from sagecache.semi.gating import HybridGate, Plausibility, PoseStatistics, calibrate_threshold, plausibility
from sagecache.skeleton import COCO17
from sagecache.skeleton.stats import compute_stats

# an arm of three joints: two limbs, one angle
ARM = PoseStatistics(
    edges=torch.tensor([[0, 1], [1, 2]]),
    limb_median=torch.tensor([0.5, 0.4]),
    limb_spread=torch.tensor([0.1, 0.1]),
    triplets=torch.tensor([[0, 1, 2]]),
    angle_low=torch.tensor([math.radians(60)]),
    angle_high=torch.tensor([math.radians(150)]),
)
SCALE = 100.0
EQUAL = torch.ones(3)


def kps(points, confidence=(0.6, 0.8, 1.0), present=(1, 1, 1), weights=(1.0, 1.0, 1.0)) -> float:
    arguments = (
        torch.tensor([points]).double(),
        torch.tensor([present]).bool(),
        torch.tensor([SCALE]).double(),
    )
    shares = torch.tensor(weights).double()
    return plausibility(*arguments, torch.tensor([confidence]).double(), ARM, shares).item()


RIGHT_ANGLE = [[0.0, 50.0], [0.0, 0.0], [40.0, 0.0]]  # median lengths, 90 degrees


def test_a_typical_pose_scores_by_its_confidence_alone():
    assert kps(RIGHT_ANGLE) == pytest.approx((0.8 + 1 + 1) / 3)
    assert kps(RIGHT_ANGLE, weights=(2, 1, 1)) == pytest.approx((2 * 0.8 + 1 + 1) / 4)
    assert kps(RIGHT_ANGLE, weights=(1, 0, 0)) == pytest.approx(0.8)


def test_a_long_limb_costs_and_a_short_one_does_not():
    long = [[0.0, 70.0], [0.0, 0.0], [40.0, 0.0]]  # two spreads above the median
    short = [[0.0, 1.0], [0.0, 0.0], [40.0, 0.0]]
    assert kps(long, weights=(0, 1, 0)) == pytest.approx((math.exp(-2) + 1) / 2)
    assert kps(short, weights=(0, 1, 0)) == pytest.approx(1)


@pytest.mark.parametrize(
    "degrees, score", [(90, 1), (150, 1), (160, math.exp(-1)), (50, math.exp(-1)), (30, math.exp(-9))]
)
def test_angles_fade_outside_their_range(degrees, score):
    angle = math.radians(degrees)
    pose = [[50.0, 0.0], [0.0, 0.0], [40 * math.cos(angle), 40 * math.sin(angle)]]
    assert kps(pose, weights=(0, 0, 1)) == pytest.approx(score, rel=1e-4)


def test_joints_in_one_place_have_no_plausible_angle():
    heap = [[20.0, 30.0]] * 3
    assert kps(heap, weights=(0, 0, 1)) < 1e-9
    assert kps([[20.0, 30.0], [20.0, 30.0], [60.0, 30.0]], weights=(0, 0, 1)) < 1e-9


def test_absent_joints_drop_out_with_their_limbs_and_angles():
    pose = [[0.0, 50.0], [0.0, 0.0], [math.nan, math.nan]]
    assert kps(pose, confidence=(0.6, 0.8, math.nan), present=(1, 1, 0)) == pytest.approx((0.7 + 1) / 2)
    assert kps(pose, present=(1, 0, 0)) == pytest.approx(0.6)  # no limb is left: confidence only
    assert kps(pose, present=(0, 0, 0)) == 0


def test_kps_does_not_see_where_how_large_or_which_way():
    generator = torch.Generator().manual_seed(0)
    points = 100 * torch.rand(5, 3, 2, generator=generator, dtype=torch.float64)
    scale = 50 + 50 * torch.rand(5, generator=generator, dtype=torch.float64)
    confidence, present = torch.rand(5, 3, generator=generator).double(), torch.ones(5, 3, dtype=torch.bool)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64) @ torch.diag(
        torch.tensor([-3.0, 3.0]).double()
    )
    here = plausibility(points, present, scale, confidence, ARM, EQUAL)
    there = plausibility(points @ turn.T + 40, present, 3 * scale, confidence, ARM, EQUAL)
    torch.testing.assert_close(here, there)
    assert here.min() >= 0 and here.max() <= 1 and here.std() > 0.01


def test_autocast_changes_nothing():
    points, present = 200 + 100 * torch.rand(4, 3, 2), torch.ones(4, 3, dtype=torch.bool)
    arguments = (points, present, torch.full((4,), 120.0), torch.rand(4, 3), ARM, EQUAL)
    with torch.autocast("cpu", torch.bfloat16):
        inside = plausibility(*arguments)
    assert torch.equal(inside, plausibility(*arguments))


def bodies(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """COCO bodies about one pose, with boxes (count, 4)."""
    rng = np.random.default_rng(seed)
    x = [0, 5, -5, 10, -10, 25, -25, 40, -40, 50, -50, 15, -15, 25, -25, 20, -20]
    y = [0, -5, -5, 0, 0, 20, 20, 45, 45, 70, 70, 80, 80, 115, 115, 150, 150]
    points = np.stack([x, y], -1) + rng.normal(0, 4, (count, 17, 2))
    boxes = np.concatenate([points.min(1), points.max(1) - points.min(1)], 1)
    return np.concatenate([points, np.full((count, 17, 1), 2.0)], -1), boxes


def tensors(keypoints: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    points = torch.tensor(keypoints[..., :2], dtype=torch.float32)
    return points, torch.tensor(keypoints[..., 2] > 0), torch.tensor(boxes[:, 2] * boxes[:, 3]).sqrt().float()


def test_statistics_of_a_labeled_split_recognise_its_bodies():
    score = Plausibility.from_stats(compute_stats(*bodies(200), COCO17))
    assert len(score.edges) == 12 and len(score.triplets) == 8
    points, present, scale = tensors(*bodies(100, seed=1))
    sure = torch.ones(100, 17)
    normal = score(points, present, scale, sure)
    wrists = points.clone()
    wrists[:, [9, 10]] = points[:, [10, 9]]
    swapped = score(wrists, present, scale, sure)
    assert (swapped < normal).float().mean() > 0.98
    assert not score.state_dict()  # they live in the stats file, not in checkpoints


def test_quantities_that_few_bodies_showed_are_not_used():
    keypoints, boxes = bodies(50)
    keypoints[5:, 9, 2] = 0  # the left wrist is labeled in five bodies only
    score = Plausibility.from_stats(compute_stats(keypoints, boxes, COCO17))
    assert len(score.edges) == 11 and not (score.edges == 9).any()
    assert not (score.triplets == 9).any()


def test_kps_weights_are_checked():
    with pytest.raises(SagecacheError, match="three weights"):
        Plausibility(ARM, (0, 0, 0))


class Calls(TorchFunctionMode):
    """Names of all torch functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


def test_scoring_copies_nothing_between_host_and_device():
    score = Plausibility(ARM, (2, 1, 1))
    points, present = torch.tensor([RIGHT_ANGLE]), torch.ones(1, 3, dtype=torch.bool)
    batch = (points, present, torch.tensor([SCALE]), torch.full((1, 3), 0.8))
    with Calls() as calls:
        found = score(*batch)
    assert "exp" in calls.names
    assert not calls.names & {"new_tensor", "tensor", "as_tensor", "item", "tolist", "cpu", "__bool__"}
    assert found.item() == pytest.approx((2 * 0.8 + 1 + 1) / 4)
    assert {part.device.type for part in score.to("meta").buffers()} == {"meta"}


TRUTH = [  # mean confidence, KPS -> A?
    (0.9, 0.9, True),
    (0.9, 0.4, False),
    (0.3, 0.9, False),
    (0.3, 0.4, False),
    (0.5, 0.6, True),  # at the thresholds
]


def batch_of(rows) -> tuple[Tensor, Tensor, Tensor]:
    confidence = torch.tensor([[c, c] for c, _, _ in rows], dtype=torch.float64)
    return confidence, confidence > 0.35, torch.tensor([p for _, p, _ in rows], dtype=torch.float64)


def test_truth_table_without_teacher_b():
    gate = HybridGate(0.5, 0.6)
    confidence, keep, score = batch_of(TRUTH)
    decision = gate(confidence, keep, score)
    assert decision.teacher_a.tolist() == [a for _, _, a in TRUTH]
    taught = keep & decision.teacher_a[:, None]
    assert torch.equal(decision.keep, taught) and torch.equal(decision.weights, taught.double())


def test_truth_table_with_teacher_b():
    gate = HybridGate(0.5, 0.6, teacher_b="diffusion", weight_b=0.25, keep_b=0.2)
    confidence, keep, score = batch_of(TRUTH)
    corrected = torch.zeros(5, 2, 2)
    corrected[1, 1, 0] = math.nan
    decision = gate(confidence, keep, score, corrected)
    assert decision.teacher_a.tolist() == [a for _, _, a in TRUTH]
    assert decision.keep.tolist() == [[True, True], [True, False], [True, True], [True, True], [True, True]]
    assert decision.weights.tolist() == [[1, 1], [0.25, 0], [0.25, 0.25], [0.25, 0.25], [1, 1]]


def test_a_sample_is_as_confident_as_the_mean_of_its_joints():
    """Neither one sure joint makes a teacher of A, nor does one unsure joint unmake it."""
    confidence = torch.tensor([[0.9, 0.2, 0.1], [0.9, 0.9, 0.1], [0.5, 0.5, 0.5], [0.9, 0.5, 0.05]])
    gate = HybridGate(threshold_confidence=0.5)
    decision = gate(confidence, confidence > 0.3, torch.ones(4))
    assert decision.teacher_a.tolist() == [False, True, True, False]
    assert decision.keep.tolist() == [[False] * 3, [True, True, False], [True] * 3, [False] * 3]


def test_thresholds_of_zero_send_all_to_a():
    confidence, keep, score = batch_of([(0.0, 0.0, True), (0.9, 0.0, True)])
    assert HybridGate()(confidence, keep, score).teacher_a.all()


def test_gate_settings_are_checked():
    with pytest.raises(SagecacheError, match="did you mean 'diffusion'"):
        HybridGate(teacher_b="difusion")
    with pytest.raises(SagecacheError, match="never a hard label"):
        HybridGate(teacher_b="diffusion", weight_b=1.0)
    for name in ("threshold_confidence", "threshold_plausibility", "keep_b"):
        for value in (5.0, -0.1, float("nan")):
            with pytest.raises(SagecacheError, match=rf"{name} is .*in \[0, 1\]"):
                HybridGate(**{name: value})
    with pytest.raises(SagecacheError, match="corrected pose"):
        HybridGate(teacher_b="diffusion")(*batch_of(TRUTH))


def test_calibration_lets_the_stated_share_of_fresh_poses_pass():
    score = Plausibility.from_stats(compute_stats(*bodies(300), COCO17))
    threshold = calibrate_threshold(score, *tensors(*bodies(300)), 0.6, noise=0.03, quantile=0.1, draws=5)
    points, present, scale = tensors(*bodies(2000, seed=2))
    moved = points + 0.03 * scale[:, None, None] * torch.randn(
        points.shape, generator=torch.Generator().manual_seed(1)
    )
    passing = (score(moved, present, scale, torch.full((2000, 17), 0.6)) >= threshold).float().mean().item()
    assert passing == pytest.approx(0.9, abs=0.03)


def test_calibration_is_repeatable_and_strict_without_noise():
    score = Plausibility.from_stats(compute_stats(*bodies(100), COCO17))
    arguments = (score, *tensors(*bodies(100)), 0.6)
    assert calibrate_threshold(*arguments, noise=0.1) == calibrate_threshold(*arguments, noise=0.1)
    points, present, scale = tensors(*bodies(100))
    direct = score(points, present, scale, torch.full((100, 17), 0.6)).quantile(0.05).item()
    assert calibrate_threshold(*arguments, noise=0.0, draws=1) == pytest.approx(direct)
    assert calibrate_threshold(*arguments, noise=0.1) < direct
    with pytest.raises(SagecacheError, match="no labeled body"):
        calibrate_threshold(score, torch.zeros(0, 17, 2), torch.zeros(0, 17).bool(), torch.zeros(0), 0.6)
