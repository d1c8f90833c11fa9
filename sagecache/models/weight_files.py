"""Tensors out of weight files of others: checkpoints, safetensors, Hugging Face folders. No code runs.

Pickles are loaded with weights only. What training frameworks leave beside the weights (mmengine's history,
numpy's scalars) becomes empty stand-ins, without importing whose it is; any other code is refused by name.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
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
ANEW = "Take a file from its publisher, or save its state_dict anew as .safetensors."
SMALL = 2**24  # bytes that an expanded tensor may come to; it is no attack on memory
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # near the start of every file of torch < 1.6
_ASKED_FOR = re.compile(r"\bGLOBAL ([\w.]+)")  # in torch's words about code in a pickle


def read_tensors(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a file or of a Hugging Face folder, on the CPU, in the precision of the file.

    Of a checkpoint, what stands under 'state_dict', 'model' or 'module', if anything does.
    Raises SagecacheError for a missing, cut or foreign file, for a TorchScript archive, for a pickle that
    holds code, for a file without tensors, and for tensors that are sparse, quantised or without values.
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
    _check_plain(state, path)
    return state


def refuse_placeholder(path: Path) -> None:
    """Raise SagecacheError for what a download leaves in the place of weights: nothing, a page, a pointer."""
    if not path.is_file():
        raise SagecacheError("no such file", file=path, fix="Correct its path.")
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


def told_of_pickle(error: Exception) -> str | None:
    """torch's refusal of a pickle in our words, without its advice to run it; None of any other error."""
    told = str(error)
    if named := _ASKED_FOR.search(told):
        return _asks_for([named[1].rstrip(".")])
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in told:
        return "its pickle is not plain weights as torch.save writes them, so it is not loaded"
    return None


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
    _check_written_by_torch(path)
    foreign = _foreign_globals(path)
    code = [name for name in foreign if not name.startswith(METADATA)]
    if code:
        raise SagecacheError(_asks_for(code), file=path, fix=ANEW)
    try:
        with torch.serialization.safe_globals(_stand_ins(foreign)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types on a cut or foreign file
        raise _unreadable(error, path) from error


def _check_written_by_torch(path: Path) -> None:
    """Raise SagecacheError for what torch.load reads in no case, and would say so in a number."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK") or _LEGACY in start or zipfile.is_zipfile(path):
        return
    if start.startswith(b"\x80"):
        told = "is a pickle that torch.save did not write: it may hold code, so it is not loaded"
        raise SagecacheError(told, file=path, fix=ANEW)
    raise SagecacheError("is no checkpoint that torch.save or safetensors wrote", file=path, fix=FIX)


def _asks_for(code: Iterable[str]) -> str:
    return f"its pickle asks for {', '.join(sorted(code)[:3])}: more than weights, so it is not loaded"


def _unreadable(error: Exception, path: Path) -> SagecacheError:
    if told := told_of_pickle(error):
        return SagecacheError(told, file=path, fix=ANEW)
    first = str(error).strip().split("\n")[0]
    return SagecacheError(f"can't be read as a checkpoint: {first}", file=path, fix=FIX)


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
        raise _unreadable(error, path) from error


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


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise SagecacheError that names the first tensor which is not dense, or whose values the file lacks.

    A view of a storage will do where that has room for all of it: an expanded number asks for any memory.
    """
    for name, value in state.items():
        if value.layout != torch.strided or value.is_nested or value.is_quantized:
            kind = "quantised" if value.is_quantized else "nested" if value.is_nested else "sparse"
            told, fix = f"is {kind}, and weights are plain numbers", "Save it dense: to_dense, dequantize."
        elif value.device.type != "cpu":
            told, fix = f"has no values in the file (device '{value.device}')", "Take a whole file."
        elif (need := value.numel() * value.itemsize) > max(SMALL, held := value.untyped_storage().nbytes()):
            told = f"is {tuple(value.shape)}, {need} bytes, of which the file holds {held}"
            fix = "Save it whole: clone() it first."
        else:
            continue
        raise SagecacheError(told, file=path, record=name, fix=fix)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError and OSError, and ValueError for a dtype
        raise SagecacheError(f"can't be read as a checkpoint: {error}", file=path, fix=FIX) from error


def safetensors_of(folder: Path) -> list[Path]:
    """The safetensors of a Hugging Face folder that are its weights: one, or those of its index; variants may
    lie beside them. [] where it has none. Raises SagecacheError for an index of something else.
    """
    if (folder / SAFE).is_file():
        return [folder / SAFE]
    if not (folder / INDEX).is_file():
        return []
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, Mapping) or any(Path(str(name)).name != name for name in names.values()):
        raise SagecacheError("no 'weight_map' of file names", file=folder / INDEX, fix=FIX)
    return [folder / name for name in sorted(set(names.values()))]


def holds_weights(folder: Path) -> bool:
    """Whether a folder has weights under the names of Hugging Face."""
    return any((folder / name).is_file() for name in (SAFE, INDEX, PICKLE))


def _read_folder(folder: Path) -> dict[str, Tensor]:
    if files := safetensors_of(folder):
        return {name: value for file in files for name, value in read_tensors(file).items()}
    if (folder / PICKLE).is_file():
        return read_tensors(folder / PICKLE)
    raise SagecacheError(f"holds none of {SAFE}, {INDEX} and {PICKLE}", file=folder, fix=FIX)
