"""Known views: where a keypoint lies in the image, and which labels the student can see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sagecache.geometry.distortion import bend, radial
from sagecache.priors.frames import labels_in_view, student_keypoints

FLIP = torch.tensor([0, 2, 1])
SIZE, MAP = (97, 129), (25, 33)  # corner to corner: a cell of the map is four pixels
PLAIN = torch.eye(3)
MIRRORED = torch.tensor([[-1.0, 0, 96], [0, 1, 0], [0, 0, 1]])  # x' = w - 1 - x
QUARTER_TURN = torch.tensor([[0.0, -1, 96], [1, 0, 0], [0, 0, 1]])  # x' = 96 - y, y' = x
HALF = torch.diag(torch.tensor([0.5, 0.5, 1]))


def batch_of(strong_from_image, student=None, labels=None):
    """One person: what the two functions read of a batch."""
    return SimpleNamespace(
        student_heatmaps=torch.zeros(1, 3, MAP[1], MAP[0]),
        student_keypoints=None if student is None else torch.tensor([student]),
        heatmap_from_strong=torch.diag(torch.tensor([0.25, 0.25, 1])),
        strong_from_image=strong_from_image[None],
        strong_size=SIZE,
        distortion=None,
        pseudo_labels=None if labels is None else SimpleNamespace(keypoints=torch.tensor([labels])),
    )


@pytest.mark.parametrize(
    ("view", "student"),
    [
        (PLAIN, [[48.0, 10], [60, 20], [30, 24]]),
        (MIRRORED, [[48.0, 10], [66, 24], [36, 20]]),
        (QUARTER_TURN, [[86.0, 48], [76, 60], [72, 30]]),
        (HALF, [[24.0, 5], [30, 10], [15, 12]]),
    ],
    ids=["plain", "mirrored", "turned", "smaller"],
)
def test_keypoints_return_to_the_image_with_its_names(view, student):
    """In a mirrored view the student's right joint (channel 2) is the image's left one (channel 1)."""
    expected = torch.tensor([[[48.0, 10], [60, 20], [30, 24]]])
    batch = batch_of(view, student)
    assert_close(student_keypoints(batch, FLIP), expected)
    target_from_image = torch.tensor([[[2.0, 0, -7], [0, 2, 5], [0, 0, 1]]])
    assert_close(student_keypoints(batch, FLIP, target_from_image), 2 * expected + torch.tensor([-7.0, 5]))


def test_each_sample_has_its_own_view_and_the_gradient_passes():
    student = torch.tensor([[[48.0, 10], [60, 20], [30, 24]], [[48, 10], [66, 24], [36, 20]]])
    batch = SimpleNamespace(
        student_keypoints=student.requires_grad_(), strong_from_image=torch.stack([PLAIN, MIRRORED])
    )
    points = student_keypoints(batch, FLIP)
    assert_close(points[0], points[1])
    points[1, 1, 0].backward()  # x of the left joint, read from the right channel, where x runs backwards
    expected = torch.zeros_like(student)
    expected[1, 2, 0] = -1
    assert_close(student.grad, expected)


@pytest.mark.parametrize(
    ("view", "seen"),
    [
        (PLAIN, [True, False, False]),
        (MIRRORED, [True, False, False]),
        (QUARTER_TURN, [True, True, False]),  # of the image it holds x to 128, y to 96
        (HALF, [True, True, True]),
    ],
    ids=["plain", "mirrored", "turned", "smaller"],
)
def test_labels_on_the_map_are_in_view(view, seen):
    """Named as in the image, mirrored or not; one beyond the right edge, one beyond the lower one."""
    batch = batch_of(view, labels=[[50.0, 50], [120, 20], [20, 150]])
    assert labels_in_view(batch).tolist() == [seen]


def test_the_map_ends_at_the_centres_of_its_outer_cells():
    labels = [[0.0, 0], [96, 128], [96.01, 128]]
    assert labels_in_view(batch_of(PLAIN, labels=labels)).tolist() == [[True, True, False]]


def test_labels_that_are_nowhere_are_not_in_view():
    labels = [[float("nan"), 5], [float("inf"), 5], [5.0, 5]]
    assert labels_in_view(batch_of(PLAIN, labels=labels)).tolist() == [[False, False, True]]


def test_labels_that_a_lens_pushes_off_the_map_are_not_in_view():
    """Or brings in: what counts is the view that the student sees."""
    labels = [[48.0, 64], [3.0, 5], [-2.0, 5]]
    for k1, seen in ((0.4, [True, False, False]), (-0.4, [True, True, True])):
        lens = radial(k1, 0.0, SIZE)
        lattices = [torch.from_numpy(one).float()[None] for one in (lens.forward, lens.inverse)]
        moved = bend(np.array(labels), lens.forward, SIZE)
        assert ((moved >= 0) & (moved <= np.array(SIZE) - 1)).all(-1).tolist() == seen
        batch = batch_of(PLAIN, labels=labels)
        assert labels_in_view(batch).tolist() == [[True, True, False]]
        batch.distortion = tuple(lattices)
        assert labels_in_view(batch).tolist() == [seen]
