"""Lines land where their values say, and odd values cost a gap and no chart."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.visualization.charts import MAX_POINTS, TINY, Chart, Line, draw_chart, nice_ticks, number


def drawn(values, steps=None, **options):
    steps = np.arange(1, len(values) + 1) * 10 if steps is None else steps
    return draw_chart(Chart("title", [Line("a", steps, values)], **options))


def path_points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def inverse(ticks, pixel: float, log: bool = False) -> float:
    """The value at a pixel, read off two ticks as a person would."""
    values = [float(t.text.replace("−", "-")) for t in ticks]
    values = np.log10(values) if log else values
    slope = (values[-1] - values[0]) / (ticks[-1].at - ticks[0].at)
    value = values[0] + (pixel - ticks[0].at) * slope
    return 10**value if log else value


@pytest.mark.parametrize("log", [False, True])
def test_each_point_lies_where_the_ticks_say(log):
    values = [0.2, 0.9, 0.05, 0.6]
    chart = drawn(values, log=log)
    for (x, y), value, step in zip(path_points(chart.traces[0].path), values, (10, 20, 30, 40), strict=True):
        assert inverse(chart.x_ticks, x) == pytest.approx(step, abs=0.3)
        assert inverse(chart.y_ticks, y, log) == pytest.approx(value, rel=0.03)
    assert chart.traces[0].values == values and chart.traces[0].steps == [10, 20, 30, 40]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=30),
    st.booleans(),
    st.sampled_from([None, 0.0]),
)
def test_whatever_was_logged_stays_within_the_axes(values, log, low):
    values = [v if not math.isfinite(v) else math.copysign(min(abs(v), 1e30), v) for v in values]
    chart = drawn(values, log=log, low=low)
    shown = [v for v in values if math.isfinite(v) and (v >= TINY or not log)]
    if not shown:
        assert chart is None
        return
    points = path_points(chart.traces[0].path)
    assert len(points) == len(shown)
    assert all(chart.left <= x <= chart.right for x, _ in points)
    assert all(chart.top - 0.1 <= y <= chart.bottom + 0.1 for _, y in points)
    assert "nan" not in chart.traces[0].path and "inf" not in chart.traces[0].path


def test_gaps_split_the_path_and_a_lonely_point_is_a_dot():
    chart = drawn([1, 2, np.nan, 3, np.inf, *range(20)])
    assert chart.traces[0].path.count("M") == 3
    assert len(chart.traces[0].dots) == 1, "the point between two gaps"
    assert chart.traces[0].values[2] is None and chart.traces[0].last == "19"
    single = drawn([0.5])
    assert len(single.traces[0].dots) == 1 and single.x_ticks


def test_a_chart_without_a_value_is_none():
    assert drawn([np.nan, np.inf]) is None and draw_chart(Chart("t", [])) is None
    assert drawn([0.0, -1.0], log=True) is None


def test_long_curves_are_averaged_not_thinned():
    values = np.tile([0.0, 1.0], 5000)
    trace = drawn(values, low=0.0).traces[0]
    assert len(trace.values) == MAX_POINTS
    assert np.ptp(trace.values) < 0.1 and np.mean(trace.values) == pytest.approx(0.5, abs=0.01)
    values[17] = np.nan
    assert None not in drawn(values).traces[0].values


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_within(low, span):
    ticks = nice_ticks(low, low + span)
    assert 2 <= len(ticks) <= 7
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3, atol=1e-9)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5)) < 0.02
    assert ticks[0] >= low - 1e-6 * span and ticks[-1] <= low + span * (1 + 1e-6)


def test_the_axis_reaches_what_it_was_asked_for_and_further_for_the_data():
    chart = drawn([0.4, 0.5], low=0.0, high=1.0)
    assert (chart.y_ticks[0].text, chart.y_ticks[-1].text) == ("0", "1")
    assert float(drawn([0.4, 1.5], low=0.0, high=1.0).y_ticks[-1].text) > 1


def test_marks_beyond_the_run_are_left_out():
    marks = [(20, "here"), (900, "later")]
    assert [m.text for m in drawn([1, 2, 3], marks=marks).marks] == ["here"]


def test_a_blind_reader_is_told_names_ends_and_steps():
    assert drawn([0.5, 0.25]).summary == "title, steps 10 to 20: a from 0.5 to 0.25"


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (0.5, "0.5"), (1234.5, "1234"), (123456, "1.23e5"), (4.5e-5, "4.50e-5"), (-0.25, "-0.25")]
    + [(None, "–"), (math.nan, "–"), (math.inf, "–")],
)
def test_number(value, text):
    assert number(value) == text
