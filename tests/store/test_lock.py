import subprocess
import threading

import pytest
from toy_store import python

from sagecache.errors import SagecacheError
from sagecache.store.lock import FolderLock, is_held

HOLD = """
import sys, time
from pathlib import Path
from sagecache.store.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), sys.argv[2] == "shared")
if lock.alone and sys.argv[2] == "shared":
    lock.share()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that holds the lock of tmp_path; all are killed at the end."""
    running = []

    def hold(kind: str) -> subprocess.Popen:
        process = python("-c", HOLD, tmp_path, kind)
        running.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in running:
        process.kill()
        with process:  # waits, and closes the pipes
            pass


def test_a_clean_release_leaves_no_file(tmp_path):
    lock = FolderLock(tmp_path, shared=False)
    assert lock.alone
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["alone", "shared"])
def test_who_only_looks_sees_a_writer_and_leaves_no_file(tmp_path, holder, kind):
    assert not is_held(tmp_path) and list(tmp_path.iterdir()) == []
    process = holder(kind)
    assert is_held(tmp_path)
    process.kill()
    process.wait()
    assert not is_held(tmp_path)  # the file that it left says nothing
    FolderLock(tmp_path, shared=False).release()


def test_a_sharing_writer_waits_while_another_opens_the_store(tmp_path):
    opening = FolderLock(tmp_path, shared=False)
    timer = threading.Timer(0.2, opening.share)
    timer.start()
    beside = FolderLock(tmp_path, shared=True)
    assert not beside.alone
    timer.join()
    beside.release()
    opening.release()
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_refused_until_the_holder_dies(tmp_path, holder, monkeypatch):
    monkeypatch.setattr("sagecache.store.lock._PATIENCE", 0.1)
    process = holder("alone")
    for shared in (False, True):
        with pytest.raises(SagecacheError, match="another process is writing"):
            FolderLock(tmp_path, shared)
    process.kill()
    process.wait()
    lock = FolderLock(tmp_path, shared=False)
    assert lock.alone
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_sharing_writers_stand_side_by_side_and_the_last_one_cleans_up(tmp_path, holder):
    process = holder("shared")
    lock = FolderLock(tmp_path, shared=True)
    assert not lock.alone
    with pytest.raises(SagecacheError, match="another process"):
        FolderLock(tmp_path, shared=False)
    lock.release()
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    process.kill()
    process.wait()
    lock = FolderLock(tmp_path, shared=True)
    assert lock.alone
    lock.release()
    assert list(tmp_path.iterdir()) == []
