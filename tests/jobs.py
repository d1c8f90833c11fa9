"""Jobs for processes of their own: light, importable, and told by files what to do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from sagecache.errors import SagecacheError


def write(folder: Path, name: str, report) -> None:
    """Leaves when it began and ended, and the threads it was given."""
    begun = time.time()
    report(1, 2, "half")
    print(f"{name} says this")
    text = f"{os.environ['OMP_NUM_THREADS']} {os.environ.get('CUDA_VISIBLE_DEVICES')} {begun} {time.time()}"
    (folder / name).write_text(text)


def refuse(report) -> None:
    raise SagecacheError("no labels", fix="Draw some.")


def break_down(report) -> None:
    raise ZeroDivisionError("by nothing")


def die(report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(folder: Path, report) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)


def run_until_stopped(folder: Path) -> None:
    """In a process of its own: two jobs, of which the second would begin after the first."""
    from sagecache.cli.processes import Job, Machine, run_jobs

    jobs = [
        Job("sleeper", sleep, (folder,), folder / "log"),
        Job("next", refuse, (), folder / "log", "sleeper"),
    ]
    run_jobs("test", jobs, Machine(1, 1))
