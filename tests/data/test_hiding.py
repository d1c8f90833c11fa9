import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sagecache.data import hiding
from sagecache.data.hiding import (
    AdaptiveMasking,
    capsules,
    draw,
    hide_hard_joints,
    hide_joints,
    hide_limbs,
    paint,
    patches,
    under,
)
from sagecache.errors import SagecacheError

SIZE = (24, 32)


def rand(*shape, low=0.0, high=1.0):
    return torch.rand(*shape) * (high - low) + low


# --- regions, by loops ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_patches_are_squares_and_circles(seed):
    torch.manual_seed(seed)
    centres, half = rand(6, 3, 2, low=-8, high=40), rand(6, 3, low=0.5, high=9)
    rounded, used = rand(6, 3) < 0.5, rand(6, 3) < 0.7
    mask = patches(centres, half, rounded, used, SIZE)
    assert mask.shape == (6, SIZE[1], SIZE[0]) and mask.any()
    for b in range(6):
        shapes = list(zip(*(value[b].tolist() for value in (centres, half, rounded, used)), strict=True))
        found = mask[b].tolist()
        for row in range(SIZE[1]):
            for column in range(SIZE[0]):
                hit = False
                for (x, y), reach, is_round, counts in shapes:
                    dx, dy = abs(column - x), abs(row - y)
                    hit |= counts and (math.hypot(dx, dy) if is_round else max(dx, dy)) <= reach
                assert found[row][column] == hit


def nearest_to_segment(x, y, a, b):
    dx, dy = b[0] - a[0], b[1] - a[1]
    square = dx * dx + dy * dy
    t = 0.0 if square == 0 else min(1, max(0, ((x - a[0]) * dx + (y - a[1]) * dy) / square))
    return math.hypot(x - a[0] - t * dx, y - a[1] - t * dy)


def check_capsules(ends, radius, used):
    mask = capsules(ends, radius, used, SIZE)
    for found, pairs, counts in zip(mask.tolist(), ends.tolist(), used.tolist(), strict=True):
        pairs = [pair for pair, count in zip(pairs, counts, strict=True) if count]
        for row, column in itertools.product(range(SIZE[1]), range(SIZE[0])):
            margin = min(
                (nearest_to_segment(column, row, *pair) - radius * math.dist(*pair) for pair in pairs),
                default=math.inf,
            )
            if abs(margin) > 1e-4:  # on the very edge float32 may go either way
                assert found[row][column] == (margin < 0), (pairs, row, column)
    return mask


def test_capsules_hold_all_points_near_a_segment():
    torch.manual_seed(0)
    mask = check_capsules(rand(6, 2, 2, 2, low=-10, high=40), 0.25, rand(6, 2) < 0.7)
    assert 0.05 < mask.float().mean() < 0.9


def test_capsules_lie_along_the_axes_and_may_be_short():
    pairs = [[4.3, 5], [20.3, 5]], [[12, 3.2], [12, 25.2]], [[20, 9.1], [3, 9.1]], [[7, 20], [7, 6.3]]
    ends = torch.tensor([*pairs, [[8.0, 8.0], [8.0, 8.0]], [[5, 5], [5.5, 5.2]]])[:, None]
    mask = check_capsules(ends, 0.3, torch.ones(6, 1, dtype=torch.bool))
    assert mask.flatten(1).any(1).tolist() == [True] * 4 + [True, True]


def test_what_is_not_used_may_be_anything():
    wild = torch.tensor([math.nan, math.inf, -math.inf, 1e30])
    used = torch.zeros(1, 4, dtype=torch.bool)
    centres = torch.stack([wild, wild.flip(0)], -1)[None]
    assert not patches(centres, torch.ones(1, 4), used, used, SIZE).any()
    assert not capsules(centres[:, :, None].expand(-1, -1, 2, -1), 0.25, used, SIZE).any()


def test_under_reads_the_nearest_pixel():
    torch.manual_seed(1)
    mask = rand(2, 32, 24) < 0.5
    keypoints = rand(2, 60, 2, low=-3, high=35)
    keypoints[0, 0] = math.nan
    keypoints[1, 0, 1] = math.inf
    found = under(mask, keypoints)
    for b in range(2):
        for k in range(60):
            x, y = keypoints[b, k].tolist()
            expected = 0 <= x <= 23 and 0 <= y <= 31 and bool(mask[b, round(y), round(x)])
            assert found[b, k] == expected
    assert 10 < found.sum() < 60


# --- drawing -------------------------------------------------------------------------------------


def test_the_draw_follows_the_softmax_without_replacement():
    torch.manual_seed(0)
    score = torch.tensor([0.0, 1.0, -0.5, 5.0, 0.3])
    allowed = torch.tensor([True, True, True, False, True]).expand(40_000, -1)
    index, used = draw(allowed, 2, score)
    pairs = index[used[:, 1]]  # first and second
    expected = {}
    weight = score.exp().tolist()
    for a in (0, 1, 2, 4):
        for b in {0, 1, 2, 4} - {a}:
            rest = sum(weight[k] for k in (0, 1, 2, 4))
            expected[a, b] = weight[a] / rest * weight[b] / (rest - weight[a])
    counts = [((pairs == torch.tensor(pair)).all(1)).sum().item() for pair in expected]
    assert sum(counts) == len(pairs)  # nothing twice, nothing that is not allowed
    assert chisquare(counts, [p * len(pairs) for p in expected.values()]).pvalue > 0.01


def test_the_number_is_uniform_and_at_most_what_is_allowed():
    torch.manual_seed(0)
    allowed = torch.ones(30_000, 5, dtype=torch.bool)
    _, used = draw(allowed, 3)
    assert chisquare(used.sum(1).bincount()).pvalue > 0.01
    allowed[:, 1:] = False
    index, used = draw(allowed, 3)
    assert used.sum(1).max() == 1 and (index[used] == 0).all()
    assert draw(allowed, 9)[0].shape == (30_000, 5)
    assert not draw(torch.zeros(8, 5, dtype=torch.bool), 3)[1].any()


def test_score_of_hard_joints():
    masking = AdaptiveMasking(weight_error=3.0, weight_confidence=0.5, temperature=0.1)
    error, confidence = torch.tensor([0.1, 0.3]), torch.tensor([0.9, 0.5])
    assert masking.score(error, confidence).tolist() == pytest.approx([3.5, 11.5])
    assert masking.score(None, confidence).tolist() == pytest.approx([0.5, 2.5])
    assert masking.score(None, None) == 0


@pytest.mark.parametrize(
    "wrong",
    [dict(joints=-1), dict(weight_error=-1), dict(temperature=0), dict(threshold=1.5), dict(area=2)],
)
def test_bad_settings_are_named(wrong):
    with pytest.raises(SagecacheError, match=next(iter(wrong))):
        AdaptiveMasking(**wrong)


# --- hiding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [128, 256])
def test_joint_cutout_has_the_stated_sizes(height):
    """10 px of shift and 10 to 20 px of half side at 256 px, in proportion elsewhere."""
    torch.manual_seed(0)
    unit, size = height / 256, (height, height)
    keypoints = torch.tensor([[[height / 2 - 0.5, height / 2 - 0.5], [5.0, 5.0]]]).expand(300, -1, -1)
    mask = hide_joints(keypoints, torch.tensor([[True, False]]).expand(300, -1), 1, size)
    area = mask.flatten(1).sum(1)
    assert 0.35 < (area > 0).float().mean() < 0.65  # none or one
    mask, area = mask[area > 0].float(), area[area > 0]
    x = (mask.sum(1) * torch.arange(height)).sum(1) / area - keypoints[0, 0, 0]
    y = (mask.sum(2) * torch.arange(height)).sum(1) / area - keypoints[0, 0, 1]
    for shift in (x, y):
        assert abs(shift.mean()) < 2.5 * unit and 8 * unit < shift.std() < 12 * unit
    wide = mask.amax(1).sum(1) / 2
    assert 9 * unit < wide.min() < 11 * unit and 19 * unit < wide.max() < 21.5 * unit
    shape = area / (2 * wide).square()  # 1 for a square, pi/4 for a circle
    assert 0.3 < (shape > 0.95).float().mean() < 0.7 and (shape < 0.85).any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    joints=st.integers(1, 4),
    area=st.floats(0.02, 0.6),
    bbox_scale=st.floats(5, 120),
)
def test_hard_joints_keep_to_their_number_and_area(seed, joints, area, bbox_scale):
    torch.manual_seed(seed)
    # four joints so far apart that patches neither meet nor leave the view
    keypoints = torch.tensor([[20.0, 20.0], [76, 20], [20, 100], [76, 100], [48, 60]]).expand(8, -1, -1)
    known = rand(8, 5) < 0.8
    masking = AdaptiveMasking(joints=joints, area=area)
    mask = hide_hard_joints(keypoints, known, 0.0, torch.full((8,), bbox_scale), masking, (96, 128))
    hidden = under(mask, keypoints)
    assert hidden.sum(1).max() <= joints
    assert not (hidden & ~known).any()
    assert mask.flatten(1).sum(1).max() <= area * bbox_scale**2


def test_hard_joints_are_hidden_more_often():
    torch.manual_seed(0)
    keypoints = torch.tensor([[20.0, 20.0], [76, 20], [20, 100], [76, 100]]).expand(3000, -1, -1)
    masking = AdaptiveMasking(joints=1, area=1.0)
    score = masking.score(torch.tensor([0.0, 0.2, 0.0, 0.0]), torch.tensor([0.9, 0.9, 0.7, 0.9]))
    known = torch.ones(3000, 4, dtype=torch.bool)
    mask = hide_hard_joints(keypoints, known, score, torch.full((3000,), 90.0), masking, (96, 128))
    counts = under(mask, keypoints).sum(0)
    weight = torch.tensor([0.0, 2.0, 1.0, 0.0]).exp()  # by hand: 2 * .2 / .2, and (.3 - .1) / .2
    assert chisquare(counts, weight / weight.sum() * counts.sum()).pvalue > 0.01


def test_limbs_need_both_ends():
    torch.manual_seed(0)
    keypoints = torch.tensor([[10.0, 10.0], [40, 10], [40, 50], [10, 50]]).expand(200, -1, -1)
    known = torch.tensor([True, True, True, False]).expand(200, -1)
    limbs = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    mask = hide_limbs(keypoints, known, limbs, 2, 0.2, (64, 64))
    middle = mask[:, [10, 30, 50, 30], [25, 40, 25, 10]]
    assert middle[:, :2].any(0).all() and not middle[:, 2:].any()
    assert set(middle.sum(1).tolist()) == {0, 1, 2}


def test_paint_fills_the_mask_and_nothing_else():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    before = images.clone()
    mask = torch.zeros(40, 64, 64, dtype=torch.bool)
    mask[:, 5:55, 7:60] = True
    painted = paint(images, mask)
    assert torch.equal(images, before) and painted.dtype == torch.uint8
    outside = ~mask[:, None].expand_as(images)
    assert torch.equal(painted[outside], images[outside])
    inside = painted[:, :, 5:55, 7:60].float()
    spread = inside.std((-2, -1)).mean(1)
    assert spread.min() < 3 and 10 < spread.max() < 18  # flat to grainy, by sample
    colour = inside.mean((-2, -1))
    assert colour.min() < 50 and colour.max() > 200 and colour.std(0).min() > 40
    low, high = hiding.COLOUR
    assert inside.min() >= low - hiding.GRAIN - 1 and inside.max() <= high + hiding.GRAIN
