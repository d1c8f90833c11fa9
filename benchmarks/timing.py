"""Rounds in which cases take turns, and what a round costs: wall time, and CPU time of this process.

CPU time (all threads, user and system) is steady on a busy machine and says what the work costs; wall time
says what somebody waits for. Whoever quotes a ratio says which of the two it is.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

Case = Callable[[], int]  # does some work, returns how many units it did


@dataclass
class Samples:
    """Seconds a unit of each round, in the order of the rounds: ratios pair rounds of the same number."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def median(self, clock: str) -> float:
        return median(getattr(self, clock))

    def ratio_to(self, other: Samples, clock: str) -> float:
        """How many times the other's cost: the median over rounds of the ratio within a round."""
        pairs = zip(getattr(self, clock), getattr(other, clock), strict=True)
        return median(mine / theirs for mine, theirs in pairs)


def interleaved(cases: Mapping[str, Case], rounds: int, seed: int = 0, warm_up: bool = True) -> dict:
    """Run each case once a round, in a new random order each round; returns name -> Samples.

    warm_up: run each once before, untimed.
    """
    order, samples = random.Random(seed), {name: Samples() for name in cases}
    gc.collect()
    gc.freeze()  # or each collection below would go through torch, mmpose and all the rest
    for number in range(-1 if warm_up else 0, rounds):
        for name in order.sample(list(cases), len(cases)):
            cost = timed(cases[name])
            if number >= 0:
                samples[name].wall.append(cost[0])
                samples[name].cpu.append(cost[1])
    return samples


def timed(case: Case) -> tuple[float, float]:
    """Seconds a unit of one call: wall, CPU of this process."""
    gc.collect()  # what the case before left behind is not this one's to clear
    wall, cpu = time.perf_counter(), time.process_time()
    units = case()
    return (time.perf_counter() - wall) / units, (time.process_time() - cpu) / units
