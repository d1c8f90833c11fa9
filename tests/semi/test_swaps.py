import math

import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.geometry.heatmap import gaussian
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


def check(maps, pose=POSE, names=None, **options):
    points = pose.expand(len(maps), -1, -1)
    confidence = torch.linspace(0.5, 0.9, maps.shape[1]).expand(len(maps), -1)
    return SwapCheck(FLIP, **options)(maps, points, confidence, SCALE.expand(len(maps)), names)


@pytest.mark.parametrize("naming", [0.5, 0.6, 0.8, 1.0])
def test_margin_of_distant_pairs_is_the_difference_of_the_two_shares(naming):
    pairs = pair_margin(maps_of(naming), POSE[None], SwapCheck(FLIP).pairs)
    assert pairs[0].tolist() == pytest.approx([2 * naming - 1] * 2, abs=1e-3)
    assert check(maps_of(naming)).margin.item() == pytest.approx(2 * naming - 1, abs=1e-3)


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
    maps, pairs = maps_of(0.9), SwapCheck(FLIP).pairs
    as_is, exchanged = pair_margin(maps, POSE[None], pairs), pair_margin(maps, POSE[None, FLIP], pairs)
    assert torch.allclose(as_is, -exchanged, atol=1e-6) and (as_is > 0.7).all()


def test_what_another_network_surely_calls_the_other_way_round_is_renamed():
    maps, names = maps_of(1.0), maps_of(1.0)[:, FLIP]  # the two call each other's left right
    decision = check(maps, names=names, silence=0.4)
    assert torch.equal(decision.probability, maps[:, FLIP])
    assert torch.equal(decision.points, POSE[None, FLIP])
    assert decision.confidence[0].tolist() == pytest.approx([0.5, 0.7, 0.6, 0.9, 0.8])
    assert decision.corrected.tolist() == [[False, True, True, True, True]] and not decision.silenced.any()
    again = check(decision.probability, POSE[FLIP], names=names)
    assert again.margin.item() == pytest.approx(1, abs=1e-3) and not again.corrected.any()


def test_what_another_network_cannot_tell_is_silenced_and_left_as_it_is():
    maps = torch.cat([maps_of(1.0)] * 3)
    names = torch.cat([maps_of(0.6), maps_of(0.4), maps_of(0.9)])
    decision = check(maps, names=names, silence=0.4)
    assert decision.silenced.tolist() == [[False, True, True, True, True]] * 2 + [[False] * 5]
    assert not decision.corrected.any() and torch.equal(decision.probability, maps)


def test_without_another_network_the_maps_judge_themselves():
    decision = check(torch.cat([maps_of(0.6), maps_of(0.9)]), silence=0.4)
    assert decision.silenced.tolist() == [[False, True, True, True, True], [False] * 5]
    assert not decision.corrected.any()


def test_one_unsure_pair_does_not_silence_a_sure_body():
    maps = maps_of(1.0)
    maps[:, 1:3] = maps_of(0.52)[:, 1:3]
    assert not check(maps, silence=0.4).silenced.any()


def test_pairs_on_one_spot_have_no_say():
    """Seen from the side, both shoulders are one peak: that is no confusion."""
    side = POSE.clone()
    side[1:3] = torch.tensor([12.0, 8.0])
    assert check(maps_of(1.0, side), side, silence=0.5).margin.item() == pytest.approx(1, abs=1e-3)
    side[3:5] = torch.tensor([12.0, 22.0])
    edge_on = check(maps_of(1.0, side), side, silence=0.5)
    assert edge_on.margin.item() == 1 and not edge_on.silenced.any()


def test_near_pairs_count_in_proportion_to_their_distance():
    pose = POSE.clone()
    pose[3], pose[4] = torch.tensor([13.0, 22.0]), torch.tensor([11.0, 22.0])  # 2 px = .1 of the scale
    maps = maps_of(1.0, pose)
    maps[:, 1:3] = maps_of(0.5, pose)[:, 1:3]  # the distant pair is a coin
    near = pair_margin(maps, pose[None], SwapCheck(FLIP).pairs)[0, 1].item()
    assert check(maps, pose, apart=0.2).margin.item() == pytest.approx((0 + 0.5 * near) / 1.5, abs=1e-3)


def test_a_skeleton_without_pairs_has_nothing_to_confuse():
    maps = maps_of(0.5)[:, :1]
    decision = SwapCheck(torch.tensor([0]))(maps, POSE[None, :1], torch.ones(1, 1), SCALE)
    assert decision.margin.tolist() == [1] and not (decision.silenced | decision.corrected).any()


def test_empty_maps_are_no_confusion_and_stay_finite():
    decision = check(torch.zeros(1, 5, 32, 24))
    assert decision.margin.tolist() == [1] and not (decision.silenced | decision.corrected).any()


def test_half_precision_maps_are_read_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        margin = check(maps_of(0.8).bfloat16()).margin
    assert margin.dtype == torch.float32 and margin.item() == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("options", [dict(silence=-0.1), dict(silence=1.5), dict(apart=0.0), dict(apart=-1)])
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(SagecacheError, match=next(iter(options))):
        SwapCheck(FLIP, **options)
