"""Boxes of poses: doubled persons become one, the surest stays, unsure persons get none."""

import numpy as np
import pytest

from sagecache.evaluation.keypoints import oks
from sagecache.mm.pseudo_boxes import AREA, pseudo_boxes
from sagecache.skeleton import COCO17

RNG = np.random.default_rng(0)
POSE = RNG.uniform(50, 150, (17, 2))


def result(image_id, points, score, confidence=1.0):
    confidences = np.broadcast_to(confidence, 17)
    return dict(image_id=image_id, keypoints=np.c_[points, confidences].ravel().tolist(), score=score)


def test_a_person_seen_twice_has_one_box_the_surest_ones():
    results = [result(7, POSE + 1, 0.6), result(7, POSE, 0.9), result(3, POSE, 0.5)]
    found = pseudo_boxes(results, COCO17)
    assert [(one["image_id"], one["score"]) for one in found] == [(3, 0.5), (7, 0.9)]
    low, high = POSE.min(0), POSE.max(0)
    margin = 0.1 * (high - low).max()
    np.testing.assert_allclose(found[1]["bbox"], [*(low - margin), *(high - low + 2 * margin)], atol=0.02)


@pytest.mark.parametrize("shift", [0.5, 2, 5, 10, 20])
def test_two_stay_where_their_oks_is_at_most_the_threshold(shift):
    """By our own OKS, with the mean of the two areas, as mmpose has it."""
    first, second = result(1, POSE, 0.9), result(1, POSE + [shift, 0], 0.8)
    extent = np.ptp(POSE, axis=0)
    area = AREA * np.prod(extent + 0.2 * extent.max())
    seen = np.c_[POSE, np.ones(17)][None]
    similar = oks((POSE + [shift, 0])[None], seen, np.array([area]), np.asarray(COCO17.sigmas))[0, 0]
    assert len(pseudo_boxes([first, second], COCO17, oks=0.7)) == (1 if similar > 0.7 else 2)


def test_unsure_persons_get_no_box():
    assert pseudo_boxes([result(1, POSE, 0.9, confidence=0.2)], COCO17) == []
    few = np.where(np.arange(17) < 2, 0.9, 0.1)
    assert pseudo_boxes([result(1, POSE, 0.9, few)], COCO17) == []
    assert pseudo_boxes([], COCO17) == []


def test_a_pose_beside_its_picture_gets_no_box():
    assert pseudo_boxes([result(1, POSE - 500, 0.9), result(1, POSE - [500, 0], 0.8)], COCO17) == []
