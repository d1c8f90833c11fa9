import errno
import os
import threading
from pathlib import Path

import numpy as np

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
