"""Weights of the demo networks: safetensors in half precision beside this file, float32 in memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.models.convnet import GeometryNet, PersonDetector

FOLDER = Path(__file__).with_name("weights")
NAMES = ("geometry", "detector", "student")


def weights_path(name: str) -> Path:
    """Path of a committed file; name is one of NAMES. Raises SagecacheError for any other."""
    if name not in NAMES:
        raise SagecacheError(f"no committed weights are called '{name}'", fix=nearest(name, NAMES))
    return FOLDER / f"{name}.safetensors"


def load_weights(name: str) -> dict[str, Tensor]:
    """A committed state dict, floats as float32.

    'geometry' and 'detector' fit GeometryNet() and PersonDetector(); 'student' has mmpose's keys,
    ``backbone.*`` of PoseNet() and ``head.final_layer.*`` of a 1x1 convolution to 17 logit maps.
    Raises SagecacheError for an unknown name or an unreadable file.
    """
    return read_weights(weights_path(name))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; floats become float32. Raises SagecacheError when it cannot be read."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SagecacheError(
            f"weights cannot be read ({error})", file=path, fix="Reinstall the package or restore the file."
        ) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def fill(net: nn.Module, state: dict[str, Tensor], file: Path | None = None) -> nn.Module:
    """Load a state dict that must fit exactly; returns the network in eval mode.

    Raises SagecacheError that names the first missing, unexpected or misshapen keys, or values that are no
    floats or not finite.
    """
    own = net.state_dict()
    wrong = [f"missing {key}" for key in own if key not in state]
    wrong += [f"unexpected {key}" for key in state if key not in own]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise SagecacheError(
            f"weights do not fit {type(net).__name__}: {'; '.join(wrong[:3])}{more}",
            file=file,
            fix="Use the weights that were trained for this network.",
        )
    check_floats(state, own, file)
    check_finite(state, file)
    with torch.no_grad():
        net.load_state_dict(state)
    return net.eval()


def check_floats(state: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path | None = None) -> None:
    """Raise SagecacheError that names the first tensor which isn't floating though the network's own is.

    Integers of a quantised network are weights only with their scales, which no name here tells.
    """
    for name, value in state.items():
        if name in own and own[name].is_floating_point() and not value.is_floating_point():
            raise SagecacheError(
                f"is {str(value.dtype).removeprefix('torch.')}, and the network's own is floating",
                file=file,
                record=name,
                fix="Take the weights as they were before they were quantised: float32, float16 or bfloat16.",
            )


def check_finite(state: Mapping[str, Tensor], file: Path | None = None) -> None:
    """Raise SagecacheError that names the first tensor with a value that is not finite; one pass, no copy.

    One NaN in a network makes every answer NaN, and a store or a training ends full of them.
    """
    for name, value in state.items():
        if value.is_floating_point() and value.numel():
            value = value.detach()
            low, high = (value.float() if value.itemsize == 1 else value).aminmax()  # NaN passes through both
            if not (isfinite(low) and isfinite(high)):
                raise SagecacheError(
                    "its values are not all finite numbers",
                    file=file,
                    record=name,
                    fix="Download the file anew, or take an earlier checkpoint of the training.",
                )


def load_geometry_net() -> GeometryNet:
    """The committed geometry teacher, in eval mode."""
    return fill(GeometryNet(), load_weights("geometry"), weights_path("geometry"))


def load_person_detector() -> PersonDetector:
    """The committed detector, in eval mode."""
    return fill(PersonDetector(), load_weights("detector"), weights_path("detector"))
