"""Who computes the shards. An engine gets work and numbers, and yields results in any order.

What a shard holds does not depend on the engine, so that each new one is a function of the same shape and one
line in ENGINES. Engines compute; the process that asked them writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from sagecache.errors import SagecacheError, nearest
from sagecache.precompute.ray_engine import run_ray


class Work(Protocol):
    """Shards or parts by number; can be pickled."""

    def count(self, number: int) -> int:
        """How many items number has."""

    def __call__(self, numbers: Sequence[int], advance: Callable[[int], None]) -> Iterator[tuple[int, Any]]:
        """(number, result) of each number; advance(count) as items are done."""


Engine = Callable[[Work, Sequence[int], Callable[[int], None]], Iterator[tuple[int, Any]]]


def run_local(
    work: Work, numbers: Sequence[int], advance: Callable[[int], None]
) -> Iterator[tuple[int, Any]]:
    """In this process, one shard after the other."""
    return work(numbers, advance)


ENGINES: dict[str, Engine] = {"local": run_local, "ray": run_ray}


def get_engine(name: str) -> Engine:
    if name not in ENGINES:
        raise SagecacheError(f"unknown engine '{name}'", fix=nearest(name, ENGINES))
    return ENGINES[name]
