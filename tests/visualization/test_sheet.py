"""Sheets: nothing overlaps, nothing is lost, text stays within its tile."""

import numpy as np
import pytest

from sagecache.geometry.affine import apply_affine
from sagecache.visualization.sheet import (
    BACKGROUND,
    MARGIN,
    Text,
    Tile,
    fit,
    grid,
    shortened,
    stack,
    text_width,
    titled,
    write,
)


def plain(height: int, width: int, level: int) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def test_a_grid_keeps_every_picture_whole_and_in_reading_order():
    shapes = [(20, 30), (40, 10), (5, 50), (16, 16), (30, 3)]
    pictures = [plain(*shape, level) for level, shape in enumerate(shapes, start=100)]
    sheet = grid([Tile(picture) for picture in pictures], columns=2)
    corners = []
    for level, (height, width) in enumerate(shapes, start=100):
        rows, columns = np.nonzero((sheet == level).all(-1))
        assert len(rows) == height * width, "whole"
        assert rows.max() - rows.min() + 1 == height and columns.max() - columns.min() + 1 == width
        corners.append((rows.min(), columns.min()))
    assert corners[0][0] == corners[1][0] < corners[2][0] == corners[3][0] < corners[4][0]
    assert corners[0][1] == corners[2][1] == corners[4][1] == MARGIN < corners[1][1] == corners[3][1]
    assert (sheet[-MARGIN:] == BACKGROUND).all() and (sheet[:, -MARGIN:] == BACKGROUND).all()


def test_a_grid_needs_tiles():
    with pytest.raises(ValueError, match="tiles"):
        grid([], 3)
    with pytest.raises(ValueError, match="columns"):
        grid([Tile(plain(2, 2, 0))], 0)


@pytest.mark.parametrize("size", [(100, 100), (30, 200), (7, 9)])
@pytest.mark.parametrize("shape", [(50, 80), (3000, 2000), (1, 1), (2, 900)])
def test_fit_stays_inside_and_says_where_points_went(shape, size):
    shown, shown_from_image = fit(plain(*shape, 9), size)
    height, width = shown.shape[:2]
    assert width <= size[0] and height <= size[1] and (width == size[0] or height == size[1])
    outer = np.array([[-0.5, -0.5], [shape[1] - 0.5, shape[0] - 0.5]])  # pixel edges map to pixel edges
    np.testing.assert_allclose(
        apply_affine(shown_from_image, outer), [[-0.5, -0.5], [width - 0.5, height - 0.5]]
    )


def test_text_is_written_below_its_position_in_its_colour():
    image = plain(40, 120, 0)
    picture = write(image, [Text("Text", 10, 12, 14, (200, 100, 50))])
    rows, columns = np.nonzero(picture.any(-1))
    assert rows.min() >= 12 and columns.min() >= 10 and columns.max() <= 10 + text_width("Text", 14)
    np.testing.assert_array_equal(picture.reshape(-1, 3).max(0), (200, 100, 50))
    assert not image.any(), "the input is left as it was"


@pytest.mark.parametrize("width", [0, 5, 40, 200])
def test_long_text_is_cut_to_the_width(width):
    text = "a title that goes on and on"
    cut = shortened(text, width)
    assert text_width(cut) <= max(width, text_width("..."))
    assert cut.endswith("...") or cut == text


def test_a_title_takes_space_only_where_there_is_one():
    image = plain(30, 200, 77)
    assert titled(Tile(image)).shape == image.shape
    framed = titled(Tile(image, "title", "caption"))
    rows = np.flatnonzero((framed == 77).all((1, 2)))
    assert len(rows) == 30
    assert framed[: rows[0]].max() > 200 and framed[rows[-1] + 1 :].max() > 100, "text above and below"


def test_stacking_fills_up_the_narrower_sheet():
    sheet = stack([plain(4, 10, 50), plain(3, 6, 60)])
    assert sheet.shape == (7, 10, 3)
    assert (sheet[:4] == 50).all() and (sheet[4:, :6] == 60).all() and (sheet[4:, 6:] == BACKGROUND).all()
