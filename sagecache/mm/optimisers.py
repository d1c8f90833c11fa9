"""A recipe's ``optim_wrapper`` and ``param_scheduler``, checked before a training starts."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from sagecache.errors import RECIPE, SagecacheError
from sagecache.models.vit import VisionTransformer

LAYER_DECAY = "LayerDecayOptimWrapperConstructor"


def build_optimizer(
    student: nn.Module, config: Mapping[str, Any], amp: bool, terms: nn.Module | None = None
) -> OptimWrapper:
    """The recipe's optim_wrapper over the student: layer decay looks for names in ``backbone.…``. What terms
    have to learn beside it does so at the optimiser's own rate.

    mmpose's LayerDecayOptimWrapperConstructor needs the number of a ViT's blocks: it is filled in, and one
    that is not the student's is refused. Raises SagecacheError.
    """
    config = _with_layers(dict(config), student)
    if "optimizer" not in config:
        raise SagecacheError(
            "the recipe has no optimiser", fix="Set optim_wrapper = dict(optimizer=dict(type=…))."
        )
    if amp:
        # bfloat16 has float32's range: no loss scaling, for which the host would wait in every step
        config |= dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(enabled=False))
    try:
        with redirect_stdout(io.StringIO()):  # mmpose's constructor prints its settings
            wrapper = build_optim_wrapper(student, config)
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise SagecacheError(f"optim_wrapper can't be built: {error}", record=str(dict(config))) from error
    learned = {} if terms is None else {n: p for n, p in terms.named_parameters() if p.requires_grad}
    if learned:
        group: dict[str, Any] = dict(params=list(learned.values()))
        if (
            "param_names" in wrapper.optimizer.param_groups[0]
        ):  # of layer decay; torch takes all groups or none
            group["param_names"] = [f"terms.{name}" for name in learned]
        wrapper.optimizer.add_param_group(group)
    return wrapper


def _with_layers(config: dict[str, Any], student: nn.Module) -> dict[str, Any]:
    if config.get("constructor") != LAYER_DECAY:
        return config
    backbone, paramwise = getattr(student, "backbone", None), dict(config.get("paramwise_cfg") or {})
    if not isinstance(backbone, VisionTransformer):
        raise SagecacheError(
            f"{LAYER_DECAY} is for blocks of a ViT, and this backbone is a {type(backbone).__name__}",
            file=RECIPE,
            fix="Leave 'constructor' out, or take type='VisionTransformer' in model.py.",
        )
    layers = backbone.arch.num_layers
    if paramwise.setdefault("num_layers", layers) != layers:
        raise SagecacheError(
            f"paramwise_cfg.num_layers is {paramwise['num_layers']}, the backbone has {layers} blocks",
            file=RECIPE,
            fix="Leave it out: it is read off the backbone.",
        )
    if config["optimizer"].get("weight_decay") is None:  # mmpose's constructor takes no default for it
        raise SagecacheError(
            f"{LAYER_DECAY} needs optimizer.weight_decay", file=RECIPE, fix="Set it, 0 for none."
        )
    return {**config, "paramwise_cfg": paramwise}


def schedule(schedulers: Any, max_iters: int) -> list[dict] | None:
    """Schedulers by iteration; one without an end runs to the last iteration."""
    if not schedulers:
        return None
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    if not isinstance(schedulers, (list, tuple)) or not all(isinstance(one, Mapping) for one in schedulers):
        raise SagecacheError(
            f"param_scheduler is {schedulers!r}", file=RECIPE, fix="Set a list of dict(type=…)."
        )
    schedulers = [dict(dict(by_epoch=False, end=max_iters), **scheduler) for scheduler in schedulers]
    for scheduler in schedulers:
        _try_schedule(scheduler)
    return schedulers


@contextmanager
def schedule_of_micro_steps(config: Mapping[str, Any]) -> Iterator[None]:
    """Silence the one warning that an accumulated gradient earns wrongly, and no other.

    Schedules count iterations. Of ``accumulative_counts`` iterations only the last one moves the optimiser,
    so the schedule's first step comes before its first: mmengine takes that for the wrong order of calls.
    """
    with warnings.catch_warnings():
        if config.get("accumulative_counts", 1) > 1:
            warnings.filterwarnings("ignore", r"Detected call of `scheduler\.step\(\)` before", UserWarning)
        yield


def _try_schedule(scheduler: dict[str, Any]) -> None:
    """Build it once for nothing: mmengine builds the real one after the first networks are on the device."""
    if scheduler.get("convert_to_iter_based"):  # needs the length of an epoch
        return
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    try:
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer))
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        told = str(error).strip('"').split("\n")[0]
        raise SagecacheError(f"param_scheduler can't be built: {told}", record=str(scheduler)) from error
