"""Figures that compare arms of an ablation: curves and bars, mean over seeds with the range of seeds.

Takes arrays, reads no log and runs no network. Each figure is written twice, as SVG and as PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: for any eyes
PANEL = (5.2, 3.6)  # inches


@dataclass(frozen=True, eq=False)
class Panel:
    """series: arm -> (S, N), a row a seed, NaN where there is nothing. x: N numbers, or N names for bars.

    line: a value to compare with, drawn across, with its name.
    """

    title: str
    x: Sequence[float] | Sequence[str]
    series: Mapping[str, np.ndarray]
    x_label: str = ""
    y_label: str = ""
    line: tuple[str, float] | None = None


def draw_curves(path: Path, title: str, panels: Sequence[Panel]) -> list[Path]:
    """A curve an arm over numbers x. Returns the files, path with .svg and .png."""
    return _draw(path, title, panels, _curves)


def draw_bars(path: Path, title: str, panels: Sequence[Panel]) -> list[Path]:
    """A bar an arm at each name x, seeds as dots. Returns the files, path with .svg and .png."""
    return _draw(path, title, panels, _bars)


def _draw(path: Path, title: str, panels: Sequence[Panel], draw) -> list[Path]:
    width = max(PANEL[0], 0.42 * max(len(panel.x) for panel in panels) if draw is _bars else 0)
    figure = Figure(figsize=(width * len(panels), PANEL[1]), layout="constrained")
    figure.suptitle(title)
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        draw(axes, panel)
        if panel.line is not None:
            axes.axhline(panel.line[1], color="0.4", linestyle=":", label=panel.line[0])
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize="small")
    return _write(figure, path)


def _curves(axes: Axes, panel: Panel) -> None:
    x = np.asarray(panel.x, float)
    for (arm, rows), colour in zip(panel.series.items(), _colours(panel), strict=True):
        mean, low, high = _over_seeds(rows)
        axes.plot(x, mean, color=colour, label=arm, marker="o" if len(x) < 12 else None, markersize=4)
        if len(rows) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _bars(axes: Axes, panel: Panel) -> None:
    count, places = len(panel.series), np.arange(len(panel.x))
    width = 0.8 / max(count, 1)
    for number, ((arm, rows), colour) in enumerate(zip(panel.series.items(), _colours(panel), strict=True)):
        at = places + (number - (count - 1) / 2) * width
        axes.bar(at, np.nan_to_num(_over_seeds(rows)[0]), width * 0.92, color=colour, label=arm)
        if len(rows) > 1:
            axes.plot(np.tile(at, len(rows)), rows.ravel(), ".", color="0.15", markersize=3)
    axes.margins(y=0.25)  # room for the legend
    axes.set_xticks(places, [str(name).replace("_", " ") for name in panel.x])
    if len(panel.x) > 6:
        axes.tick_params(axis="x", labelrotation=60)


def _colours(panel: Panel) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(panel.series))]


def _over_seeds(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, least and largest of each column; NaN of a column without values."""
    rows = np.asarray(rows, float)
    known = np.isfinite(rows)
    count = known.sum(0)
    mean = np.where(known, rows, 0).sum(0) / np.where(count, count, np.nan)
    low, high = np.where(known, rows, np.inf).min(0), np.where(known, rows, -np.inf).max(0)
    return mean, np.where(count, low, np.nan), np.where(count, high, np.nan)


def _write(figure: Figure, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".svg"), path.with_suffix(".png")]
    # the same figures give the same bytes
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=140)
    return files
