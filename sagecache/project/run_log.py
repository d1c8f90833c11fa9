"""What a run logged, as curves by name: read from the ``vis_data/scalars.json`` that mmengine leaves.

Each start of a run has a folder of its own, and a fresh run leaves the folders of former ones where they
are: the folders are joined as the run went, and what came before it is left out.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PATTERN = "*/vis_data/scalars.json"
_PLACE = ("iter", "step", "epoch")  # of a record, rather than something measured
MAX_STEP = 2**53
_CLOCK = ("time", "data_time")  # logged by training and validation under one name: training's are kept


class Curve(NamedTuple):
    """steps (N,) int64, rising, and values (N,) float64, as logged: NaN and infinities included."""

    steps: np.ndarray
    values: np.ndarray


class RunLog(NamedTuple):
    """curves by name. started: when the run began, by the name of its folder; None where that is no time."""

    curves: dict[str, Curve]
    started: datetime | None


class _Record(NamedTuple):
    step: int
    trained: bool
    values: dict[str, float]


def read_run_log(work_dir: Path) -> RunLog:
    """All that the last run in work_dir logged, a resumed one since its start. Empty where there is none."""
    records: list[_Record] = []
    started = None
    for file in sorted(work_dir.glob(PATTERN)):
        found = _read(file)
        steps = sorted({one.step for one in found if one.trained})
        if _goes_on(records, steps):
            records = [one for one in records if one.step < steps[0]] + found
        elif found:
            records, started = found, _time(file.parents[1].name)
    return RunLog(_curves(records), started)


def _goes_on(before: list[_Record], steps: list[int]) -> bool:
    """A fresh run logs its first steps within one interval of its log; a resumed one begins later, and later
    than what it goes on from did: of a run that was cut off after a single line the interval isn't known.
    """
    interval = steps[1] - steps[0] if len(steps) > 1 else 1
    first = min((one.step for one in before if one.trained), default=0)
    return bool(before) and bool(steps) and steps[0] > max(interval, first)


def _read(file: Path) -> list[_Record]:
    """A validation is of the step that its record names, else (old logs say 0) of the last one trained."""
    records: list[_Record] = []
    last = 0
    for line in file.read_bytes().split(b"\n"):
        record = _parsed(line)
        if not record:
            continue
        trained = "iter" in record
        last = int(record.get("iter") or record.get("step") or last)
        skipped = _PLACE if trained else _PLACE + _CLOCK
        measured = {name: value for name, value in record.items() if name not in skipped}
        values = {name: float(value) for name, value in measured.items() if _number(value)}
        records.append(_Record(last, trained, values))
    return records


def _parsed(line: bytes) -> dict[str, Any]:
    """{} for a line that a kill has cut or damaged: no JSON object, or one that is of no step."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    steps = [record[name] for name in ("iter", "step") if name in record]
    return record if all(_number(one) and 0 <= one < MAX_STEP for one in steps) else {}


def _number(value: object) -> bool:
    """Whether it is one that a float can hold; NaN and infinities are."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023
    return isinstance(value, float)


def _curves(records: list[_Record]) -> dict[str, Curve]:
    """Of what was logged twice for a step the later value counts."""
    points: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.values.items():
            points.setdefault(name, {})[record.step] = value
    return {
        name: Curve(np.array(sorted(of), dtype=np.int64), np.array([of[step] for step in sorted(of)]))
        for name, of in points.items()
    }


def _time(name: str) -> datetime | None:
    try:
        return datetime.strptime(name, "%Y%m%d_%H%M%S")
    except ValueError:
        return None
