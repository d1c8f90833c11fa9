"""One decorator that keeps coordinates out of half precision.

A bfloat16 number has 8 significant bits: at x = 200 px it can't tell 200 from 201. Everything that
handles positions, matrices or sampling therefore runs in float32 with autocast off, whatever the
training loop chose for the network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable)


def full_precision(function: Function) -> Function:
    """Run function with autocast off and its half-precision tensor arguments raised to float32.

    float32 and float64 arguments keep their type (float64 is what gradcheck needs), so do integers
    and booleans. Gradients flow through the conversion.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device, enabled=False):
            return function(*map(_raised, args), **{name: _raised(value) for name, value in kwargs.items()})

    return wrapped


def _raised(value):
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
