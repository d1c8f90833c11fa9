"""Letterboxing by marked pixels, suppression against a slow oracle, boxes inside the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.teachers.detectors import clean_boxes, iou_matrix, letterbox, suppress


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def slow_suppress(boxes, scores, threshold):
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if slow_iou(boxes[best], boxes[i]) <= threshold]
    return kept


corner = st.integers(0, 20)
box = st.tuples(corner, corner, st.integers(1, 15), st.integers(1, 15)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(box, st.integers(0, 5)), max_size=12), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_suppression_equals_the_slow_one(items, threshold):
    boxes = np.array([b for b, _ in items], float).reshape(-1, 4)
    scores = np.array([s / 5 for _, s in items])
    assert suppress(boxes, scores, threshold).tolist() == slow_suppress(boxes, scores, threshold)


def test_iou_of_empty_boxes_is_zero_and_of_equal_ones_one():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 1, 1], [1, 0, 3, 2.0]])
    np.testing.assert_allclose(iou_matrix(boxes, boxes)[0], [1, 0, 1 / 3])
    assert iou_matrix(boxes, boxes)[1, 1] == 0


@pytest.mark.parametrize("size", [(300, 120), (90, 400), (160, 160), (40, 30), (1, 500)])
def test_letterbox_says_where_pixels_went(size):
    width, height = size
    image = np.full((height, width, 3), 100, np.uint8)
    # A bright block: its edges must be found where scale and offset say.
    x0, x1, y0, y1 = width // 4, max(width * 3 // 4, width // 4 + 1), height // 4, height * 3 // 4
    image[y0:y1, x0:x1] = 250
    picture, scale, (left, top) = letterbox(image, (160, 160))
    assert picture.shape == (160, 160, 3)
    bright = picture[..., 0] > 215
    assert bright.any()
    rows, columns = np.nonzero(bright)
    assert abs(rows.min() - (y0 * scale + top)) <= 1 and abs(rows.max() + 1 - (y1 * scale + top)) <= 1
    assert abs(columns.min() - (x0 * scale + left)) <= 1.1
    if width >= 2:
        assert abs(columns.max() + 1 - (x1 * scale + left)) <= 1.1


def test_letterbox_fills_with_the_mean_colour():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, :30] = (200, 100, 50)
    picture, _, (_, top) = letterbox(image, (60, 60))
    assert top == 20 and (picture[:20] == (100, 50, 25)).all() and (picture[40:] == (100, 50, 25)).all()


def test_clean_boxes_clips_drops_and_keeps_order():
    boxes = np.array([[-9, 2, 30, 10], [1, 1, 2, 9], [np.nan, 0, 5, 5], [3, 3, 8, 99], [50, 1, 60, 9.0]])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    kept, kept_scores = clean_boxes(boxes, scores, size=(20, 12))
    np.testing.assert_array_equal(kept, [[-0.5, 2, 19.5, 10], [3, 3, 8, 11.5]])
    np.testing.assert_allclose(kept_scores, [0.9, 0.6])
    assert kept.dtype == kept_scores.dtype == np.float32
