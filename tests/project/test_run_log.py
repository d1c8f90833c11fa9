"""Logs as mmengine writes them, read back as curves."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from sagecache.project.run_log import read_run_log


def write(work_dir: Path, name: str, *records: dict | str) -> None:
    file = work_dir / name / "vis_data" / "scalars.json"
    file.parent.mkdir(parents=True)
    file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))


def trained(step: int, **values) -> dict:
    return {**values, "time": 0.5, "iter": step, "step": step}


def validated(step: int, value: float) -> dict:
    return {"keypoints/AP": value, "time": 9.0, "step": step}


def points(curve) -> list[tuple[int, float]]:
    return list(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def test_a_run_is_read_with_its_validations(tmp_path):
    records = [trained(10, loss=3), trained(20, loss=2.0), validated(20, 0.3), trained(30, loss=1.0)]
    write(tmp_path, "20261121_220933", *records)
    log = read_run_log(tmp_path)
    assert log.started == datetime(2026, 11, 21, 22, 9, 33)
    assert log.curves.keys() == {"loss", "time", "keypoints/AP"}
    assert points(log.curves["loss"]) == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert points(log.curves["keypoints/AP"]) == [(20, 0.3)]
    assert set(log.curves["time"].values) == {0.5}, "validation has a clock of its own"
    assert log.curves["loss"].steps.dtype == np.int64 and log.curves["loss"].values.dtype == np.float64


def test_a_validation_that_names_no_step_is_of_the_last_one_trained(tmp_path):
    write(tmp_path, "a", trained(10, loss=3), validated(0, 0.1), trained(20, loss=2), validated(0, 0.2))
    assert points(read_run_log(tmp_path).curves["keypoints/AP"]) == [(10, 0.1), (20, 0.2)]


def test_a_resumed_run_is_one_curve_and_what_it_repeats_counts_once(tmp_path):
    first = [*(trained(10 * k, loss=k) for k in range(1, 6)), trained(55, loss=5.5), validated(55, 0.1)]
    write(tmp_path, "20260101_000000", *first)
    again = [validated(30, 0.7), *(trained(10 * k, loss=10 * k) for k in (4, 5, 6))]
    write(tmp_path, "20260102_000000", *again)
    log = read_run_log(tmp_path)
    assert points(log.curves["loss"]) == [(10, 1), (20, 2), (30, 3), (40, 40), (50, 50), (60, 60)]
    assert points(log.curves["keypoints/AP"]) == [(30, 0.7)], "what the killed run saw after 30 was undone"
    assert log.started == datetime(2026, 1, 1)


def test_a_fresh_run_stands_alone_in_the_folder_of_a_former_one(tmp_path):
    write(tmp_path, "20260101_000000", *(trained(k, loss=9) for k in range(1, 50)))
    write(tmp_path, "20260102_000000", *(trained(10 * k, loss=k) for k in range(1, 4)))
    write(tmp_path, "20260103_000000")  # killed before its first line
    log = read_run_log(tmp_path)
    assert points(log.curves["loss"]) == [(10, 1), (20, 2), (30, 3)]
    assert log.started == datetime(2026, 1, 2)


def test_one_line_is_a_run(tmp_path):
    write(tmp_path, "old", *(trained(10 * k, loss=9) for k in range(1, 5)))
    write(tmp_path, "young", trained(1, loss=2))
    log = read_run_log(tmp_path)
    assert points(log.curves["loss"]) == [(1, 2.0)] and log.started is None


def test_lines_that_a_kill_cut_are_passed_over_and_what_is_no_number_stays_one_gap(tmp_path):
    write(
        tmp_path, "a", '{"loss": NaN, "iter": 1}', '{"loss": Infinity, "iter": 2}', "[1]", '{"loss": 3, "it'
    )
    values = read_run_log(tmp_path).curves["loss"].values
    assert math.isnan(values[0]) and math.isinf(values[1]) and len(values) == 2


@pytest.mark.parametrize(
    "line",
    [
        b'{"iter": "x", "loss": 9}',
        b'{"iter": [1], "loss": 9}',
        b'{"iter": NaN, "loss": 9}',
        b'{"step": Infinity, "loss": 9}',
        b'{"iter": 1e300, "loss": 9}',
        b'{"iter": true, "loss": 9}',
        b'{"iter": null, "loss": 9}',
        b"5",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"iter": 2, "loss\xff": 9}',
        b'{"iter": 3, "loss": 1' + 400 * b"0" + b"}",
    ],
)
def test_a_damaged_line_is_passed_over_and_those_around_it_count(tmp_path, line):
    write(tmp_path, "a", trained(1, loss=3), trained(4, loss=2))
    file = tmp_path / "a" / "vis_data" / "scalars.json"
    first, second = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([first, line, second, b""]))
    curves = read_run_log(tmp_path).curves
    assert points(curves["loss"]) == [(1, 3.0), (4, 2.0)] and curves.keys() == {"loss", "time"}


def test_a_fresh_run_of_a_single_line_is_not_taken_for_a_resumed_one(tmp_path):
    write(tmp_path, "20260101_000000", *(trained(10 * k, loss=9) for k in range(1, 5)))
    write(tmp_path, "20260102_000000", trained(10, loss=2))
    assert points(read_run_log(tmp_path).curves["loss"]) == [(10, 2.0)]
    write(tmp_path, "20260103_000000", trained(20, loss=1))
    assert points(read_run_log(tmp_path).curves["loss"]) == [(10, 2.0), (20, 1.0)]


def test_a_folder_without_a_log_has_no_curves(tmp_path):
    assert read_run_log(tmp_path).curves == {} and read_run_log(tmp_path / "none").started is None
