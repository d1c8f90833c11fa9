import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from toy_store import make_content

from sagecache.errors import SagecacheError
from sagecache.store.arrays import sparse_empty
from sagecache.store.pools import FilePool


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError as error:
        assert error.errno == errno.EBADF
        return False
    return True


def test_the_pool_keeps_few_files_and_closes_the_others(tmp_path):
    paths = [str(tmp_path / str(k)) for k in range(6)]
    for k, path in enumerate(paths):
        Path(path).write_bytes(bytes([k]) * 4)
    pool = FilePool(2)
    first = pool._open(paths[0])
    descriptor = first.descriptor
    for k, path in enumerate(paths):
        assert pool.read(path, 2, 1) == bytes([k]) * 2
        assert len(pool) <= 2
    assert is_open(descriptor)  # still in use here, though long evicted
    del first
    assert not is_open(descriptor)


def test_threads_may_share_a_pool_smaller_than_their_number(tmp_path):
    paths = [str(tmp_path / str(k)) for k in range(8)]
    for k, path in enumerate(paths):
        Path(path).write_bytes(bytes([k]) * 64)
    pool, wrong = FilePool(2), []

    def work(seed: int) -> None:
        for k in np.random.default_rng(seed).integers(0, 8, 300).tolist():
            if pool.read(paths[k], 64, 0) != bytes([k]) * 64:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_not_in_memory_is_asked_for_at_once(tmp_path, monkeypatch):
    path = str(tmp_path / "shard")
    Path(path).write_bytes(bytes(range(256)) * 256)
    pool, spans, asked = FilePool(2), [(path, 4096 * k, 8) for k in range(16)], []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, size, advice: asked.append((offset, size)))
    for there in (True, False):
        monkeypatch.setattr(FilePool, "_in_memory", lambda self, path, offset, there=there: there)
        read = pool.together(spans)
        assert asked == ([] if there else [(offset, 8) for _, offset, _ in spans])
        assert read(path, 8, 4096) == bytes(range(8))


def test_the_page_cache_is_asked_without_waiting_for_the_disk(tmp_path):
    path = str(tmp_path / "shard")
    Path(path).write_bytes(b"x" * 10000)
    assert FilePool(2)._in_memory(path, 5000)  # just written
    assert FilePool(2)._in_memory(str(tmp_path / "missing"), 0)  # reading will tell
    assert FilePool(2).together([]) is not None


def test_an_array_that_is_hardly_touched_takes_hardly_any_memory():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    array, before = sparse_empty((10**6, 9), np.float64), resident()
    array[:: 10**6 // 64] = 1
    assert resident() - before < 2 * 2**20 and not array[1].any()


READ_ALL = """
import resource, sys
from sagecache.store import StoreReader
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
readers = [StoreReader(root) for root in sys.argv[1:]]
keys = [tuple(key) for key in readers[0].ids.tolist()]
for number in [*range(len(keys)), *range(len(keys))]:
    for reader in readers:
        reader.read(*keys[number])
open(sys.argv[1] + "/complete.json").close()
print(sum(len(reader.read_many(keys)["depth"]) for reader in readers))
"""


def test_many_stores_are_read_with_few_descriptors(tmp_path):
    stores = [make_content(40, shard_size=1).write(tmp_path / "0")]
    stores += [shutil.copytree(stores[0], tmp_path / str(k)) for k in range(1, 8)]
    done = subprocess.run([sys.executable, "-c", READ_ALL, *stores], capture_output=True, text=True)
    assert done.stdout == "320\n", done.stderr


def test_no_limit_is_not_a_limit_of_one(tmp_path, monkeypatch):
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda what: unlimited)
    pool = FilePool()
    for k in range(6):
        (tmp_path / str(k)).write_bytes(b"x")
        pool.read(str(tmp_path / str(k)), 1, 0)
    assert len(pool) == 6 and pool._limit == 65536 // 4


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_without_descriptors_those_of_all_pools_are_let_go_of(tmp_path, monkeypatch, code):
    path, other = str(tmp_path / "shard"), FilePool()
    Path(path).write_bytes(b"x" * 8)
    other.read(path, 8, 0)
    real = os.open

    def none_left(*arguments):
        if len(other) or always:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, "open", none_left)
    always = False
    assert FilePool().read(path, 8, 0) == b"x" * 8 and len(other) == 0
    always = True
    with pytest.raises(SagecacheError, match=f"{path}: no more files can be opened.*ulimit -n"):
        FilePool().read(path, 8, 0)
