"""One HTML page about a run, in one file that asks no network for anything: values in, text out.

Knows no training: what is told, and in which words, comes with the `Page`. The page works without its
script, which adds reading off charts and sorting of tables.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sagecache.visualization.charts import Chart, draw_chart, number
from sagecache.visualization.overlays import FateStyle, Overlay, all_styles

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Fact:
    """A figure with its name; hint: what it is measured with."""

    label: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """A column of shares or numbers, None where nothing is known. bar: shares are drawn as bars too."""

    title: str
    hint: str
    values: Sequence[float | None]
    share: bool = True


@dataclass(frozen=True)
class Table:
    """names (N,): the first column, in the order in which it starts."""

    first: str
    names: Sequence[str]
    columns: Sequence[Column]


@dataclass(frozen=True)
class FateRow:
    """A reason and what it did over all persons: joints, their share, and how many of them lie right."""

    style: FateStyle
    joints: int
    share: float
    right: float | None = None


@dataclass(frozen=True)
class Bar:
    """A joint of one person: confidence in [0, 1], error in diagonals of the box, None where not known."""

    joint: str
    style: FateStyle
    confidence: float
    error: float | None = None


@dataclass(frozen=True)
class Card:
    """One person: its views, what was said of each joint, and what each filter did to how many (counts)."""

    title: str
    facts: Sequence[Fact]
    views: Sequence[Overlay]
    bars: Sequence[Bar]
    counts: Sequence[tuple[FateStyle, int]]

    @property
    def measured(self) -> bool:
        """Whether any joint has an error."""
        return any(bar.error is not None for bar in self.bars)


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Page:
    """Everything on the page, from top to bottom; what is empty is left out.

    figures: the large ones on top. details: name and value. notes: what a reader must know first. terms:
    name, weight, options. gallery_text: what was looked at.
    """

    title: str
    subtitle: str
    command: str
    figures: Sequence[Fact] = ()
    notes: Sequence[str] = ()
    details: Sequence[Fact] = ()
    terms: Sequence[tuple[str, str, str]] = ()
    charts: Sequence[Chart] = ()
    more_charts: Sequence[Chart] = ()
    joints: Table | None = None
    joints_text: str = ""
    gallery_text: str = ""
    fates: Sequence[FateRow] = ()
    sections: Sequence[Section] = field(default=())
    footer: str = ""


def render(page: Page) -> str:
    """The page as HTML. Text from outside is escaped wherever it stands."""
    charts, more = ([d for d in map(draw_chart, these) if d] for these in (page.charts, page.more_charts))
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(page=page, charts=charts, more_charts=more, styles=all_styles())
    )


def percent(value: float | None, digits: int = 0) -> str:
    """A share in percent; an en dash for nothing."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "known": _known}
    return environment


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
