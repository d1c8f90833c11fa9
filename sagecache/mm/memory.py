"""Out of memory: the next rung of the ladder that this recipe has not climbed yet, as keys to type.

The order is by what a rung costs: gradient accumulation and bfloat16 cost no accuracy to speak of, activation
checkpointing costs time, and only then is anything taken away from the method.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import torch

from sagecache.errors import SagecacheError
from sagecache.mm.registry import MODELS
from sagecache.mm.stock_pages import known_types
from sagecache.project.recipe import Recipe

# What torch says on CPUs, GPUs and in cuBLAS and cuDNN, which have no exception class of their own.
_DEVICE = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|ALLOC_FAILED|not enough memory", re.I
)
_WORKER = re.compile(r"DataLoader worker .*(killed by signal: Killed|Bus error)|Insufficient memory", re.S)
SMALLEST = 4  # images of a forward pass: batch norm needs some
SCALES = ((3, 4), (2, 3), (1, 2))
MULTIPLE = 32  # a side that pyramids and patches divide
SIMCC_DEFAULT = 6.0  # sigma of mmpose's SimCCLabel
LAST = "Take a smaller backbone, or a device with more memory."


@dataclass(frozen=True)
class Rung:
    """name; used: how far a recipe has climbed it, None where not at all; advice: the next step on it, as
    words to type, and what it does; None where there is none."""

    name: str
    used: str | None = None
    advice: str | None = None


@contextmanager
def memory_advice(recipe: Recipe, model: Mapping[str, Any]) -> Iterator[None]:
    """Turn what torch, numpy and OpenCV say of missing memory into a SagecacheError with the next rung."""
    try:
        yield
    except Exception as error:
        place = _place(error)
        if place is None:
            raise
        rungs = ladder(recipe, model)
        if place == "host":
            rungs = [*_host_rungs(recipe), *rungs]
        told = str(error).strip().split("\n")[0].rstrip(".")
        used = ", ".join(rung.used for rung in rungs if rung.used)
        text = f"out of {place} memory{_peak()}: {told}" + (f". In use already: {used}" if used else "")
        advice = next((f"Next: {rung.advice}." for rung in rungs if rung.advice), LAST)
        raise SagecacheError(text, fix=advice) from error


def ladder(recipe: Recipe, model: Mapping[str, Any]) -> list[Rung]:
    """Every rung, from the cheapest on."""
    return [
        _accumulation(recipe),
        Rung("bfloat16", used="--amp") if recipe.amp else Rung("bfloat16", advice=_AMP),
        _checkpointing(model),
        _resolution(model),
        _views(recipe),
        _teachers(recipe),
    ]


_AMP = "--amp, which keeps activations in bfloat16"


def _place(error: Exception) -> str | None:
    """'device' | 'host' | None for another error."""
    if isinstance(error, MemoryError):
        return "host"
    if isinstance(error, torch.OutOfMemoryError):
        return "device"
    if not isinstance(error, RuntimeError) and type(error).__module__ != "cv2":
        return None
    if _WORKER.search(str(error)):
        return "host"
    return "device" if _DEVICE.search(str(error)) else None


def _peak() -> str:
    if not torch.cuda.is_available():
        return ""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f" (peak {torch.cuda.max_memory_allocated() / 2**30:.1f} of {total / 2**30:.1f} GiB)"


def _host_rungs(recipe: Recipe) -> list[Rung]:
    workers, cache = recipe.batch.workers, recipe.data.image_cache_mb
    advice = None
    if cache:
        advice = f"data.image_cache_mb={cache // 2 if cache >= 128 else 0}, of each loader process"
    fewer = f"batch.workers={workers - 1}, one loader process less" if workers > 1 else None
    return [Rung("image cache", advice=advice), Rung("loader processes", advice=fewer)]


def _accumulation(recipe: Recipe) -> Rung:
    """As many images an optimiser step, in twice as many passes."""
    batch, counts = recipe.batch, recipe.optim_wrapper.get("accumulative_counts", 1)
    used = f"optim_wrapper.accumulative_counts={counts}" if counts > 1 else None
    unlabeled = batch.unlabeled if recipe.uses_unlabeled else 0
    halves = {"labeled": ceil(batch.labeled / 2), "unlabeled": ceil(unlabeled / 2)}
    now = batch.labeled + unlabeled
    if not SMALLEST <= sum(halves.values()) < now:
        return Rung("accumulation", used)
    words = [f"batch.{name}={count}" for name, count in halves.items() if count]
    words.append(f"optim_wrapper.accumulative_counts={2 * counts}")
    text = "as many images an optimiser step in twice as many passes"
    if recipe.train_cfg is not None:
        words.append(f"train_cfg.max_iters={2 * recipe.train_cfg.max_iters}")
        if warm_up := recipe.semi.pseudo_labels.get("warm_up"):  # counts batches
            words.append(f"semi.pseudo_labels.warm_up={2 * warm_up}")
        text += "; double the begin and end of param_scheduler too"
    return Rung("accumulation", used, f"{' '.join(words)} ({text})")


def _checkpointing(model: Mapping[str, Any]) -> Rung:
    backbone = known_types(model).get("backbone") or {}
    if backbone.get("with_cp"):
        return Rung("checkpointing", "model.backbone.with_cp")
    if not takes(MODELS.get(str(backbone.get("type"))), "with_cp"):
        return Rung("checkpointing")
    text = "model.backbone.with_cp=True (activations are computed again in the backward pass: slower)"
    return Rung("checkpointing", advice=text)


def takes(cls: type | None, argument: str) -> bool:
    """Whether a class' constructor has this argument, itself or by **kwargs handed to its base."""
    for one in () if cls is None else cls.__mro__:
        own = one.__dict__.get("__init__")
        if own is None:
            continue
        parameters = inspect.signature(own).parameters.values()
        if any(parameter.name == argument for parameter in parameters):
            return True
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return False
    return False


def _resolution(model: Mapping[str, Any]) -> Rung:
    """The next smaller input whose sides most backbones can divide; the maps shrink with it.

    SimCC has bins instead of maps, and its head knows the input's size and that of the last features.
    """
    head = model.get("head") or {}
    decoder = head.get("decoder") or {}
    simcc = decoder.get("type") == "SimCCLabel"
    sizes = {"input_size": decoder.get("input_size")}
    other = {"in_featuremap_size": head.get("in_featuremap_size")} if simcc else {}
    sizes |= other or {"heatmap_size": decoder.get("heatmap_size")}
    if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in sizes.values()):
        return Rung("resolution")
    for up, down in SCALES:
        smaller = {key: [up * side // down for side in pair] for key, pair in sizes.items()}
        exact = all(up * side % down == 0 for pair in sizes.values() for side in pair)
        if exact and all(side % MULTIPLE == 0 for side in smaller["input_size"]):
            break
    else:
        return Rung("resolution")
    words = [f"{key}=({across}, {high})" for key, (across, high) in smaller.items()]
    if "img_size" in (model.get("backbone") or {}):
        across, high = smaller["input_size"]
        words.append(f"img_size=({high}, {across})")
    also = "less detail; weights of that size"
    if simcc:
        words.append(f"sigma={_bin_sigma(decoder.get('sigma', SIMCC_DEFAULT), up / down)}")
        also += "; input_size in the codec and the head alike, sigma is in the codec's bins"
    return Rung("resolution", advice=f"in model.py {', '.join(words)} ({also})")


def _bin_sigma(sigma: Any, scale: float) -> Any:
    """Of SimCC's Gaussian, bins, for an input of ``scale`` times the size: with the root of the side, as in
    mmpose's pages of RTMPose (4.9, 5.66 for 192 x 256; 6, 6.93 for 288 x 384).
    """
    if isinstance(sigma, Sequence):
        return tuple(round(one * scale**0.5, 2) for one in sigma)
    return round(sigma * scale**0.5, 2)


def _views(recipe: Recipe) -> Rung:
    count = recipe.views.num_strong
    if not recipe.uses_unlabeled or count == 1:
        return Rung("views")
    return Rung("views", advice=f"views.num_strong={count - 1} (fewer strong views of an image)")


def _teachers(recipe: Recipe) -> Rung:
    """Two EMA teachers are two more copies of the weights, and two passes."""
    teacher = recipe.semi.teacher
    if not recipe.uses_unlabeled or teacher.mode != "dual":
        return Rung("teachers")
    off = [
        f"semi.teacher.appearance.{key}={None if key == 'decay' else False}"
        for key, value in asdict(teacher.appearance).items()
        if value
    ]
    words = " ".join(["semi.teacher.mode=single_two_view", *off])
    return Rung("teachers", advice=f"{words} (one EMA teacher for both views)")
