import math

import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.geometry.heatmap import decode, gaussian
from sagecache.semi.swaps import SwapCheck, pair_margin

# nose, two shoulders, two hips
FLIP = torch.tensor([0, 2, 1, 4, 3])
POSE = torch.tensor([[12.0, 3.0], [18.0, 8.0], [6.0, 8.0], [16.0, 22.0], [8.0, 22.0]])
SIZE, SIGMA = (24, 32), 4 / 3
SCALE = torch.tensor([20.0])


def maps_of(naming: float, pose=POSE) -> torch.Tensor:
    """Teacher maps (1, K, h, w): each channel holds `naming` at its joint, the rest at the partner's."""
    own = gaussian(pose[None], SIZE, SIGMA)
    return naming * own + (1 - naming) * own[:, FLIP]


def slow_margin(probability, points, left: int, right: int) -> float:
    """Bilinear sums over 3 x 3 windows, by loops in Python floats."""

    def read(channel, point):
        total = 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                x, y = float(point[0]) + dx, float(point[1]) + dy
                for column in (math.floor(x), math.floor(x) + 1):
                    for row in (math.floor(y), math.floor(y) + 1):
                        if 0 <= column < SIZE[0] and 0 <= row < SIZE[1]:
                            share = (1 - abs(x - column)) * (1 - abs(y - row))
                            total += share * float(probability[channel, row, column])
        return total

    own = read(left, points[left]) + read(right, points[right])
    other = read(left, points[right]) + read(right, points[left])
    return (own - other) / (own + other)


@pytest.mark.parametrize("naming", [0.5, 0.6, 0.8, 1.0])
def test_margin_of_distant_pairs_is_the_difference_of_the_two_shares(naming):
    margin = SwapCheck(FLIP)(maps_of(naming), POSE[None], SCALE)
    assert margin.margin.item() == pytest.approx(2 * naming - 1, abs=1e-3)
    assert margin.pair_margin[0].tolist() == pytest.approx([2 * naming - 1] * 2, abs=1e-3)


def test_margin_agrees_with_a_loop_on_random_maps_and_at_the_border():
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(4, 5, 32, 24, generator=generator)
    maps = maps / maps.sum((-2, -1), keepdim=True)
    points = torch.rand(4, 5, 2, generator=generator) * torch.tensor([23.0, 31.0])
    points[0, 1] = torch.tensor([0.0, 31.0])
    found = pair_margin(maps, points, SwapCheck(FLIP).pairs)
    for body in range(4):
        expected = [slow_margin(maps[body], points[body], left, right) for left, right in ((1, 2), (3, 4))]
        assert found[body].tolist() == pytest.approx(expected, abs=1e-5)


def test_exchanged_names_turn_the_margin_s_sign():
    maps = maps_of(0.9)
    as_is = pair_margin(maps, POSE[None], SwapCheck(FLIP).pairs)
    exchanged = pair_margin(maps, POSE[None, FLIP], SwapCheck(FLIP).pairs)
    assert torch.allclose(as_is, -exchanged, atol=1e-6) and (as_is > 0.7).all()


def test_an_unsure_body_is_silenced_as_a_whole_but_for_the_joints_without_a_partner():
    maps = torch.cat([maps_of(0.6), maps_of(0.9)])
    points, _ = decode(maps, SIGMA)
    decision = SwapCheck(FLIP, silence=0.3)(maps, points, SCALE.expand(2))
    assert decision.silenced.tolist() == [[False, True, True, True, True], [False] * 5]


def test_one_unsure_pair_does_not_silence_a_sure_body():
    maps = maps_of(1.0)
    maps[:, 1:3] = maps_of(0.52)[:, 1:3]
    decision = SwapCheck(FLIP, silence=0.3)(maps, POSE[None], SCALE)
    assert decision.pair_margin[0, 0] < 0.1 and not decision.silenced.any()


def test_pairs_on_one_spot_have_no_say():
    """Seen from the side, both shoulders are one peak: that is no confusion."""
    side = POSE.clone()
    side[1:3] = torch.tensor([12.0, 8.0])
    maps = maps_of(1.0, side)
    decision = SwapCheck(FLIP, silence=0.5)(maps, side[None], SCALE)
    assert decision.pair_margin[0, 0].abs() < 1e-6
    assert decision.margin.item() == pytest.approx(1, abs=1e-3)
    side[3:5] = torch.tensor([12.0, 22.0])
    edge_on = SwapCheck(FLIP, silence=0.5)(maps_of(1.0, side), side[None], SCALE)
    assert edge_on.margin.item() == 1 and not edge_on.silenced.any()


def test_near_pairs_count_in_proportion_to_their_distance():
    pose = POSE.clone()
    pose[3], pose[4] = torch.tensor([13.0, 22.0]), torch.tensor([11.0, 22.0])  # 2 px = .1 of the scale
    maps = maps_of(1.0, pose)
    maps[:, 1:3] = maps_of(0.5, pose)[:, 1:3]  # the distant pair is a coin
    decision = SwapCheck(FLIP, apart=0.2)(maps, pose[None], SCALE)
    near = decision.pair_margin[0, 1].item()
    assert decision.margin.item() == pytest.approx((0 + 0.5 * near) / 1.5, abs=1e-3)


def test_zero_silences_nobody_and_a_skeleton_without_pairs_has_nothing_to_confuse():
    maps = maps_of(0.5)
    assert not SwapCheck(FLIP, silence=0.0)(maps, decode(maps, SIGMA)[0], SCALE).silenced.any()
    alone = SwapCheck(torch.tensor([0]))(maps[:, :1], POSE[None, :1], SCALE)
    assert alone.margin.tolist() == [1] and not alone.silenced.any()


def test_empty_maps_are_no_confusion_and_stay_finite():
    decision = SwapCheck(FLIP)(torch.zeros(1, 5, 32, 24), POSE[None], SCALE)
    assert decision.pair_margin.tolist() == [[1, 1]] and not decision.silenced.any()


def test_half_precision_maps_are_read_in_float32():
    maps = maps_of(0.8)
    with torch.autocast("cpu", torch.bfloat16):
        decision = SwapCheck(FLIP)(maps.bfloat16(), POSE[None], SCALE)
    assert decision.margin.dtype == torch.float32 and decision.margin.item() == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("options", [dict(silence=-0.1), dict(silence=1.5), dict(apart=0.0), dict(apart=-1)])
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(SagecacheError, match=next(iter(options))):
        SwapCheck(FLIP, **options)
