"""Which instances each step shows, and from what entropy their views are drawn.

Knows numbers of instances and no images: a step's draws are a function of (seed, step, rank) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from sagecache.errors import SagecacheError

LABELED, UNLABELED = 0, 1


class Draw(NamedTuple):
    """One sample to make: position in the list of instances, and what seeds its views (non-negative ints)."""

    index: int
    entropy: tuple[int, ...]


class StepDraws(NamedTuple):
    """What one step shows."""

    labeled: list[Draw]
    unlabeled: list[Draw]


class MixedBatchSampler(Sampler[StepDraws]):
    """An endless sequence of steps, each with a fixed number of labeled and unlabeled draws per rank.

    Each stream runs through its instances in ever new shuffled orders; the ranks of a step take neighbouring
    pieces of one sequence, so that they share no draw and N ranks see what one rank with an N-fold batch
    would. Step t depends on (seed, t, rank, world_size) only: start_step=t continues a run that stopped
    before step t. Set start_step before iterating (a loader with workers draws ahead).

    Raises SagecacheError when a stream is drawn from that has no instances.
    """

    def __init__(
        self,
        num_labeled: int,
        num_unlabeled: int,
        batch_labeled: int,
        batch_unlabeled: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} does not exist among {world_size}")
        self.seed, self.rank, self.world_size, self.start_step = seed, rank, world_size, start_step
        self.streams = ((num_labeled, batch_labeled), (num_unlabeled, batch_unlabeled))
        for name, (count, batch) in zip(("labeled", "unlabeled"), self.streams, strict=True):
            if batch > 0 and count == 0:
                raise SagecacheError(
                    f"no {name} instances to draw {batch} a step from", fix=f"Check the {name} split"
                )
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[StepDraws]:
        step = self.start_step
        while True:
            yield self.step(step)
            step += 1

    def __len__(self) -> int:
        """Steps until both streams were seen whole once; the sequence itself has no end."""
        return max(map(self.steps_an_epoch, range(len(self.streams))))

    def steps_an_epoch(self, stream: int) -> int:
        """Steps until a stream (LABELED, UNLABELED) was seen whole once; 0 where nothing is drawn from it."""
        count, batch = self.streams[stream]
        return -(-count // (batch * self.world_size)) if batch else 0

    def step(self, step: int) -> StepDraws:
        """The draws of one step, at random access."""
        return StepDraws(self._draws(LABELED, step), self._draws(UNLABELED, step))

    def _draws(self, stream: int, step: int) -> list[Draw]:
        count, batch = self.streams[stream]
        first = (step * self.world_size + self.rank) * batch
        return [
            Draw(self._shuffled(stream, *divmod(number, count)), (self.seed, stream, number))
            for number in range(first, first + batch)
        ]

    def _shuffled(self, stream: int, round_: int, position: int) -> int:
        """Which instance stands at a position of the stream's round-th shuffled order."""
        kept = self._orders.get(stream)
        if kept is None or kept[0] != round_:
            rng = np.random.default_rng((self.seed, stream, round_, 1))  # 1: not the entropy of a view
            kept = self._orders[stream] = (round_, rng.permutation(self.streams[stream][0]))
        return int(kept[1][position])
