"""Tensors out of weight files of others: checkpoints, safetensors, Hugging Face folders. No code runs.

Pickles are loaded with weights only. What training frameworks leave beside the weights (mmengine's history,
numpy's scalars) becomes empty stand-ins, without importing whose it is; any other code is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sagecache.errors import SagecacheError

# Modules whose objects stand beside weights in public checkpoints. They become stand-ins all the same.
METADATA = (
    "argparse.",
    "collections.",
    "datetime.",
    "mmcv.",
    "mmengine.",
    "numpy.",
    "omegaconf.",
    "pathlib.",
    "pytorch_lightning.",
    "typing.",
    "yacs.",
    "_codecs.encode",
    "builtins.getattr",
    "__builtin__.getattr",
)
INDEX, SAFE, PICKLE = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
CONFIG = "config.json"
FIX = "Give a .pth with weights, a .safetensors, or a folder that save_pretrained wrote."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a file or of a Hugging Face folder, on the CPU, in the precision of the file.

    Of a checkpoint, what stands under 'state_dict', 'model' or 'module', if anything does.
    Raises SagecacheError for a missing, cut or foreign file, for a TorchScript archive, for a pickle that
    holds code, and for a file without tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise SagecacheError("no such checkpoint", file=path, fix=FIX)
    refuse_placeholder(path)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _state_of(_read_pickle(path), path)
    if not state:
        raise SagecacheError("holds no tensors", file=path, fix=FIX)
    return state


def refuse_placeholder(path: Path) -> None:
    """Raise SagecacheError for what a download leaves in the place of weights: nothing, a page, a pointer."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        raise SagecacheError("is empty", file=path, fix="Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise SagecacheError(
            "is Git LFS's pointer to the weights", file=path, fix="Run 'git lfs pull' there."
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SagecacheError(
            "is a web page, not weights", file=path, fix="Download the file that it is about."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder. Raises SagecacheError where there is none that can be read."""
    return read_json(Path(folder) / CONFIG)


def architectures(folder: Path) -> tuple[str, ...]:
    """What config.json of a Hugging Face folder names as its classes, () where it names none.

    Raises SagecacheError for anything but a list of names.
    """
    named = read_config(folder).get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise SagecacheError(
            f"'architectures' is {str(named)[:40]}, no list of names", file=Path(folder) / CONFIG, fix=FIX
        )
    return tuple(named)


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises SagecacheError for any other."""
    if not path.is_file():
        raise SagecacheError("no such file", file=path, fix=FIX)
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise SagecacheError(f"is no JSON: {error}", file=path, fix=FIX) from error
    if not isinstance(content, dict):
        raise SagecacheError("is no JSON object", file=path, fix=FIX)
    return content


class _StandIn:
    """Takes the place of an object of another package: accepts everything, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _read_pickle(path: Path) -> Any:
    foreign = _foreign_globals(path)
    code = [name for name in foreign if not name.startswith(METADATA)]
    if code:
        raise SagecacheError(
            f"its pickle asks for {', '.join(sorted(code)[:3])}: more than weights, so it is not loaded",
            file=path,
            fix="Take a file from its publisher, or save its state_dict anew as .safetensors.",
        )
    try:
        with torch.serialization.safe_globals(_stand_ins(foreign)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types on a cut or foreign file
        told = str(error).strip().split("\n")[0]
        raise SagecacheError(f"can't be read as a checkpoint: {told}", file=path, fix=FIX) from error


def _foreign_globals(path: Path) -> list[str]:
    """Names outside torch's own list that a pickle asks for, by reading it without running it."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError as error:
        if "torchscript" not in str(error):
            return []  # a file of torch < 1.6: weights_only judges it as it stands
        raise SagecacheError(
            "is a TorchScript file, no checkpoint",
            file=path,
            fix="Teachers take it: dict(type='torchscript', …). A student needs its checkpoint.",
        ) from error
    except Exception as error:
        told = str(error).strip().split("\n")[0]
        raise SagecacheError(f"can't be read as a checkpoint: {told}", file=path, fix=FIX) from error


def _stand_ins(names: Iterable[str]) -> list[tuple[type, str]]:
    return [(type("StandIn", (_StandIn,), {}), name) for name in names]


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        inner = (content.get(name) for name in ("state_dict", "model", "module"))
        content = next((one for one in inner if isinstance(one, Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SagecacheError(f"holds a {type(content).__name__}, no tensors by name", file=path, fix=FIX)
    if odd := [name for name in content if not isinstance(name, str)]:
        raise SagecacheError(f"names a tensor {odd[0]!r}, which is no string", file=path, fix=FIX)
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError and OSError, and ValueError for a dtype
        raise SagecacheError(f"can't be read as a checkpoint: {error}", file=path, fix=FIX) from error


def _read_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / SAFE).is_file():
        return read_tensors(folder / SAFE)
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, Mapping) or any(Path(str(name)).name != name for name in names.values()):
            raise SagecacheError("no 'weight_map' of file names", file=folder / INDEX, fix=FIX)
        parts = [read_tensors(folder / name) for name in sorted(set(names.values()))]
        return {name: value for part in parts for name, value in part.items()}
    if (folder / PICKLE).is_file():
        return read_tensors(folder / PICKLE)
    raise SagecacheError(f"holds none of {SAFE}, {INDEX} and {PICKLE}", file=folder, fix=FIX)
