"""Environment and end of children; `cli/test_processes` and `synth/test_write` have real work for them."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from sagecache.children import THREAD_VARIABLES, die_with_parent, environment, thread_variables


def test_threads_are_said_to_each_library():
    assert thread_variables(3) == {name: "3" for name in THREAD_VARIABLES}
    assert "OMP_NUM_THREADS" in THREAD_VARIABLES


def test_the_environment_is_put_back_also_after_an_error(monkeypatch):
    monkeypatch.setenv("SAGECACHE_KNOWN", "before")
    monkeypatch.delenv("SAGECACHE_FRESH", raising=False)
    before = dict(os.environ)
    with pytest.raises(ValueError), environment({"SAGECACHE_KNOWN": "inside", "SAGECACHE_FRESH": "1"}):
        assert os.environ["SAGECACHE_KNOWN"] == "inside" and os.environ["SAGECACHE_FRESH"] == "1"
        raise ValueError
    assert dict(os.environ) == before


def _parent(connection: Connection) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_child, args=(connection,))
    child.start()
    child.join()


def _child(connection: Connection) -> None:
    die_with_parent()
    connection.send(os.getpid())
    time.sleep(60)


def test_a_child_of_a_killed_parent_ends():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    parent = context.Process(target=_parent, args=(theirs,))
    parent.start()
    theirs.close()
    assert ours.poll(60)
    ours.recv()
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    assert ours.poll(20)  # the child held the pipe's last writing end
    with pytest.raises(EOFError):
        ours.recv()
