"""kill -9 at any moment, then the same run again: the files are those of a run that nobody disturbed."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from toy_store import memory_folder, python, tree
from toy_teacher import ToyDetector, ToyTeacher, detect_job, geo_job, make_instances, write_images

from sagecache.precompute.runner import run_detect, run_geo
from sagecache.store import StoreReader

SCRIPT = Path(__file__).with_name("kill_me.py")


def work(images, out, pause):
    run_geo(geo_job(out / "geo", make_instances(images)), ToyTeacher(pause=pause))
    run_detect(detect_job(out, images), ToyDetector(pause=pause))


def die_at(call: int, *arguments) -> None:
    """Work, and be killed just before the call-th fsync or rename."""
    count = 0

    def counted(function):
        def wrapper(*args):
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return wrapper

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    work(*arguments)


def fork(function, *arguments) -> multiprocessing.Process:
    """A process of its own, without the seconds that importing torch anew would take."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


@pytest.fixture
def folders():
    with memory_folder() as base:
        images = write_images(Path(base) / "images", 9)
        images[2][1].write_bytes(b"not an image")
        work(images, Path(base) / "whole", 0)
        yield images, Path(base)


def test_death_before_any_write_becomes_durable(folders):
    """The run dies at its first sync, the next at its second, and so on until one comes through."""
    images, base = folders
    deaths = 0
    for call in range(1, 2000):
        process = fork(die_at, call, images, base / "killed", 0)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
    assert deaths > 8
    assert tree(base / "killed") == tree(base / "whole")


def test_death_at_random_moments(folders):
    images, base = folders
    rng, deaths = random.Random(5), 0
    began = time.perf_counter()
    work(images, base / "timed", 0.005)
    whole = time.perf_counter() - began
    for attempt in range(60):
        process = fork(work, images, base / "killed", 0.005)
        if attempt < 12:
            process.join(rng.uniform(0.02, 0.6) * whole)
            process.kill()
        process.join(60)
        if process.exitcode == 0:
            break
        deaths += 1
    assert deaths >= 1  # how many there can be depends on the load of the machine
    assert tree(base / "killed") == tree(base / "whole")
    assert StoreReader(base / "killed" / "geo").verify() == []


def test_a_killed_command_run_again_gives_the_undisturbed_files(tmp_path):
    """The same with a process of its own from its first line, on a real disk."""
    images = tmp_path / "images"
    with python(SCRIPT, images, tmp_path / "killed", "0.05") as process:
        assert process.stdout.readline() == "started\n"
        while not list(tmp_path.glob("killed/geo/journal-*")):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/geo/complete.json").exists()
    with python(SCRIPT, images, tmp_path / "killed", "0") as process:
        assert process.communicate(timeout=120)[0] == "started\nfinished\n"
    written = write_images(images, 12)
    written[4][1].write_bytes(b"not an image")
    work(written, tmp_path / "whole", 0)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
