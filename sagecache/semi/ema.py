"""The EMA teacher: a slow copy of the student, and the two schedules that semi-supervision needs.

Plain functions of a step number, so that nothing has to be saved: whoever trains passes the number of
optimiser steps done (not of accumulation micro-steps) and resumes exactly. Knows no optimiser and no hook.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from sagecache.errors import SagecacheError


def initialise_ema(student: nn.Module) -> nn.Module:
    """A frozen copy of the student: equal weights and buffers, eval mode, no gradients."""
    ema_model = copy.deepcopy(student).eval().requires_grad_(False)
    check_synchronised(ema_model, student)
    return ema_model


def check_synchronised(ema_model: nn.Module, student: nn.Module) -> None:
    """Raise SagecacheError unless both hold the same values.

    To be called before the first step of a fresh run: a checkpoint loaded into the student alone leaves a
    teacher that is still at its random start, and training "works" on its noise.
    """
    ours, theirs = ema_model.state_dict(), student.state_dict()
    if ours.keys() != theirs.keys():
        name = sorted(ours.keys() ^ theirs.keys())[0]
        raise SagecacheError("the EMA teacher and the student differ in structure", record=name)
    for name, value in ours.items():
        if value.shape != theirs[name].shape or not torch.equal(value, theirs[name]):
            raise SagecacheError(
                "the EMA teacher does not start as a copy of the student",
                record=name,
                fix="Load the checkpoint first, then make the copy",
            )


def warm_decay(decay: float, step: int) -> float:
    """min(decay, 1 - 1/(step + 1)): the plain mean of all students so far until that is slower than decay.

    step: optimiser steps done before the one that is averaged in now; at step 0 the teacher becomes the
    student. Tarvainen & Valpola 2017 (mean teacher) use the same ramp. Returns a number in [0, decay].
    """
    return min(decay, 1 - 1 / (step + 1))


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, decay: float, buffers: bool = True) -> None:
    """ema <- decay * ema + (1 - decay) * model, in place, in one fused call for each kind of tensor.

    Parameters and floating-point buffers (batch norm's running statistics) are averaged: the teacher's
    statistics then belong to its averaged weights. Other buffers (counters) are copied. buffers False
    leaves all of them to the teacher's own forward passes.
    decay in [0, 1] is the share that stays; mmengine's `momentum` is 1 - decay.
    """
    pairs = list(zip(_tensors(ema_model, buffers), _tensors(model, buffers), strict=True))
    averaged = [pair for pair in pairs if pair[1].is_floating_point()]
    if averaged:
        torch._foreach_lerp_([ema for ema, _ in averaged], [value for _, value in averaged], 1 - decay)
    for ema, value in pairs:
        if not value.is_floating_point():
            ema.copy_(value)


def require_different(decay: float, other: float, alternate: bool, own_norm: bool) -> None:
    """Raise SagecacheError unless a second EMA teacher can differ from the first.

    Two averages of one student with one start, one decay and the same updates are the same weights for ever.
    alternate: they are updated in turns. own_norm: the second one's batch norm keeps its own statistics.
    """
    if decay == other and not alternate and not own_norm:
        raise SagecacheError(
            f"both EMA teachers would average the same student with the decay {decay}: one network, twice",
            fix="In semi.teacher.appearance set another decay, alternate, or (with batch norm) own_norm.",
        )


def measure_own_norm(model: nn.Module) -> bool:
    """Put a teacher's batch norm layers in training mode: they normalise by, and keep, what it sees itself.

    False where it has none, so that nothing would differ.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.train()
    return bool(layers)


def _tensors(model: nn.Module, buffers: bool) -> list[torch.Tensor]:
    """In the order of definition, which is equal in both copies."""
    return [*model.parameters(), *(model.buffers() if buffers else ())]


def ramp_up(step: int, length: int) -> float:
    """Weight of the unlabeled losses: linear from 0 at step 0 to 1 at step `length`, then 1.

    Linear rather than the sigmoid exp(-5 (1 - t)^2) of Laine & Aila 2017, which is below .1 for a third of
    the ramp: a fine-tuned student's labels are useful early. length 0 switches the ramp off.
    """
    return 1.0 if length <= 0 else min(1.0, max(0.0, step / length))
