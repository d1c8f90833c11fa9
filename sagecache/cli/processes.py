"""Several jobs side by side, a process each: which may start, how far each is, and how each ended.

A job that fails does not stop the others. Stopped by hand, or killed, this process takes its children along.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from sagecache.children import die_with_parent, environment, thread_variables
from sagecache.cli.output import note
from sagecache.errors import SagecacheError

DEVICES = "CUDA_VISIBLE_DEVICES"
PLAIN_EVERY = 20.0  # seconds between lines where stderr is no terminal


@dataclass(frozen=True)
class Job:
    """function(*arguments, report) in a process of its own; both are pickled.

    after: the job that must have ended well before. log: where the process writes what it says.
    """

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    log: Path
    after: str | None = None


@dataclass
class _Child:
    job: Job
    process: multiprocessing.Process
    connection: Connection
    slot: int


@dataclass(frozen=True)
class Machine:
    """processes at a time, threads of each; devices: GPUs, dealt out in turn."""

    processes: int
    threads: int
    devices: tuple[str, ...] = ()

    @classmethod
    def whole(cls, processes: int | None, devices: Sequence[str] = ()) -> Machine:
        """All of this machine: a process a physical core, or a GPU where there are any."""
        cores = physical_cores()
        count = processes or len(devices) or cores
        return cls(count, max(1, cores // count), tuple(devices))

    def environment(self, slot: int) -> dict[str, str]:
        """For a child, set before it imports torch."""
        values = thread_variables(self.threads)
        if self.devices:
            values[DEVICES] = self.devices[slot % len(self.devices)]
        return values


def physical_cores() -> int:
    """Cores that this process may use, hyperthreads counted once."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in usable:
        page = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(page.read_text() if page.is_file() else str(cpu))
    return max(1, len(siblings))


def run_jobs(title: str, jobs: Sequence[Job], machine: Machine) -> dict[str, str]:
    """Run all; returns what was wrong with those that have no result, by name.

    Jobs start in order, each as soon as a process is free and the job it waits for has ended well. Raises
    KeyboardInterrupt once the children are stopped.
    """
    waiting, running, failed, done = list(jobs), {}, {}, set()
    with _display(title, len(jobs)) as show:
        try:
            while waiting or running:
                _drop_hopeless(waiting, failed, show)
                while (job := _next(waiting, jobs, done)) and len(running) < machine.processes:
                    waiting.remove(job)
                    slot = min(set(range(machine.processes)) - {child.slot for child in running.values()})
                    child = _start(job, slot, machine)
                    running[child.connection] = child
                for connection in wait(list(running), timeout=0.5):
                    child = running[connection]
                    told = _receive(child)
                    if told[0] == "progress":
                        show("progress", child.slot, child.job.name, *told[1:])
                        continue
                    del running[connection]
                    if told[0] == "done":
                        done.add(child.job.name)
                    else:
                        failed[child.job.name] = told[1]
                    show(told[0], child.slot, child.job.name, *told[1:])
        finally:
            _stop([child.process for child in running.values()])
    return failed


def _next(waiting: Sequence[Job], jobs: Sequence[Job], done: set[str]) -> Job | None:
    """The first job that may start; a job that waits for none of these jobs waits for nothing."""
    names = {job.name for job in jobs}
    return next((job for job in waiting if job.after not in names or job.after in done), None)


def _drop_hopeless(waiting: list[Job], failed: dict[str, str], show: Callable[..., None]) -> None:
    for job in list(waiting):
        if job.after in failed:
            waiting.remove(job)
            failed[job.name] = f"not begun: {job.after} failed"
            show("failed", -1, job.name, failed[job.name])


# -- one child ---------------------------------------------------------------------------------------


def _start(job: Job, slot: int, machine: Machine) -> _Child:
    context = multiprocessing.get_context("spawn")  # torch is imported in the child, with its variables set
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, job), name=job.name)
    with environment(machine.environment(slot)):
        process.start()
    theirs.close()
    return _Child(job, process, ours, slot)


def _receive(child: _Child) -> tuple:
    """('progress', done, total, message), ('done',) or ('failed', why)."""
    try:
        told = child.connection.recv()
    except EOFError:
        child.process.join()
        code = child.process.exitcode
        how = f"killed by signal {-code}" if code and code < 0 else f"exit code {code}"
        told = ("failed", f"its process ended early ({how}); see {child.job.log}")
    if told[0] != "progress":
        child.process.join()
        child.connection.close()
    return told


def _stop(processes: Sequence[multiprocessing.Process]) -> None:
    for process in processes:
        process.terminate()
    until = time.monotonic() + 5
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(connection: Connection, job: Job) -> None:
    """In the child. Ctrl-C is the parent's to hear; where the parent dies, so does this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", buffering=1) as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        try:
            job.function(*job.arguments, lambda *told: connection.send(("progress", *told)))
            connection.send(("done",))
        except SagecacheError as error:
            connection.send(("failed", str(error)))
        except BaseException as error:
            traceback.print_exc()
            connection.send(("failed", f"{type(error).__name__}: {error}; see {job.log}"))


# -- what is shown -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _display(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Yield show(event, slot, name, *told); bars on a terminal, else lines."""
    if sys.stderr.isatty():
        with _bars(title, total) as show:
            yield show
    else:
        yield _lines(title, total)


@contextlib.contextmanager
def _bars(title: str, total: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[told]}"), console=Console(stderr=True)) as bars:
        overall, tasks = bars.add_task(title, total=total, told=""), {}

        def show(event: str, slot: int, name: str, *told: Any) -> None:
            if event == "progress":
                if name not in tasks:
                    tasks[name] = bars.add_task(escape(name), total=None, told="")
                done, count, message = (*told, "")[:3]
                bars.update(tasks[name], completed=done, total=count or None, told=escape(message[:40]))
                return
            bars.advance(overall)
            if name in tasks:
                bars.remove_task(tasks.pop(name))
            bars.console.print(f"{escape(name)}: {escape(told[0]) if told else 'done'}", highlight=False)

        yield show


def _lines(title: str, total: int) -> Callable[..., None]:
    now: dict[str, str] = {}
    state = dict(ended=0, last=time.monotonic())

    def show(event: str, slot: int, name: str, *told: Any) -> None:
        if event == "progress":
            now[name] = f"{name} {told[0]}/{told[1]}" if told[1] else name
            if time.monotonic() - state["last"] >= PLAIN_EVERY:
                state["last"] = time.monotonic()
                note(f"{title} {state['ended']}/{total}: {', '.join(now.values())}")
            return
        now.pop(name, None)
        state["ended"] += 1
        note(f"{title} {state['ended']}/{total}: {name} {told[0] if told else 'done'}")

    return show
