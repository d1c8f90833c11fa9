"""Bodies outside the range of true ones: each bound acts, and what can't be measured is never outside."""

import numpy as np
import pytest

from sagecache.evaluation.plausibility import BodyRange
from sagecache.skeleton import COCO17

NAMES = list(COCO17.names)


def bodies(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Upright figures of slightly different sizes, in boxes of 100 x 100."""
    rng = np.random.default_rng(seed)
    places = dict(
        shoulder=(20, 20), elbow=(30, 40), wrist=(35, 60), hip=(15, 55), knee=(17, 75), ankle=(18, 95)
    )
    body = np.zeros((17, 3))
    body[:, 2] = 2
    for name, (x, y) in places.items():
        body[NAMES.index(f"left_{name}"), :2] = 50 + x, y
        body[NAMES.index(f"right_{name}"), :2] = 50 - x, y
    people = np.tile(body, (count, 1, 1))
    people[:, :, :2] += rng.normal(0, 1, (count, 17, 2))
    return people, np.tile([0.0, 0.0, 100.0, 100.0], (count, 1))


@pytest.fixture
def bounds():
    return BodyRange.of(*bodies(400), COCO17)


def test_few_true_bodies_are_outside(bounds):
    share = bounds.outside(*bodies(400)).mean()
    assert 0 < share <= 17 * 0.006
    assert bounds.outside(*bodies(400, seed=1)).mean() < 0.15


def test_a_limb_too_long_or_unlike_its_twin_is_outside_and_a_short_pair_is_not(bounds):
    people, boxes = bodies(4, seed=2)
    people[0, NAMES.index("left_ankle"), 1] += 60  # long
    for row in (1, 2):
        knee, ankle = (NAMES.index(f"left_{name}") for name in ("knee", "ankle"))
        people[row, ankle] = people[row, knee] + 0.1 * (people[row, ankle] - people[row, knee])
    knee, ankle = (NAMES.index(f"right_{name}") for name in ("knee", "ankle"))
    people[2, ankle] = people[2, knee] + 0.1 * (
        people[2, ankle] - people[2, knee]
    )  # both short: pointing at us
    assert bounds.outside(people, boxes)[:3].tolist() == [True, True, False]
    np.testing.assert_array_equal(bounds.outside(people / [1, 2, 1], boxes / 2)[:1], True)


def test_it_does_not_depend_on_the_size_of_the_picture(bounds):
    people, boxes = bodies(50, seed=3)
    np.testing.assert_array_equal(
        bounds.outside(people * [3, 3, 1], boxes * 3), bounds.outside(people, boxes)
    )


def test_unknown_joints_bound_nothing_and_break_nothing():
    people, boxes = bodies(30)
    people[:, NAMES.index("left_wrist"), 2] = 0
    people[0, :, 2] = 0
    bounds = BodyRange.of(people, boxes, COCO17)
    edge = COCO17.limb_names.index("left_elbow-left_wrist")
    assert np.isinf(bounds.longest[edge]) and np.isfinite(bounds.longest).sum() == len(bounds.longest) - 1
    assert not bounds.outside(people, boxes)[0]
