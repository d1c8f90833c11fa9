"""How much is measured: in full (about 12 minutes on two cores) or quickly (one minute, rough figures)."""

from __future__ import annotations

from dataclasses import dataclass

LARGE, SMALL = (192, 256), (48, 64)  # (width, height) of the maps that stores are compared on


def title(size: tuple[int, int]) -> str:
    """(192, 256) -> '256x192', as papers write it."""
    return f"{size[1]}x{size[0]}"


@dataclass(frozen=True)
class Scale:
    """Counts of one run.

    images: rendered pictures of the unlabeled split; each store is filled with their targets, again and again
    up to ``instances``. everything: all ways of reading, both sizes, any number of workers; else the few that
    start quickly. opening: instances of the stores that are opened. vit_instances: unlabeled pictures a step
    when the ViT runs online; 0 leaves it out.
    """

    everything: bool
    images: int
    instances: dict[tuple[int, int], int]
    batch: int
    read_rounds: int
    warm_rounds: int
    cold_rounds: int
    epoch_batches: int
    cold_batches: int
    shard_writes: int
    teacher_runs: int
    opening: tuple[int, ...]
    open_rounds: int
    step_rounds: int
    steps: int
    vit_instances: int


FULL = Scale(
    everything=True,
    images=192,
    instances={LARGE: 1536, SMALL: 6144},
    batch=64,
    read_rounds=11,
    warm_rounds=5,
    cold_rounds=5,
    epoch_batches=16,
    cold_batches=8,
    shard_writes=5,
    teacher_runs=3,
    opening=(1_000, 10_000, 100_000, 1_000_000),
    open_rounds=5,
    step_rounds=13,
    steps=4,
    vit_instances=8,
)
QUICK = Scale(
    everything=False,
    images=16,
    instances={LARGE: 128, SMALL: 256},
    batch=32,
    read_rounds=3,
    warm_rounds=2,
    cold_rounds=1,
    epoch_batches=4,
    cold_batches=2,
    shard_writes=2,
    teacher_runs=1,
    opening=(1_000, 10_000),
    open_rounds=1,
    step_rounds=1,
    steps=2,
    vit_instances=0,
)
