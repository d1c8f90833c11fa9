"""Checkpoints in and out: ours hold ``student.*`` and ``ema_teacher.*``, plain mmpose files neither."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.mm.compat import activate

PREFIXES = ("student.", "ema_teacher.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, safely (weights only). Raises SagecacheError."""
    activate()  # allows mmengine's own meta types
    if not path.is_file():
        raise SagecacheError("no such checkpoint", file=path, fix="Train one: sagecache train stage0.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types on a cut or foreign file
        raise SagecacheError(f"can't be read as a checkpoint: {error}", file=path) from error
    return content.get("state_dict", content)


def network_state(path: Path, network: str) -> dict[str, Tensor]:
    """The state of one network in plain mmpose layout; network: 'student' | 'ema_teacher'."""
    state = read_state(path)
    if any(key.startswith(PREFIXES) for key in state):
        prefix = f"{network}."
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def load_network(model: nn.Module, path: Path, network: str = "ema_teacher") -> None:
    """Load a checkpoint into an mmpose estimator; float16 files become float32.

    Raises SagecacheError that lists missing, unexpected and misshapen keys.
    """
    state = network_state(path, network)
    own = model.state_dict()
    misshapen = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    problems = [
        f"{label} {len(keys)} keys ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for label, keys in (("lacks", missing), ("has unknown", unexpected), ("has misshapen", misshapen))
        if keys
    ]
    if problems:
        raise SagecacheError(
            "the checkpoint " + "; ".join(problems),
            file=path,
            fix="model.py must describe the network that was saved.",
        )
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})


def export_network(path: Path, output: Path, network: str = "ema_teacher") -> None:
    """Write one network as a plain mmpose checkpoint, {'state_dict': …}, atomically."""
    temporary = output.with_name(f".{output.name}.tmp")
    torch.save({"state_dict": network_state(path, network)}, temporary)
    temporary.replace(output)
