"""Figures of arms: what is drawn are the means and ranges, in both formats, the same bytes each time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from sagecache.visualization import evidence
from sagecache.visualization.evidence import Panel, draw_bars, draw_curves

ROWS = {"one": np.array([[1.0, 2.0, np.nan], [3.0, 2.0, np.nan]]), "two": np.array([[5.0, 6.0, 7.0]])}


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    figures, write = [], evidence._write
    monkeypatch.setattr(
        evidence, "_write", lambda figure, path: figures.append(figure) or write(figure, path)
    )
    return figures


def test_curves_are_means_with_the_range_of_seeds(tmp_path, drawn):
    panel = Panel("left", [0, 10, 20], ROWS, "step", "%", line=("truth", 4.0))
    files = draw_curves(
        tmp_path / "new" / "plot", "All", [panel, Panel("right", [1, 2], {"one": ROWS["one"][:, :2]})]
    )
    assert [file.name for file in files] == ["plot.svg", "plot.png"] and cv2.imread(str(files[1])).size > 0
    left, right = drawn[0].axes
    one, two, truth = left.get_lines()
    np.testing.assert_allclose(one.get_ydata(), [2, 2, np.nan])
    np.testing.assert_allclose(two.get_ydata(), [5, 6, 7])
    assert truth.get_label() == "truth" and set(truth.get_ydata()) == {4.0}
    assert one.get_color() != two.get_color() and len(left.collections) == 1  # a band of two seeds
    corners = left.collections[0].get_paths()[0].vertices
    assert {(0.0, 1.0), (0.0, 3.0)} <= set(map(tuple, corners.tolist()))
    assert (left.get_xlabel(), left.get_ylabel(), right.get_title()) == ("step", "%", "right")


def test_bars_are_means_with_a_dot_a_seed(tmp_path, drawn):
    draw_bars(tmp_path / "plot", "All", [Panel("", ["left_wrist", "b", "c"], ROWS)])
    (axes,) = drawn[0].axes
    assert [bar.get_height() for bar in axes.patches] == [2, 2, 0, 5, 6, 7]
    (dots,) = axes.get_lines()  # an arm of one seed needs none
    np.testing.assert_array_equal(dots.get_ydata(), [1, 2, np.nan, 3, 2, np.nan])
    assert axes.get_xticklabels()[0].get_text() == "left wrist"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]


def test_the_same_figures_are_the_same_bytes(tmp_path):
    pages = [
        [
            file.read_bytes()
            for file in draw_curves(tmp_path / str(k) / "plot", "x", [Panel("", [1, 2, 3], ROWS)])
        ]
        for k in range(2)
    ]
    assert pages[0] == pages[1]
