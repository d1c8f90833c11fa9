"""Sums over the processes of a training, where there are several."""

from __future__ import annotations

from torch import Tensor, distributed


def over_processes(sums: Tensor) -> Tensor:
    """Added up over all processes, in place; as they are in a training of one. Every process must call it."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums
