"""Precision of pseudo labels, against a slow loop and against PCK of the same poses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagecache.errors import SagecacheError
from sagecache.evaluation.keypoints import evaluate
from sagecache.evaluation.pseudo_labels import PseudoLabelReport, judge
from sagecache.skeleton.definition import COCO17

FLIP = COCO17.flip_indices


def case(seed: int, persons: int = 6):
    rng = np.random.default_rng(seed)
    truth = np.concatenate(
        [rng.uniform(0, 200, (persons, 17, 2)), rng.integers(0, 3, (persons, 17, 1))], axis=-1
    )
    found = truth[..., :2] + rng.normal(0, 8, (persons, 17, 2))
    swapped = rng.random((persons, 17)) < 0.3
    found[swapped] = truth[:, FLIP, :2][swapped] + rng.normal(0, 3, (int(swapped.sum()), 2))
    keep, rescued = rng.random((2, persons, 17)) < 0.6
    return found, keep, rescued & keep, truth, rng.uniform(60, 220, (persons, 2))


def slowly(found, keep, rescued, truth, sides, threshold, normaliser) -> np.ndarray:
    counts = np.zeros((6, 17), np.int64)
    for n, k in np.ndindex(found.shape[:2]):
        if truth[n, k, 2] == 0:
            continue
        counts[0, k] += 1
        if not keep[n, k]:
            continue
        width, height = sides[n]
        size = np.hypot(width, height) if normaliser == "diagonal" else max(width, height)
        own = np.hypot(*(found[n, k] - truth[n, k, :2]))
        counts[1, k] += 1
        counts[2, k] += own <= threshold * size
        counts[3, k] += rescued[n, k]
        partner = FLIP[k]
        if partner != k and truth[n, partner, 2] > 0:
            counts[4, k] += 1
            other = np.hypot(*(found[n, k] - truth[n, partner, :2]))
            counts[5, k] += other < own and own > threshold * size
    return counts


@given(st.integers(0, 10**6), st.sampled_from(["diagonal", "max_side"]), st.sampled_from([0.02, 0.05]))
def test_counts_are_those_of_a_slow_loop(seed, normaliser, threshold):
    found, keep, rescued, truth, sides = case(seed)
    report = judge(found, keep, rescued, truth, sides, FLIP, threshold=threshold, normaliser=normaliser)
    expected = slowly(found, keep, rescued, truth, sides, threshold, normaliser)
    np.testing.assert_array_equal(report.counts(), expected)


def test_precision_of_everything_kept_is_pck():
    found, _, _, truth, sides = case(3)
    everything = np.ones((6, 17), bool)
    report = judge(found, everything, ~everything, truth, sides, FLIP)
    annotations = [
        dict(
            id=i + 1,
            image_id=i,
            category_id=1,
            bbox=[0.0, 0.0, *sides[i].tolist()],
            keypoints=truth[i].ravel().tolist(),
        )
        for i in range(6)
    ]
    predictions = [
        dict(
            image_id=i,
            annotation_id=i + 1,
            score=1.0,
            keypoints=np.c_[found[i], np.ones(17)].ravel().tolist(),
        )
        for i in range(6)
    ]
    coco = dict(images=[dict(id=i) for i in range(6)], annotations=annotations)
    judged = evaluate(predictions, coco, COCO17)
    assert report.precision == judged.pck[0.05] and 0 < report.precision < 1
    np.testing.assert_array_equal(report.precision_per_joint, judged.pck_per_joint[0.05])
    assert report.kept_share == 1 and report.rescued_share == 0


def test_two_parts_add_up_to_the_whole():
    whole = case(5)
    first, second = ([value[part] for value in whole] for part in (slice(0, 2), slice(2, 6)))
    added = judge(*first, FLIP) + judge(*second, FLIP)
    np.testing.assert_array_equal(added.counts(), judge(*whole, FLIP).counts())
    np.testing.assert_array_equal(PseudoLabelReport(*added.counts()).counts(), added.counts())


def test_a_swapped_pair_is_seen_and_a_miss_is_not_called_one():
    truth = np.zeros((1, 17, 3))
    truth[0, :, 0] = 30 * np.arange(17)
    truth[..., 2] = 2
    found = truth[..., :2].copy()
    found[0, [9, 10]] = found[0, [10, 9]]  # the wrists
    found[0, 5, 1] += 80  # a shoulder that lies nowhere near either
    all_of = np.ones((1, 17), bool)
    report = judge(found, all_of, ~all_of, truth, np.array([[100.0, 100.0]]), FLIP)
    assert report.swapped.nonzero()[0].tolist() == [9, 10]
    assert report.paired.sum() == 16 and report.swapped_share == 2 / 16  # the nose has no partner
    assert report.precision == 14 / 17


def test_what_nothing_was_counted_for_is_not_logged():
    found, keep, rescued, truth, sides = case(1)
    none = judge(found, keep & False, rescued & False, truth, sides, FLIP).scalars(COCO17.names)
    assert none["kept"] == 0 and not [name for name in none if name.startswith("precision")]
    some = judge(found, keep, rescued, truth, sides, FLIP).scalars(COCO17.names)
    assert {"precision", "kept", "rescued", "swapped", "precision/nose", "kept/left_ankle"} <= some.keys()


def test_what_does_not_fit_is_refused():
    found, keep, rescued, truth, sides = case(1)
    with pytest.raises(SagecacheError, match="unknown normaliser 'diag'"):
        judge(found, keep, rescued, truth, sides, FLIP, normaliser="diag")
    with pytest.raises(SagecacheError, match="person 2: box has no size"):
        judge(found, keep, rescued, truth, sides * np.r_[1, 1, 0, 1, 1, 1][:, None], FLIP)
