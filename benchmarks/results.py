"""What a benchmark hands back: tables for people, goals with their verdicts, values for charts and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Rows of text under columns. note: what a reader must know to judge it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """A figure to reach. limit: the most (at_most) or the least that is wanted; measured: what came out."""

    what: str
    limit: float
    measured: float
    at_most: bool
    unit: str = "x"

    @property
    def reached(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass(frozen=True)
class Section:
    """One benchmark's result. values: plain JSON, kept in results.json."""

    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    values: dict = field(default_factory=dict)
    failed: bool = False


def at_most(what: str, limit: float, measured: float, unit: str = "x") -> Goal:
    return Goal(what, limit, measured, True, unit)


def at_least(what: str, limit: float, measured: float, unit: str = "x") -> Goal:
    return Goal(what, limit, measured, False, unit)


def short(value: float) -> str:
    """Three figures that matter, without an exponent where there is a plain way to say it."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    text = f"{value:.3g}"
    return f"{value:,.0f}" if "e" in text or abs(value) >= 1000 else text
