"""Stages of work that overlap: results are made ahead, in threads, in order, and only so far ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[Result]:
    """function of each item, in the order of items, computed by ``workers`` threads.

    Takes at most ``ahead`` items beyond the one whose result is waited for, in the caller's thread: stages
    that are chained run at the same time, hold bounded memory, and each item meets them in the same order for
    any number of workers. The first exception is raised in its item's turn; what is ahead of it is dropped.
    """
    pool, pending = ThreadPoolExecutor(workers), deque[Future]()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
