"""Any TorchScript file as a teacher: Sapiens-lite exports of depth, normals and segmentation, or your own.

A file takes (B, 3, H, W), RGB grey levels minus mean over std, and returns a map, or a tuple of maps. The
defaults are those of Sapiens-lite: crops of 768x1024, relative depth, its own mean and std.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sagecache.errors import SagecacheError
from sagecache.models.weight_files import refuse_placeholder
from sagecache.models.weights import check_finite
from sagecache.teachers.answers import AnswerSettings, NetworkTeacher
from sagecache.teachers.base import file_hash, usable_device
from sagecache.teachers.torchscript_code import refuse_files

GUESSES = {1: "depth", 3: "normal"}  # output by its channels; more may be classes, boxes or anything


@dataclass(frozen=True)
class TorchScriptSettings(AnswerSettings):
    """What a TorchScript file is; the other settings are those of AnswerSettings.

    files: output -> path, one file each ('depth', 'normal', 'mask'); or path and outputs: one file that
    returns a tuple in that order (for a single output a tensor will do).
    """

    files: dict[str, str] = field(default_factory=dict)
    path: str | None = None
    outputs: tuple[str, ...] = ()
    mean: tuple[float, float, float] = (123.5, 116.5, 103.5)
    std: tuple[float, float, float] = (58.5, 57.0, 57.5)

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.path):
            raise SagecacheError(
                "a TorchScript teacher needs either 'files' or 'path'", fix="Name one of them."
            )
        if bool(self.path) != bool(self.outputs):
            raise SagecacheError(
                "'path' needs 'outputs', and 'files' names its own",
                fix="For example path='net.pt2', outputs=('depth', 'normal').",
            )
        if len(set(self.outputs)) != len(self.outputs):
            raise SagecacheError(f"'outputs' names one twice: {', '.join(self.outputs)}")
        super().__post_init__()

    @property
    def returned(self) -> tuple[str, ...]:
        return tuple(self.files) or tuple(self.outputs)


class TorchScriptTeacher(NetworkTeacher):
    """Teacher over one or several TorchScript files; see TorchScriptSettings and NetworkTeacher.

    Raises SagecacheError for a missing file, and when called for one that is no TorchScript.
    """

    def __init__(self, settings: TorchScriptSettings) -> None:
        paths = {name: Path(path) for name, path in settings.files.items()} or {"all": Path(settings.path)}
        for path in paths.values():
            if not path.is_file():
                raise SagecacheError(
                    "TorchScript file not found", file=path, fix="Correct its path in data.py."
                )
        super().__init__(
            "torchscript", settings, paths, {name: file_hash(path) for name, path in paths.items()}
        )

    def load(self, output: str, path: Path) -> torch.jit.ScriptModule:
        return load_torchscript(path, self.settings.device)

    def unpack(self, answers: Mapping[str, object]) -> Mapping[str, object]:
        if "all" not in answers:
            return answers
        answer, outputs = answers["all"], self.settings.outputs
        parts = tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)
        if len(parts) != len(outputs):
            raise SagecacheError(
                f"the file returns {len(parts)} maps, 'outputs' names {len(outputs)}",
                file=self._paths["all"],
                fix="Name as many outputs as the file returns, in its order.",
            )
        return dict(zip(outputs, parts, strict=True))


def load_torchscript(path: Path, device: str) -> torch.jit.ScriptModule:
    """A TorchScript archive in evaluation mode. Raises SagecacheError for any other file, for a program that
    wants more than to calculate, and for parameters that are not finite (buffers may be: masks of attention).
    """
    place = usable_device(device)
    refuse_placeholder(path)
    refuse_files(path)
    try:
        with warnings.catch_warnings():
            # torch calls TorchScript old; it is nevertheless what Sapiens-lite and others ship.
            warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
            module = torch.jit.load(str(path), map_location=place).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SagecacheError(
            f"not a readable TorchScript file ({reason})",
            file=path,
            fix="Export it with torch.jit.trace or torch.jit.script; a checkpoint of weights does not run.",
        ) from error
    check_finite(dict(module.named_parameters()), path)
    return module


def returned_shapes(module: torch.jit.ScriptModule, path: Path, size: tuple[int, int]) -> tuple[object, ...]:
    """What a network returns for one black crop of size (width, height): shapes, names of other types.

    A tuple of one counts as what it holds. Raises SagecacheError where it fails.
    """
    weight = next((one for one in module.parameters() if one.is_floating_point()), torch.zeros(()))
    crop = torch.zeros(1, 3, size[1], size[0], dtype=weight.dtype, device=weight.device)
    try:
        with torch.inference_mode():
            answer = module(crop)
    except (RuntimeError, ValueError, torch.jit.Error) as error:  # the last is what a script raises itself
        reason = [line for line in str(error).strip().splitlines() if line.strip()][-1]
        raise SagecacheError(
            f"the network failed on a batch {tuple(crop.shape)}: {reason}",
            file=path,
            fix="Give the size that it was exported for: --size WxH.",
        ) from error
    parts = answer if isinstance(answer, (tuple, list)) else (answer,)
    return tuple(tuple(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__ for one in parts)


def outputs_by_channels(shapes: Sequence[object]) -> tuple[str, ...]:
    """'depth' for maps (1, 1, h, w) or (1, h, w), 'normal' for three channels; () where one is neither."""
    outputs = tuple(GUESSES.get(_channels(shape), "") for shape in shapes)
    return outputs if all(outputs) and len(set(outputs)) == len(outputs) else ()


def _channels(shape: object) -> int:
    """Of a map's shape; 0 of what is no map."""
    if not isinstance(shape, tuple) or len(shape) not in (3, 4):
        return 0
    return shape[1] if len(shape) == 4 else 1
