"""Who computes the shards. An engine gets numbers and a pure function, and yields results in any order.

The bytes of a shard do not depend on the engine, so that each new one (a pool, Ray, one rank of many)
is a function of the same shape and one line in ENGINES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sagecache.errors import SagecacheError, nearest

Result = TypeVar("Result")
Engine = Callable[[Callable[[int], Result], Iterable[int]], Iterator[tuple[int, Result]]]


def run_local(compute: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[tuple[int, Result]]:
    """One after the other, in this process."""
    for number in numbers:
        yield number, compute(number)


ENGINES: dict[str, Engine] = {"local": run_local}


def get_engine(name: str) -> Engine:
    if name not in ENGINES:
        raise SagecacheError(f"unknown engine '{name}'", fix=nearest(name, ENGINES))
    return ENGINES[name]
