import math

import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import swap_mirrored
from sagecache.geometry.heatmap import gaussian
from sagecache.semi.swaps import FacingVote, SwapCheck
from sagecache.skeleton import COCO17

FLIP = torch.tensor(COCO17.flip_indices)
PAIRS, TORSO = torch.tensor(COCO17.mirrored_joints), torch.tensor(COCO17.torso_joints)
LEFT, RIGHT = PAIRS.T
SIZE, SIGMA, SCALE = (24, 32), 4 / 3, 20.0
# An infant on its back, head up: its left is at the picture's right. Midline, then half-widths by pair.
HEIGHT = torch.tensor([4.0, 3.0, 3.5, 8.0, 12.0, 16.0, 19.0, 24.0, 29.0])
HALF_WIDTH = torch.tensor([0.0, 2.0, 3.0, 5.0, 6.0, 7.0, 4.0, 5.0, 6.0])


def pose(width: float = 1.0, turn: float = 0.0) -> torch.Tensor:
    """(17, 2) map pixels, seen from the front; width 0 is edge-on; turn about the map's centre, degrees."""
    points = torch.empty(17, 2)
    points[0] = torch.tensor([0.0, HEIGHT[0]])
    points[LEFT] = torch.stack([width * HALF_WIDTH[1:], HEIGHT[1:]], -1)
    points[RIGHT] = torch.stack([-width * HALF_WIDTH[1:], HEIGHT[1:]], -1)
    centred = (points - torch.tensor([0.0, 16.0])) * 0.7
    angle = math.radians(turn)
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return centred @ rotation.T + torch.tensor([11.5, 15.5])


def maps_of(naming: float, points: torch.Tensor) -> torch.Tensor:
    """(1, K, h, w): each channel holds `naming` of its mass at its joint, the rest at the partner's."""
    own = gaussian(points[None], SIZE, SIGMA)
    return naming * own + (1 - naming) * own[:, FLIP]


def vote_of(maps: torch.Tensor, mirrored: bool = False, **options) -> float:
    vote = FacingVote(PAIRS, TORSO, SIGMA, **options)
    return vote(maps, torch.tensor([SCALE]), torch.tensor([mirrored])).item()


def test_bodies_seen_from_the_front_vote_up_and_from_behind_down():
    front = maps_of(1.0, pose())
    assert vote_of(front) > 0.5
    assert vote_of(front[:, FLIP]) == pytest.approx(-vote_of(front), abs=1e-5)


@pytest.mark.parametrize("turn", [-150, -90, -30, 30, 90, 180])
def test_the_vote_turns_with_the_torso(turn):
    assert vote_of(maps_of(0.9, pose(turn=turn))) == pytest.approx(vote_of(maps_of(0.9, pose())), abs=0.12)


def test_a_mirrored_frame_does_not_change_who_is_seen_from_where():
    """The picture of an infant on its back, mirrored; channels are named as in the image."""
    points = pose(turn=20)
    front = maps_of(0.9, points)
    mirrored = maps_of(0.9, torch.stack([SIZE[0] - 1 - points[:, 0], points[:, 1]], -1))
    assert vote_of(mirrored, mirrored=True) == pytest.approx(vote_of(front), abs=1e-4)
    assert vote_of(mirrored) == pytest.approx(-vote_of(front), abs=1e-4)


def test_the_vote_falls_in_proportion_to_what_the_names_are_worth():
    whole = vote_of(maps_of(1.0, pose()))
    votes = [vote_of(maps_of(naming, pose())) for naming in (0.5, 0.6, 0.75, 0.9)]
    assert votes == pytest.approx([(2 * naming - 1) * whole for naming in (0.5, 0.6, 0.75, 0.9)], abs=0.02)


def test_pairs_count_by_their_distance_across_the_torso():
    """All pairs equally wide: the vote is that distance over `apart`, up to 1; edge-on it is nothing."""
    wide = pose()
    middle = (wide[LEFT] + wide[RIGHT]) / 2
    for half in (4.0, 6.0):
        wide[LEFT], wide[RIGHT] = middle + torch.tensor([half, 0.0]), middle - torch.tensor([half, 0.0])
        for apart in (0.5, 1.0):
            expected = min(1, 2 * half / SCALE / apart)
            assert vote_of(maps_of(1.0, wide), apart=apart) == pytest.approx(expected, abs=0.04)
    assert abs(vote_of(maps_of(1.0, pose(width=0.0)))) < 0.05


def test_maps_without_a_torso_axis_or_without_mass_stay_finite_and_silent():
    point = torch.full((17, 2), 12.0)
    assert vote_of(maps_of(1.0, point)) == pytest.approx(0, abs=0.05)
    assert vote_of(torch.zeros(1, 17, 32, 24)) == 0


def test_a_batch_is_its_bodies_one_by_one_and_half_precision_is_raised():
    bodies = [maps_of(naming, pose(turn=turn)) for naming, turn in ((0.9, 0), (0.2, 40), (0.6, -80))]
    vote = FacingVote(PAIRS, TORSO, SIGMA)
    together = vote(torch.cat(bodies), torch.full((3,), SCALE), torch.zeros(3, dtype=torch.bool))
    assert together.tolist() == pytest.approx([vote_of(body) for body in bodies], abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        half = vote(torch.cat(bodies).bfloat16(), torch.full((3,), SCALE), torch.zeros(3, dtype=torch.bool))
    assert half.dtype == torch.float32 and torch.allclose(half, together, atol=0.02)


def test_a_torso_that_is_no_pair_is_refused():
    with pytest.raises(SagecacheError, match="mirror pairs"):
        FacingVote(PAIRS, torch.tensor([[5, 12], [6, 11]]), SIGMA)


def checked(vote: float, fixed: float, **options):
    maps, points = maps_of(1.0, pose()), pose()[None]
    confidence = torch.linspace(0.1, 0.9, 17)[None]
    decision = SwapCheck(FLIP, **options)(
        maps, points, confidence, torch.tensor([vote]), torch.tensor([fixed])
    )
    return decision, maps, points, confidence


@pytest.mark.parametrize(("vote", "fixed"), [(-0.1, 0.5), (0.3, -0.4)])
def test_a_sure_network_renames_what_contradicts_it(vote, fixed):
    decision, *label = checked(vote, fixed)
    expected = [swap_mirrored(value, torch.tensor([True]), FLIP) for value in label]
    found = [decision.probability, decision.points, decision.confidence]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert decision.corrected[0].tolist() == [False] + [True] * 16  # the nose has no partner
    assert not decision.silenced.any()


def test_what_agrees_with_it_stays():
    decision, *label = checked(0.1, 0.5)
    found = [decision.probability, decision.points, decision.confidence]
    assert all(torch.equal(a, b) for a, b in zip(found, label, strict=True))
    assert not (decision.corrected | decision.silenced).any() and decision.weight.tolist() == [1]


@pytest.mark.parametrize("fixed", [0.19, 0.0, -0.14])
def test_between_the_thresholds_names_are_silent_and_nothing_is_renamed(fixed):
    decision, maps, *_ = checked(-0.9 if fixed > 0 else 0.9, fixed, front=0.2, back=0.15)
    assert decision.silenced[0].tolist() == [False] + [True] * 16
    assert not decision.corrected.any() and torch.equal(decision.probability, maps)
    assert decision.weight.tolist() == [1]


def test_bodies_from_behind_weigh_more():
    assert checked(-0.5, -0.5, weight_back=3.0)[0].weight.tolist() == [3]
    assert checked(0.5, 0.5, weight_back=3.0)[0].weight.tolist() == [1]


def test_a_label_without_a_vote_of_its_own_is_not_renamed():
    assert not checked(0.0, 0.5)[0].corrected.any()


@pytest.mark.parametrize("options", [dict(front=-0.1), dict(back=1.5), dict(weight_back=0.0)])
def test_bad_values_of_the_check_are_refused_by_name(options):
    with pytest.raises(SagecacheError, match=next(iter(options))):
        SwapCheck(FLIP, **options)


def test_a_bad_distance_is_refused_by_name():
    with pytest.raises(SagecacheError, match="apart"):
        FacingVote(PAIRS, TORSO, SIGMA, apart=0.0)


def test_persons_that_nobody_was_asked_about_stay_as_they_are():
    maps = maps_of(1.0, pose())
    points, confidence = torch.rand(1, 17, 2), torch.rand(1, 17)
    decision = SwapCheck(FLIP)(maps, points, confidence, torch.tensor([-0.9]), torch.tensor([math.nan]))
    assert torch.equal(decision.points, points) and decision.weight.tolist() == [1.0]
    assert not decision.corrected.any() and not decision.silenced.any()
