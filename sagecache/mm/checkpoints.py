"""Checkpoints in and out: ours hold ``student.*``, ``ema_teacher.*`` and, of two EMA teachers,
``appearance_teacher.*``; plain mmpose files none of them.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.mm.checkpoint_keys import backbone_alone, mismatch, unwrapped
from sagecache.mm.compat import activate

logger = logging.getLogger(__name__)

PREFIXES = ("student.", "ema_teacher.", "appearance_teacher.")
FOREIGN = "Give a .pth of this project's training or of mmpose, or a .safetensors."


@dataclass(frozen=True)
class Resumable:
    """A checkpoint from which a run can go on, and the seed of that run."""

    path: Path
    iteration: int
    seed: int | None


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, safely (weights only). Raises SagecacheError."""
    activate()  # allows mmengine's own meta types
    if not path.is_file():
        raise SagecacheError("no such checkpoint", file=path, fix="Train one: sagecache train stage0.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types on a cut or foreign file
        told = str(error).split("\n")[0]
        raise SagecacheError(f"can't be read as a checkpoint: {told}", file=path, fix=FOREIGN) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SagecacheError(f"holds a {type(content).__name__}, no tensors by name", file=path, fix=FOREIGN)
    return state


def newest_readable(work_dir: Path) -> Resumable | None:
    """The newest checkpoint of a run that can be read whole; None where there is none at all.

    mmengine writes checkpoints in place, so a kill may leave the last one cut: it stays, one warning names
    it, and the one before it is taken. Raises SagecacheError where all are cut, and at a file that holds more
    than weights and plain values: a cut archive never looks like that, and to load it would run its code.
    """
    activate()
    # mmengine's last_checkpoint holds an absolute path, in a copied folder that of the original
    candidates = sorted(work_dir.glob("iter_*.pth"), key=_iteration, reverse=True)
    cut = []
    for path in candidates:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = Resumable(path, content["meta"]["iter"], content["meta"].get("seed"))
        except pickle.UnpicklingError as error:
            raise SagecacheError(
                "holds more than weights and plain values, so it is not loaded",
                file=path,
                fix="Move it away to go on from the one before, or train anew: leave --resume out.",
            ) from error
        except Exception:  # as in read_state; what was wrong is told below
            cut.append(path)
            continue
        if cut:
            names = ", ".join(one.name for one in cut)
            logger.warning("%s can't be read (a killed run leaves such): going on from %s", names, path.name)
        return found
    if cut:
        raise SagecacheError(
            "none of its checkpoints can be read", file=work_dir, fix="Train anew: leave --resume out."
        )
    return None


def _iteration(path: Path) -> int:
    number = path.stem.removeprefix("iter_")
    return int(number) if number.isdigit() else -1


def network_state(path: Path, network: str) -> dict[str, Tensor]:
    """The state of one network in plain mmpose layout; network: 'student' | 'ema_teacher' |
    'appearance_teacher'.

    Raises SagecacheError where a file of several networks lacks this one.
    """
    state = unwrapped(read_state(path))
    networks = [prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in state)]
    if not networks:
        return state
    prefix = f"{network}."
    if prefix not in networks:
        held = ", ".join(one.removesuffix(".") for one in networks)
        raise SagecacheError(f"holds no {network}, only {held}", file=path, fix="Ask for a network it holds.")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_network(
    model: nn.Module, path: Path, network: str = "ema_teacher", *, backbone_serves: bool = False
) -> None:
    """Load a checkpoint into an mmpose estimator; float16 files become float32.

    backbone_serves: a file with the whole backbone and no pose head is taken too, as the start of a training;
    what the network has beside it keeps its first values. Raises SagecacheError that lists missing,
    unexpected and misshapen keys and says what they usually mean.
    """
    state = network_state(path, network)
    own = model.state_dict()
    backbone = backbone_alone(state, own) if backbone_serves else None
    if backbone is not None:
        if parts := sorted({key.split(".")[0] for key in own.keys() - backbone.keys()}):
            logger.warning("%s is a backbone alone: %s starts from scratch", path, " and ".join(parts))
        state = own | backbone
    if (problem := mismatch(state, own)) is not None:
        raise SagecacheError(problem[0], file=path, fix=problem[1])
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})


def export_network(path: Path, output: Path, network: str = "ema_teacher") -> None:
    """Write one network as a plain mmpose checkpoint, {'state_dict': …}, or as safetensors; atomically."""
    temporary = output.with_name(f".{output.name}.tmp")
    state = network_state(path, network)
    if output.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, temporary)
    else:
        torch.save({"state_dict": state}, temporary)
    temporary.replace(output)
