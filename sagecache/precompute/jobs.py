"""What to make, how, and what came of it: plain values that the steps of phase one take and give."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sagecache.errors import SagecacheError
from sagecache.precompute.plan import CropRule
from sagecache.precompute.steps import FailedItem
from sagecache.skeleton.definition import Skeleton
from sagecache.structures import Instance

Progress = Callable[[int, int, str], None]  # done, total (0: nothing is counted yet), what is being done


def no_progress(done: int, total: int, message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class GeoJob:
    """One store to make.

    root: the store's folder. instances: unique; new ones of a store that is there are added to it.
    attributes: noted in the store for readers ('split', and 'command': what makes it, quoted in errors).
    codec: a key of ``store.spec.SETTINGS``. shard_size: instances a shard, what a kill may cost; None: that
    of the store that is there, or one that suits the size of the maps.
    """

    root: Path
    instances: Sequence[Instance]
    crop: CropRule
    attributes: Mapping = field(default_factory=dict)
    shard_size: int | None = None
    batch_size: int = 16
    codec: str = "fast"


@dataclass(frozen=True)
class DetectJob:
    """One detection file to make: ``result`` is a path that ends in .json; images are (image_id, path)."""

    result: Path
    images: Sequence[tuple[int, Path]]
    part_size: int = 64
    batch_size: int = 8


@dataclass(frozen=True)
class StatsJob:
    """Skeleton statistics of the labeled persons among instances, into one JSON file."""

    result: Path
    instances: Sequence[Instance]
    skeleton: Skeleton


@dataclass(frozen=True)
class RunOptions:
    """limit: only the first items, into a place of their own. force: set an existing result aside and compute
    all anew. strict: stop at the first item that fails. engine: a key of ``engines.ENGINES``. workers:
    threads that read images ahead of the network. rank, world_size: make only every world_size-th shard,
    beside other runs that make the others. verify: test the checksums of what is there, and make anew what is
    damaged.
    """

    limit: int | None = None
    force: bool = False
    strict: bool = False
    engine: str = "local"
    workers: int = min(8, os.cpu_count() or 1)
    rank: int = 0
    world_size: int = 1
    verify: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise SagecacheError(
                f"rank {self.rank} does not exist among {self.world_size}",
                fix="Ranks go from 0 to world size - 1.",
            )
        if self.force and self.world_size > 1:
            raise SagecacheError(
                "--force with several ranks: each would set aside what the others make",
                fix="Move the old result away first, then start the ranks without --force.",
            )

    def own(self, numbers: Sequence[int]) -> list[int]:
        """Those that fall to this rank."""
        return [number for number in numbers if number % self.world_size == self.rank]


DEFAULTS = RunOptions()


@dataclass(frozen=True)
class StepReport:
    """What a step did. failed lists all items without a result, those of earlier runs included.

    missing: items that other ranks still have to make. teacher_seconds: of ``seconds``, in the network.
    persons: boxes in a detection file, whatever their scores; None for what holds none.
    """

    step: str
    path: Path
    total: int
    computed: int
    failed: list[FailedItem]
    bytes: int
    seconds: float
    replaced: Path | None = None
    missing: int = 0
    teacher_seconds: float = 0.0
    persons: int | None = None

    @property
    def rate(self) -> float:
        """Items computed in this run per second of it."""
        return self.computed / self.seconds if self.seconds > 0 else 0.0
