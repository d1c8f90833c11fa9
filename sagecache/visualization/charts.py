"""Line charts as inline SVG: ticks, paths and what a pointer reads off. Geometry only; the page's template
writes the marks. Knows numbers by step, and nothing of what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WIDTH, HEIGHT = 360, 190  # of a chart, in its own pixels
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22  # margins
MAX_POINTS = 240  # a screen shows no more; longer curves are averaged
TINY = 1e-30  # a logarithmic axis goes no lower
MARKED = 16  # curves of at most so many points have a dot at each


@dataclass(frozen=True, eq=False)
class Line:
    """A curve: steps (N,), rising, and values (N,); what is not finite is a gap. note: beside its name."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """lines over steps. log: a logarithmic axis (values below TINY are gaps). low, high: the axis at
    least reaches there. marks: (step, label), a vertical line.
    """

    title: str
    lines: Sequence[Line]
    note: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None
    marks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Trace:
    """A line as drawn: path, dots (x, y); steps and values (None: a gap) to read; last as text."""

    name: str
    note: str
    path: str
    dots: list[tuple[float, float]]
    steps: list[float]
    values: list[float | None]
    last: str


@dataclass(frozen=True)
class Drawn:
    """A chart in pixels. first, final: steps at its left and right edge. summary: for those who can't see."""

    title: str
    note: str
    traces: list[Trace]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]
    first: float
    final: float
    summary: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass
class _Scale:
    """Values to pixels; low < high, in values."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        low, high, values = (np.log10(v) if self.log else v for v in (self.low, self.high, values))
        return self.start + (values - low) / (high - low) * (self.end - self.start)


def draw_chart(chart: Chart) -> Drawn | None:
    """None where no line has a value that can be shown."""
    lines = [line for line in map(_shown, chart.lines, [chart.log] * len(chart.lines)) if line is not None]
    if not lines:
        return None
    x, y = _x_scale(lines), _y_scale(chart, lines)
    traces = [_trace(line, x, y) for line in lines]
    return Drawn(
        chart.title,
        chart.note,
        traces,
        [Tick(round(float(x(np.array(t))), 1), f"{t:g}") for t in x.ticks],
        [Tick(round(float(y(np.array(t))), 1), _label(t, chart.log)) for t in y.ticks],
        [
            Tick(round(float(x(np.array(step))), 1), text)
            for step, text in chart.marks
            if x.low <= step <= x.high
        ],
        x.low,
        x.high,
        _summary(chart, traces),
    )


def number(value: float | None) -> str:
    """Three significant digits; an en dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        text = f"{value:.3g}"
        return f"{value:.0f}" if "e" in text else text
    return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within [low, high], about count of them."""
    raw = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


# --- inside --------------------------------------------------------------------------------------


def _shown(line: Line, log: bool) -> Line | None:
    """The line without what can't be shown, averaged to MAX_POINTS; None where nothing is left."""
    steps, values = np.asarray(line.steps, dtype=float), np.asarray(line.values, dtype=float).copy()
    values[~np.isfinite(values) | ((values < TINY) & log)] = np.nan
    if not np.isfinite(values).any():
        return None
    if len(steps) > MAX_POINTS:
        parts = np.array_split(np.arange(len(steps)), MAX_POINTS)
        steps = np.array([steps[part].mean() for part in parts])
        values = np.array(
            [
                values[part][np.isfinite(values[part])].mean() if np.isfinite(values[part]).any() else np.nan
                for part in parts
            ]
        )
    return Line(line.name, steps, values, line.note)


def _x_scale(lines: Sequence[Line]) -> _Scale:
    low, high = 0.0, float(max(line.steps[-1] for line in lines))  # charts side by side share their start
    high = max(high, 1.0)
    ticks = [tick for tick in nice_ticks(low, high, 5) if tick == int(tick)]
    return _Scale(low, high, LEFT + 4, WIDTH - RIGHT, ticks=ticks)


def _y_scale(chart: Chart, lines: Sequence[Line]) -> _Scale:
    values = np.concatenate([line.values for line in lines])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    start, end = HEIGHT - BOTTOM, TOP
    if chart.log:
        least, most = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        most = max(most, least + 1)
        ticks = [10.0**k for k in range(least, most + 1, -(-(most - least) // 4))]
        return _Scale(10.0**least, 10.0**most, start, end, True, ticks)
    low = low if chart.low is None else min(low, chart.low)
    high = high if chart.high is None else max(high, chart.high)
    if high - low < 1e-12 * max(abs(high), 1e-300):
        room = abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    room = 0.06 * (high - low)
    low = low if chart.low is not None and low >= chart.low else low - room
    high = high if chart.high is not None and high <= chart.high else high + room
    return _Scale(low, high, start, end, ticks=nice_ticks(low, high))


def _trace(line: Line, x: _Scale, y: _Scale) -> Trace:
    across, up = np.round(x(line.steps), 1), np.round(y(line.values), 1)
    finite = np.isfinite(up)
    parts, dots = [], []
    for i in np.flatnonzero(finite):
        joined = i > 0 and finite[i - 1]
        alone = not joined and not (i + 1 < len(up) and finite[i + 1])
        parts.append(f"{'L' if joined else 'M'}{across[i]:g} {up[i]:g}")
        if alone or len(up) <= MARKED:
            dots.append((float(across[i]), float(up[i])))
    values = [float(f"{v:.4g}") if np.isfinite(v) else None for v in line.values]
    last = next(v for v in reversed(values) if v is not None)
    steps = [round(float(step), 1) for step in line.steps]
    return Trace(line.name, line.note, "".join(parts), dots, steps, values, number(last))


def _label(value: float, log: bool) -> str:
    if log and not 1e-3 <= value < 1e4:
        return f"1e{round(math.log10(value))}"
    return number(value).replace("-", "−") if value < 0 else number(value)


def _summary(chart: Chart, traces: Sequence[Trace]) -> str:
    parts = []
    for trace in traces:
        known = [v for v in trace.values if v is not None]
        parts.append(f"{trace.name} from {number(known[0])} to {number(known[-1])}")
    first, final = min(t.steps[0] for t in traces), max(t.steps[-1] for t in traces)
    return f"{chart.title}, steps {first:g} to {final:g}: {'; '.join(parts)}"
