"""Checkpoints in and out: ours hold ``student.*``, ``ema_teacher.*`` and, of two EMA teachers,
``appearance_teacher.*``; plain mmpose files none of them.
"""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sagecache.errors import SagecacheError, about
from sagecache.mm.checkpoint_keys import BACKBONE, State, mismatch, usable_start
from sagecache.mm.compat import activate
from sagecache.models.public_weights import fit_positions, from_public, unwrapped
from sagecache.models.vit import VisionTransformer
from sagecache.models.weight_files import read_tensors
from sagecache.models.weights import check_finite, check_floats

logger = logging.getLogger(__name__)

PREFIXES = ("student.", "ema_teacher.", "appearance_teacher.")


@dataclass(frozen=True)
class Resumable:
    """A checkpoint from which a run can go on, and the seed of that run."""

    path: Path
    iteration: int
    seed: int | None


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
    if not path.exists():
        raise SagecacheError("no such checkpoint", file=path, fix="Train one: sagecache train stage0.")
    state = unwrapped(read_tensors(path))
    networks = [prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in state)]
    if not networks:
        return state
    prefix = f"{network}."
    if prefix not in networks:
        held = ", ".join(one.removesuffix(".") for one in networks)
        raise SagecacheError(f"holds no {network}, only {held}", file=path, fix="Ask for a network it holds.")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_network(
    model: nn.Module, path: Path, network: str = "ema_teacher", *, as_start: bool = False
) -> None:
    """Load a checkpoint into an mmpose estimator; float16 files become float32.

    as_start: of a training. Then a file with the whole backbone and no pose head is taken too, and one whose
    head draws another set of keypoints without its last layer: what is not taken keeps its first values, and
    one warning says so. Raises SagecacheError that lists missing, unexpected and misshapen keys and says what
    they usually mean.
    """
    own = model.state_dict()
    state, told = _adapted(path, network_state(path, network), own, getattr(model, "backbone", None))
    if as_start and (start := usable_start(state, own)) is not None:
        state, lack = start
        logger.warning("%s %s", path, lack)
    model.load_state_dict(_fitting(path, state, own, told))


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load the backbone of a file that may hold more; what else is there is left.

    Raises SagecacheError as load_network.
    """
    own = {BACKBONE + key: value for key, value in backbone.state_dict().items()}
    state, told = _adapted(path, network_state(path, "ema_teacher"), own, backbone)
    if any(key.startswith(BACKBONE) for key in state):
        state = {key: value for key, value in state.items() if key.startswith(BACKBONE)}
    else:
        state = {BACKBONE + key: value for key, value in state.items()}
    fitting = _fitting(path, state, own, told)
    backbone.load_state_dict({key.removeprefix(BACKBONE): value for key, value in fitting.items()})


def _adapted(path: Path, state: State, own: State, backbone: nn.Module | None) -> tuple[State, list[str]]:
    """A public layout under our names, its positions on the grid of a ViT; what was done, in words.

    Raises SagecacheError for integers where the network has floats.
    """
    with about(path):
        state, renamed = from_public(state)
        check_floats(state, own)  # before positions are resized
        if not isinstance(backbone, VisionTransformer):
            return state, renamed
        state, resized = fit_positions(state, own, backbone.grid)
    return state, renamed + resized


def _fitting(path: Path, state: State, own: State, told: list[str]) -> dict[str, Tensor]:
    """The state in the network's precision. Raises SagecacheError where names or shapes differ, for
    integers in the place of floats, and for values that are not finite.
    """
    if (problem := mismatch(state, own)) is not None:
        raise SagecacheError(problem[0], file=path, fix=problem[1])
    if told:
        logger.warning("%s: all %d tensors fit; %s", path, len(own), "; ".join(told))
    check_floats(state, own, path)  # of a backbone alone now, under the network's names
    fitting = {key: value.to(own[key].dtype) for key, value in state.items()}
    check_finite(fitting, path)
    return fitting


def save_network(network: nn.Module, output: Path) -> None:
    """Write a network as a plain mmpose checkpoint, {'state_dict': …}, or as safetensors, by the suffix."""
    state = network.state_dict()
    if output.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, output)
    else:
        torch.save({"state_dict": state}, output)
