"""Sections -> RESULTS.md, results.json and charts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks import charts
from benchmarks.results import Goal, Section, Table, short


def write(
    folder: Path, sections: Mapping[str, Section], facts: Mapping, seconds: Mapping, quick: bool = False
) -> str:
    """Write all three below folder; returns the text of RESULTS.md."""
    sound = {name: one.values for name, one in sections.items() if not one.failed}
    pictures = charts.draw(folder / "charts", sound)
    text = render(sections, facts, seconds, pictures, quick)
    (folder / "RESULTS.md").write_text(text, encoding="utf-8")
    content = {
        "machine": dict(facts),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "goals": [
            {"what": goal.what, "limit": goal.limit, "measured": goal.measured, "reached": goal.reached}
            for one in sections.values()
            for goal in one.goals
        ],
        "values": {name: one.values for name, one in sections.items()},
    }
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return text


def render(
    sections: Mapping[str, Section],
    facts: Mapping,
    seconds: Mapping,
    pictures: Mapping[str, str],
    quick: bool,
) -> str:
    parts = ["# Benchmarks", _preface(facts, seconds, quick)]
    goals = [goal for one in sections.values() for goal in one.goals]
    parts += ["## Figures to reach", _markdown(_verdicts(goals))]
    for name, section in sections.items():
        parts += [f"## {section.title}", section.text]
        for table in section.tables:
            parts += [f"### {table.title}", _markdown(table)]
            if table.note:
                parts.append(table.note)
        if name in pictures:
            parts.append(f"![{section.title}]({pictures[name]})")
    return "\n\n".join(parts) + "\n"


def _preface(facts: Mapping, seconds: Mapping, quick: bool) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    lines = [
        "Made by `make bench-quick`: rough." if quick else "Made by `make bench`; not edited by hand.",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory GiB']} GiB; {facts['system']}; "
        f"Python {facts['python']}; {packages}.",
        f"Commit {facts['commit']}, {facts['date']}, {facts['minutes']} minutes "
        f"({', '.join(f'{name} {value:.0f} s' for name, value in seconds.items())}).",
        "All that is compared took turns in one run, in rounds of random order. A figure is a median over "
        "the rounds, a ratio the median of the rounds' ratios. CPU: processor time of the whole process.",
    ]
    return "\n\n".join(lines)


def _verdicts(goals: list[Goal]) -> Table:
    rows = [
        [
            goal.what,
            f"{'at most' if goal.at_most else 'at least'} {short(goal.limit)} {goal.unit}",
            f"{short(goal.measured)} {goal.unit}",
            "yes" if goal.reached else "**no**",
        ]
        for goal in goals
    ]
    return Table("", ["what", "goal", "measured", "reached"], rows)


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
