"""Jobs side by side: order, what a failure stops and what not, and that no child outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import jobs
import pytest

from sagecache.cli import processes
from sagecache.cli.processes import Job, Machine, physical_cores, run_jobs


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_fails_stops_only_what_waits_for_it(tmp_path, capsys):
    log = tmp_path / "logs" / "log"
    planned = [
        Job("refused", jobs.refuse, (), log),
        Job("hopeless", jobs.write, (tmp_path, "hopeless"), log, after="refused"),
        Job("more hopeless", jobs.write, (tmp_path, "hopeless"), log, after="hopeless"),
        Job("killed", jobs.die, (), log),
        Job("broken", jobs.break_down, (), log),
        Job("first", jobs.write, (tmp_path, "first"), log, after="what stands already"),
        Job("second", jobs.write, (tmp_path, "second"), log, after="first"),
    ]
    before = dict(os.environ)
    failed = run_jobs("test", planned, Machine(2, 3, ("5",)))
    assert failed == {
        "refused": "no labels. Draw some.",
        "hopeless": "not begun: refused failed",
        "more hopeless": "not begun: hopeless failed",
        "killed": f"its process ended early (killed by signal 9); see {log}",
        "broken": f"ZeroDivisionError: by nothing; see {log}",
    }
    assert not (tmp_path / "hopeless").exists() and dict(os.environ) == before
    first, second = ((tmp_path / name).read_text().split() for name in ("first", "second"))
    assert first[:2] == second[:2] == ["3", "5"]  # threads and device, set before the child began
    assert float(second[2]) > float(first[3])
    said = log.read_text()
    assert "first says this" in said and "ZeroDivisionError: by nothing" in said and "Draw some" not in said
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and lines[-1].startswith("test 7/7: ") and "test 7/7: second done" in lines


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_its_parent(tmp_path, how):
    parent = multiprocessing.get_context("spawn").Process(target=jobs.run_until_stopped, args=(tmp_path,))
    parent.start()
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    assert alive(child)
    os.kill(parent.pid, how)
    parent.join(20)
    assert parent.exitcode not in (None, 0)
    wait_until(lambda: not alive(child))


def test_cores_are_divided_among_processes(monkeypatch):
    monkeypatch.setattr(processes, "physical_cores", lambda: 8)
    assert Machine.whole(None) == Machine(8, 1)
    assert Machine.whole(3) == Machine(3, 2)
    assert Machine.whole(16) == Machine(16, 1)
    assert Machine.whole(None, ["0", "1"]) == Machine(2, 4, ("0", "1"))
    environment = Machine(4, 2, ("0", "1")).environment(3)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1" and environment["OMP_NUM_THREADS"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in Machine(1, 1).environment(0)


def test_a_core_counts_once(monkeypatch):
    pages = {0: "0,2\n", 1: "1,3\n", 2: "0,2\n", 3: "1,3\n"}
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(processes.Path, "is_file", lambda self: True)
    monkeypatch.setattr(
        processes.Path, "read_text", lambda self: pages[int(self.parts[5].removeprefix("cpu"))]
    )
    assert physical_cores() == 2
