"""Limbs, angles and offsets against skeleton.measure (numpy), slow loops and gradcheck."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sagecache.geometry import pose
from sagecache.skeleton import COCO17, Skeleton
from sagecache.skeleton import measure as numbers
from sagecache.skeleton.stats import compute_stats

EDGES = torch.tensor(COCO17.limb_edges)
TRIPLETS = torch.tensor(COCO17.angle_triplets)
LAPLACIAN = torch.tensor(COCO17.laplacian)


def bodies(count: int, seed: int = 0) -> np.ndarray:
    """COCO-17 bodies (count, 17, 3) of about unit size, all joints seen."""
    rng = np.random.default_rng(seed)
    x = [0, 5, -5, 10, -10, 25, -25, 40, -40, 50, -50, 15, -15, 25, -25, 20, -20]
    y = [0, -5, -5, 0, 0, 20, 20, 45, 45, 70, 70, 80, 80, 115, 115, 150, 150]
    points = np.stack([x, y], -1) / 120 + rng.normal(0, 0.05, (count, 17, 2))
    return np.concatenate([points, np.full((count, 17, 1), 2.0)], -1)


@pytest.fixture(scope="module")
def points():
    return torch.from_numpy(bodies(20)[..., :2])


def test_what_is_measured_is_what_the_statistics_measure(points):
    numpy, seen = points.numpy(), np.ones((20, 17), bool)
    pairs = [
        (pose.limb_lengths(points, EDGES), numbers.limb_lengths(numpy, COCO17.limb_edges)),
        (pose.joint_angles(points, TRIPLETS)[0], numbers.joint_angles(numpy, COCO17.angle_triplets)),
        (pose.joint_offsets(points, LAPLACIAN), numbers.joint_offsets(numpy, seen, COCO17)),
    ]
    for found, expected in pairs:
        assert_close(found.numpy(), expected, atol=1e-5, rtol=0)


def test_gradients(points):
    one = points[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: pose.limb_lengths(p, EDGES), (one,))
    assert torch.autograd.gradcheck(lambda p: pose.joint_angles(p, TRIPLETS)[0], (one,))
    assert torch.autograd.gradcheck(lambda p: pose.joint_offsets(p, LAPLACIAN), (one,))


ELBOW = torch.tensor([[0, 1, 2]])
DEGENERATE = {  # shoulder, elbow, wrist
    "straight": [[0.0, 0.0], [0.2, 0.0], [0.4, 0.0]],
    "folded": [[0.0, 0.0], [0.2, 0.0], [0.0, 0.0]],
    "an end on the vertex": [[0.0, 0.0], [0.2, 0.1], [0.2, 0.1]],
    "nearly so": [[0.0, 0.0], [0.2, 0.1], [0.2, 0.1 + 1e-6]],
    "all in one place": [[0.3, 0.3]] * 3,
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_slopes_stay_bounded_at_degenerate_poses(name):
    """Weighted by its trust no angle pulls harder than a limb of the size of the noise would."""
    points = torch.tensor([DEGENERATE[name]], requires_grad=True)
    angle, trust = pose.joint_angles(points, ELBOW)
    assert not trust.requires_grad  # or a loss would be lowered by shortening the limb
    (pull,) = torch.autograd.grad((trust * angle).sum(), points)
    assert pull.isfinite().all() and pull.abs().max() <= 2 / pose.JOINT_NOISE
    lengths = pose.limb_lengths(points, torch.tensor([[0, 1], [1, 2]]))
    (pull,) = torch.autograd.grad(lengths.sum(), points)
    assert pull.isfinite().all() and pull.abs().max() <= 2
    (pull,) = torch.autograd.grad(pose.joint_offsets(points, torch.eye(3) - 1 / 3).sum(), points)
    assert pull.isfinite().all()


def test_a_straight_limb_is_pi_and_a_folded_one_is_zero():
    points = torch.tensor([DEGENERATE["straight"], DEGENERATE["folded"]], dtype=torch.float64)
    angle, trust = pose.joint_angles(points, ELBOW)
    assert_close(angle[:, 0], torch.tensor([math.pi, 0.0], dtype=torch.float64), atol=1e-5, rtol=0)
    share = 0.04 / (0.04 + 0.03**2)  # sides of .2
    assert_close(trust, torch.full((2, 1), share**2, dtype=torch.float64))


def test_absent_joints_are_zero_and_take_what_they_touch_with_them():
    points = torch.ones(1, 17, 2)
    points[0, 9] = math.nan
    present = torch.ones(1, 17, dtype=torch.bool)
    present[0, 9] = False
    unit = pose.in_body_units(points, present, torch.tensor([4.0]))
    assert unit[0, 9].tolist() == [0, 0] and unit[0, 8].tolist() == [0.25, 0.25]
    limbs = pose.all_present(present, EDGES)[0]
    assert [COCO17.limb_names[i] for i in (~limbs).nonzero()[:, 0]] == ["left_elbow-left_wrist"]
    rows = pose.all_present(present, LAPLACIAN)[0]
    assert (~rows).nonzero()[:, 0].tolist() == [7, 9]  # the wrist itself and its one neighbour


def stats_of(keypoints: np.ndarray, skeleton: Skeleton = COCO17):
    return compute_stats(keypoints, np.tile([0.0, 0, 1, 1], (len(keypoints), 1)), skeleton)


def test_limits_are_the_labeled_quantiles_of_both_sides():
    stats = stats_of(bodies(200))
    limbs, angles, offsets = pose.limb_limits(stats), pose.angle_limits(stats), pose.offset_limits(stats)
    assert limbs.rows.tolist() == COCO17.limb_edges.tolist()
    assert angles.rows.tolist() == COCO17.angle_triplets.tolist()
    assert_close(offsets.rows, LAPLACIAN.float())
    left, right = (COCO17.limb_names.index(f"{side}_elbow-{side}_wrist") for side in ("left", "right"))
    low = min(stats.limb().q01[left], stats.limb().q01[right])
    high = max(stats.limb().q99[left], stats.limb().q99[right])
    for row in (left, right):
        assert (limbs.low[row].item(), limbs.high[row].item()) == pytest.approx((low, high))
    hips = COCO17.limb_names.index("left_hip-right_hip")
    assert limbs.high[hips].item() == pytest.approx(stats.limb().q99[hips])
    for t, u in ((0, 1), (2, 3), (4, 5), (6, 7)):  # left and right elbows, …: not the same joint's two rows
        a, b = angles.rows[t].tolist(), COCO17.flip_indices[angles.rows[u]].tolist()
        assert a == b and angles.high[t] == angles.high[u]
        assert angles.high[t].item() == pytest.approx(max(stats.angles.q975[t], stats.angles.q975[u]))
    assert offsets.high[9].item() == pytest.approx(max(stats.offsets.q99[9], stats.offsets.q99[10]))


def test_too_few_labels_take_the_other_sides_range_or_none():
    keypoints = bodies(50)
    keypoints[5:, 9, 2] = 0  # the left wrist is hardly labeled, the right one is
    keypoints[5:, 15:, 2] = 0  # neither ankle is
    limbs = pose.limb_limits(stats_of(keypoints))
    kept = [tuple(edge) for edge in limbs.rows.tolist()]
    assert (7, 9) in kept and len(kept) == 10 and not {15, 16} & {k for edge in kept for k in edge}
    assert limbs.high[kept.index((7, 9))] == limbs.high[kept.index((8, 10))]
    assert len(pose.angle_limits(stats_of(bodies(5))).low) == 0


def test_excess_is_what_lies_beyond():
    limits = pose.Limits(torch.tensor([[0, 1]]), torch.tensor([0.2]), torch.tensor([0.5]))
    below, above = pose.excess(torch.tensor([[0.1], [0.3], [0.9]]), limits)
    assert_close(below[:, 0], torch.tensor([0.1, 0, 0]))
    assert_close(above[:, 0], torch.tensor([0, 0, 0.4]))
