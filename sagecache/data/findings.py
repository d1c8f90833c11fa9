"""What a check of the data found: one record a finding, counted and folded for tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

LEVELS = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """error: training or evaluation would fail or be wrong. warning: look at it. note: good to know.

    code names the check (stable, for scripts); record says where in the split, None for the split as a whole.
    """

    level: str
    code: str
    split: str
    message: str
    record: str | None = None
    fix: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        return asdict(self)


class FindingList:
    """Findings of one split, in the order in which they are made."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.found: list[Finding] = []

    def error(self, code: str, message: str, record: str | None = None, fix: str | None = None) -> None:
        self.found.append(Finding("error", code, self.split, message, record, fix))

    def warning(self, code: str, message: str, record: str | None = None, fix: str | None = None) -> None:
        self.found.append(Finding("warning", code, self.split, message, record, fix))

    def note(self, code: str, message: str, record: str | None = None, fix: str | None = None) -> None:
        self.found.append(Finding("note", code, self.split, message, record, fix))


def count_by_code(findings: Iterable[Finding]) -> dict[str, dict[str, int]]:
    """{level: {code: how many}}, every level present."""
    counts: dict[str, Counter] = {level: Counter() for level in LEVELS}
    for finding in findings:
        counts[finding.level][finding.code] += 1
    return {level: dict(sorted(codes.items())) for level, codes in counts.items()}


def fold(findings: Sequence[Finding], most: int = 3) -> list[Finding]:
    """For reading: errors first, and of each split and code the first few, then how many more there are."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.split, finding.code), []).append(finding)
    folded = []
    for (level, split, code), group in sorted(groups.items(), key=lambda item: LEVELS.index(item[0][0])):
        folded += group[:most]
        if len(group) > most:
            folded.append(Finding(level, code, split, f"and {len(group) - most:,} more like this"))
    return folded


def some(values: Sequence, most: int = 5) -> str:
    """'1, 2, 3' or '1, 2, 3, … (20,000 in all)'."""
    text = ", ".join(str(value) for value in values[:most])
    return text if len(values) <= most else f"{text}, … ({len(values):,} in all)"
