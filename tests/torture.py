"""Kill precompute at random moments, again and again; then every store must be the undisturbed one.

    make torture        200 kills of local runs, 20 of runs on a Ray cluster (of drivers and of workers)

Runs of toy networks over small images, on a real disk: alone, as ranks that share a store, as two runs at
once on one store, and on a store that grows. Most moments are drawn from the time in which an undisturbed run
makes its store, and only kills that leave a store unfinished count. Exit code 1 where one byte differs, or
where too few kills hit.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from toy_store import tree
from toy_teacher import ToyDetector, ToyTeacher, detect_job, geo_job, make_instances, write_images

from sagecache.precompute.jobs import RunOptions
from sagecache.precompute.runner import run_detect, run_geo
from sagecache.store import StoreReader

PAUSE, RAY_PAUSE = 0.015, 0.1  # seconds a batch: long enough to die in
SHARDS, RANKS = 12, 3
DEATHS = 6  # of one store, at most
ANYWHERE = 0.1  # the share of moments drawn from the whole run
ATTEMPTS = 4  # runs for each kill that is asked for, at most


@dataclass
class Tally:
    """What the torture met. kills: those that left a store unfinished; late: after it was complete."""

    kills: int = 0
    late: int = 0
    attempts: int = 0
    trials: int = 0
    leftovers: int = 0
    wrong: list[str] = field(default_factory=list)

    def look(self, folder: Path) -> None:
        """Just after a kill."""
        self.leftovers += len(list(folder.rglob(".*.sagecache-tmp")))
        if _unfinished(folder):
            self.kills += 1
        else:
            self.late += 1


def _unfinished(folder: Path) -> bool:
    """Whether the store was begun and is not complete."""
    return (folder / "geo").exists() and not (folder / "geo" / "complete.json").exists()


def _committed(folder: Path) -> int:
    """Shards, by the lines of the journals."""
    lines = 0
    for path in (folder / "geo").glob("journal*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # just merged by a run that goes on
            lines += path.read_bytes().count(b"\n")
    return lines


def _nearly_done(folder: Path) -> bool:
    """Whether hardly a moment is left to die in."""
    return (folder / "geo" / "complete.json").exists() or SHARDS - _committed(folder) < 2


@dataclass
class Phases:
    """Seconds of an undisturbed run: to the first shard that is committed, to complete.json, to the end."""

    first: float
    complete: float
    end: float

    @classmethod
    def watch(cls, folder: Path, alive: Callable[[], bool]) -> Phases:
        """Of a run that begins now and makes its store in folder."""
        began, seen = time.perf_counter(), {}
        while alive():
            now = time.perf_counter() - began
            if _committed(folder):
                seen.setdefault("first", now)
            if (folder / "geo" / "complete.json").exists():
                seen.setdefault("complete", now)
            time.sleep(0.001)
        return cls(**seen, end=time.perf_counter() - began)

    def draw(self, rng: random.Random, folder: Path, share: float = 1.0) -> float:
        """A moment to kill. share: of what the store lacks, what this run makes."""
        if rng.random() < ANYWHERE:
            return rng.uniform(0, self.end)
        shard = (self.complete - self.first) / (SHARDS - 1)
        begin = self.first - shard
        return rng.uniform(0.7 * begin, begin + shard * max(1, SHARDS - _committed(folder)) * share)


def work(
    images, folder: Path, pause: float, rank: int = 0, world_size: int = 1, engine: str = "local"
) -> None:
    options = RunOptions(rank=rank, world_size=world_size, engine=engine)
    run_geo(geo_job(folder / "geo", make_instances(images)), ToyTeacher(pause=pause), options)
    run_detect(detect_job(folder, images), ToyDetector(pause=pause), options)


def start(*arguments, **options) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_quiet, args=arguments, kwargs=options)
    process.start()
    return process


def _quiet(*arguments, **options) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    work(*arguments, **options)


def alone(images, folder: Path, rng: random.Random, phases: Phases, tally: Tally) -> None:
    _kill_later(start(images, folder, PAUSE), phases.draw(rng, folder), folder, tally)


def ranks(images, folder: Path, rng: random.Random, phases: Phases, tally: Tally) -> None:
    """Several at once; one of them dies, in each run of a store the same: the others have nothing left."""
    moment = phases.draw(rng, folder, 1 / RANKS if not (folder / "geo").exists() else 1.0)
    running = [start(images, folder, PAUSE, rank=rank, world_size=RANKS) for rank in range(RANKS)]
    _kill_later(running.pop(tally.trials % RANKS), moment, folder, tally)
    for process in running:
        process.join(60)


def two_at_once(images, folder: Path, rng: random.Random, phases: Phases, tally: Tally) -> None:
    """The second waits for the first, which dies; then the second dies too."""
    moment = phases.draw(rng, folder)
    first, second = start(images, folder, PAUSE), start(images, folder, PAUSE)
    _kill_later(first, moment, folder, tally)
    _kill_later(second, phases.draw(rng, folder), folder, tally)


def growing(images, folder: Path, rng: random.Random, phases: Phases, tally: Tally) -> None:
    """Of a split that has fewer images at first."""
    if not (folder / "geo" / "complete.json").exists() and not (folder / "grown").exists():
        work(images[: len(images) // 2], folder, 0)
        for path in folder.glob("detections*"):
            path.unlink()
        (folder / "grown").touch()
    _kill_later(start(images, folder, PAUSE), phases.draw(rng, folder), folder, tally)


def _kill_later(process, moment: float, folder: Path, tally: Tally) -> None:
    process.join(moment)
    if process.is_alive():
        process.kill()
        process.join()
        tally.look(folder)


def torture(kinds: list[Callable], images, base: Path, kills: int, seed: int) -> Tally:
    """Trials of each kind in turn until so many kills."""
    rng, tally = random.Random(seed), Tally()
    timed = []
    for k in range(3):
        folder = base / f"timed-{k}"
        timed.append(Phases.watch(folder, start(images, folder, PAUSE).is_alive))
    phases = min(timed, key=lambda one: one.complete)  # the least disturbed
    wanted = {kind: tree(_undisturbed(kind, images, base / f"whole-{kind.__name__}")) for kind in kinds}
    while tally.kills < kills and tally.attempts < ATTEMPTS * kills:
        kind, folder = kinds[tally.trials % len(kinds)], base / f"trial-{tally.trials}"
        folder.mkdir()
        target = min(kills, tally.kills + rng.randint(1, DEATHS))
        for _ in range(DEATHS):
            if tally.kills >= target:
                break
            tally.attempts += 1
            kind(images, folder, rng, phases, tally)
            if _nearly_done(folder):
                break
        work(images, folder, 0)
        if tree(folder) != wanted[kind] or StoreReader(folder / "geo").verify():
            tally.wrong.append(f"{kind.__name__}, trial {tally.trials}, seed {seed}")
        tally.trials += 1
    return tally


def _undisturbed(kind: Callable, images, folder: Path) -> Path:
    folder.mkdir()
    if kind is growing:
        work(images[: len(images) // 2], folder, 0)
        for path in folder.glob("detections*"):
            path.unlink()
        (folder / "grown").touch()
    work(images, folder, 0)
    return folder


# ----------------------------------------------------------------------------------------------------- ray
def torture_ray(images, base: Path, kills: int, seed: int) -> Tally:
    """Drivers and workers of a cluster on this machine; the cluster itself lives on."""
    import ray

    tests = Path(__file__).parent
    os.environ["SAGECACHE_TORTURE"] = str(os.getpid())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent)])
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = context.address_info["address"]
    rng, tally, wanted = random.Random(seed), Tally(), None
    try:
        wanted = tree(_undisturbed(ray_run, images, base / "whole-ray"))
        with _driver(images, base / "timed-ray") as driver:
            phases = Phases.watch(base / "timed-ray", lambda: driver.poll() is None)
        while tally.kills < kills and tally.attempts < ATTEMPTS * kills:
            folder = base / f"ray-{tally.trials}"
            folder.mkdir()
            for _ in range(DEATHS):
                if tally.kills >= kills:
                    break
                tally.attempts += 1
                ray_run(images, folder, rng, phases, tally)
                if _nearly_done(folder):
                    break
            work(images, folder, 0)
            if tree(folder) != wanted or StoreReader(folder / "geo").verify():
                tally.wrong.append(f"ray, trial {tally.trials}, seed {seed}")
            tally.trials += 1
    finally:
        ray.shutdown()
    return tally


def _driver(images, folder: Path) -> subprocess.Popen:
    """One that is connected: what comes now is the work."""
    command = [sys.executable, __file__, "--driver", str(images[0][1].parent), str(folder)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    driver.stdout.readline()
    return driver


def ray_run(images, folder: Path, rng: random.Random, phases: Phases, tally: Tally) -> None:
    """One driver; it dies, or the process of one of its workers does and the driver goes on without."""
    moment = phases.draw(rng, folder)
    with _driver(images, folder) as driver:
        time.sleep(moment)
        workers = _workers_of_ray()
        if workers and rng.random() < 0.5:
            os.kill(rng.choice(workers), signal.SIGKILL)
            tally.look(folder)
            driver.wait(120)
        elif driver.poll() is None:
            driver.kill()
            tally.look(folder)


def _workers_of_ray() -> list[int]:
    """Those of our own cluster."""
    found, mark = [], f"SAGECACHE_TORTURE={os.environ['SAGECACHE_TORTURE']}".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            ours = mark in (path.parent / "environ").read_bytes()
            if ours and path.read_bytes().startswith(b"ray::_Worker"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def drive(images: Path, folder: Path) -> None:
    """A driver to be killed."""
    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    print("connected", flush=True)
    written = [(int(path.stem), path) for path in sorted(images.glob("*.png"))]
    work(written, folder, RAY_PAUSE, engine="ray")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ray-kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--driver", nargs=2, type=Path, metavar=("IMAGES", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver:
        drive(*options.driver)
        return 0
    wrong = []
    with tempfile.TemporaryDirectory() as base:
        images = write_images(Path(base) / "images", SHARDS * 2)
        images[4][1].write_bytes(b"not an image")
        runs = {"local": (torture, [alone, ranks, two_at_once, growing]), "ray": (torture_ray,)}
        for name, kills in (("local", options.kills), ("ray", options.ray_kills)):
            if not kills:
                continue
            began, (run, *kinds) = time.perf_counter(), runs[name]
            tally = run(*kinds, images, Path(base), kills, options.seed)
            wrong += [f"differs: {text}" for text in tally.wrong]
            if tally.kills < kills:
                wrong.append(f"{name}: only {tally.kills} of {kills} kills left a store unfinished")
            print(
                f"{name}: {tally.kills} kills left one of {tally.trials} stores unfinished, {tally.late} "
                f"came later; {tally.leftovers} half-written files; {tally.trials - len(tally.wrong)} of "
                f"{tally.trials} stores are the undisturbed one, byte for byte "
                f"({time.perf_counter() - began:.0f} s)",
                flush=True,
            )
    for text in wrong:
        print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
