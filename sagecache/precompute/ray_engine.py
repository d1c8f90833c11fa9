"""Shards as tasks of a Ray cluster: one actor a GPU, or one a core where there is none.

The driver hands out numbers and gets encoded shards back, which it writes alone: a store is made by the same
protocol on one machine and on fifty. A worker that dies is started again and its shard given out again; an
error of the work itself stops the run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from sagecache.precompute.engines import Work

RETRIES = 3  # of a shard whose worker died: more often it is the shard that kills it
QUEUED = 2  # tasks an actor: the next one waits there while one is computed


class _Worker:
    """Lives in a process of Ray's; holds the teacher as long as the run lasts."""

    def __init__(self) -> None:
        self._work: Work | None = None

    def run(self, number: int, held: Sequence[Any]) -> Any:
        """held: the work's reference, in a list so that not each task fetches it. No argument of the
        constructor: a worker that is started again would depend on it."""
        if self._work is None:
            import ray

            self._work = ray.get(held[0])
        ((_, result),) = self._work([number], lambda count: None)
        return result


def run_ray(work: Work, numbers: Sequence[int], advance: Callable[[int], None]) -> Iterator[tuple[int, Any]]:
    """Results as they arrive. Joins the cluster of $RAY_ADDRESS, or starts one on this machine.

    Raises SagecacheError where ray is not installed, for an error of the work, and for a shard whose worker
    died again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise SagecacheError(
            "the engine 'ray' needs the package ray", fix="pip install 'sagecache[ray]'"
        ) from error
    numbers, ours = list(numbers), not ray.is_initialized()
    if not numbers:
        return
    if ours:
        address = os.environ.get("RAY_ADDRESS")
        quiet = dict(log_to_driver=False, logging_level=logging.ERROR)  # its notes are no user's to act on
        ray.init(address=address, include_dashboard=None if address else False, **quiet)
    try:
        yield from _compute(ray, work, numbers, advance)
    finally:
        if ours:
            ray.shutdown()


def _compute(ray, work: Work, numbers: list[int], advance: Callable[[int], None]):
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    count = min(gpus or int(resources.get("CPU", 1)), len(numbers))
    options = dict(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=RETRIES)
    shared = ray.put(work)
    actors = [ray.remote(_Worker).options(**options).remote() for _ in range(count)]
    waiting, running = iter(numbers), {}

    def submit(actor) -> None:
        for number in waiting:
            running[actor.run.remote(number, [shared])] = number, actor
            return

    for _ in range(QUEUED):
        for actor in actors:
            submit(actor)
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        number, actor = running.pop(done)
        result = _result(ray, done, number)
        submit(actor)
        advance(work.count(number))
        yield number, result


def _result(ray, reference, number: int) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SagecacheError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        reason = [line for line in str(error).splitlines() if line.strip()][-1].strip()
        raise SagecacheError(
            f"the workers of shard {number} died or could not start, {RETRIES + 1} times: {reason}",
            fix="Out of memory? Make the batch smaller. All machines need this package and the images.",
        ) from error
