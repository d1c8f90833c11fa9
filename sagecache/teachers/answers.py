"""From what a network of others answers to the project's maps: one page for every kind of weight file.

A teacher's files give raw maps (B, C, h, w) of crops; here stand the settings that say how to read them, and
the code that does: sizes, axes, direction of depth, masks. How a file becomes a network is another page's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.disparity import depth_from_disparity
from sagecache.models.convnet import PIXEL_MEAN, PIXEL_STD
from sagecache.strict import positive
from sagecache.teachers.base import (
    DEPTH_KINDS,
    FIELDS,
    NORMAL_AXES,
    TeacherSpec,
    check_crops,
    convert_normals,
    in_parts,
    known_device,
    resize_maps,
    to_tensor,
    usable_device,
)

PRECISIONS = ("as_exported", "bfloat16")
MASK_RULES = ("network", "threshold", "everything")
PLACES = ("files", "path", "device")  # never part of a fingerprint


@dataclass(frozen=True)
class AnswerSettings:
    """How to ask a network of others and how to read its answers.

    input_size, map_size: (width, height). mean, std: RGB, grey levels of 0..255.
    depth_kind: 'metric' | 'affine' | 'disparity'. towards: True where the network's metric or affine depth
    grows towards the camera; it is negated. unit: of the depth. normal_axes: 'opencv' | 'opengl' (x right,
    y up, z to us).
    invert: a disparity beside which there are normals becomes affine depth (geometry.disparity); without
    normals, or with False, it stays one, with which CMGC can't compare.
    mask: 'network' (an output called 'mask': logits, one channel, or several with the background first),
    'threshold' (raw depth within mask_range) or 'everything' (all ones: it says nothing).
    precision: 'as_exported' or 'bfloat16' (weights and activations in bfloat16: other numbers, another
    fingerprint). device: where it runs; never part of the fingerprint.
    """

    input_size: tuple[int, int] = (768, 1024)
    map_size: tuple[int, int] = (192, 256)
    mean: tuple[float, float, float] = PIXEL_MEAN
    std: tuple[float, float, float] = PIXEL_STD
    depth_kind: str = "affine"
    towards: bool = False
    unit: str = "relative"
    normal_axes: str = "opencv"
    invert: bool = True
    mask: str = "everything"
    mask_range: tuple[float, float] | None = None
    precision: str = "as_exported"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.returned:
            if name not in FIELDS:
                raise SagecacheError(f"unknown output '{name}'", fix=nearest(name, FIELDS))
        for value, known in (
            (self.mask, MASK_RULES),
            (self.normal_axes, NORMAL_AXES),
            (self.depth_kind, DEPTH_KINDS),
            (self.precision, PRECISIONS),
        ):
            if value not in known:
                raise SagecacheError(f"unknown setting '{value}'", fix=nearest(value, known))
        if self.depth_kind == "disparity" and self.towards:
            raise SagecacheError(
                "a disparity always grows towards the camera, and towards=True would turn it round",
                fix="Leave 'towards' out.",
            )
        for name in ("std", "input_size", "map_size"):
            for value in getattr(self, name):
                positive(name, value)
        known_device(self.device)
        self._check_mask()

    def _check_mask(self) -> None:
        if (self.mask == "network") != ("mask" in self.returned):
            raise SagecacheError(
                f"mask is '{self.mask}' but the files give {', '.join(self.returned)}",
                fix="Use mask='network' exactly when one of the outputs is called 'mask'.",
            )
        if (self.mask == "threshold") != (self.mask_range is not None):
            raise SagecacheError("mask_range goes with mask='threshold'", fix="Give both or neither.")
        if self.mask_range is not None and not self.mask_range[0] < self.mask_range[1]:
            raise SagecacheError(f"mask_range is {self.mask_range}, it goes from low to high")
        if self.mask == "threshold" and "depth" not in self.returned:
            raise SagecacheError("mask='threshold' needs an output 'depth'")

    @property
    def returned(self) -> tuple[str, ...]:
        """Outputs of the files, before the mask is added."""
        raise NotImplementedError

    @property
    def inverts(self) -> bool:
        """Whether a disparity becomes depth."""
        return self.invert and self.depth_kind == "disparity" and {"depth", "normal"} <= set(self.returned)


class NetworkTeacher:
    """Teacher over one or several weight files; the kind of file is a subclass, which loads one.

    name: of the kind. hashes: {output: digest of what decides the file's numbers}. The networks are loaded at
    the first call: who only compares fingerprints pays for reading the files. Raises SagecacheError when
    called for a file that can't be loaded, and for outputs of the wrong shape.
    """

    def __init__(
        self, name: str, settings: AnswerSettings, paths: Mapping[str, Path], hashes: Mapping[str, str]
    ) -> None:
        self.settings, self._paths, self._hashes = settings, dict(paths), dict(hashes)
        self._adopted: dict[str, nn.Module] = {}
        with_mask = settings.returned if settings.mask == "network" else (*settings.returned, "mask")
        self.spec = TeacherSpec(
            name=name,
            input_size=tuple(settings.input_size),
            map_size=tuple(settings.map_size),
            outputs=tuple(name for name in FIELDS if name in with_mask),
            depth_kind="affine" if settings.inverts else settings.depth_kind,
            unit=settings.unit,
            mask_from=settings.mask,
        )

    def load(self, output: str, path: Path) -> nn.Module:
        """The network of one file, on settings.device, in evaluation mode. Raises SagecacheError."""
        raise NotImplementedError

    def adopt(self, networks: Mapping[str, nn.Module]) -> None:
        """Use networks of the files, as `load` gives them, that the caller has loaded already."""
        self._adopted = dict(networks)

    def unpack(self, answers: Mapping[str, object]) -> Mapping[str, object]:
        """{output: raw map} of {file's output: what the network returned}."""
        return answers

    def __call__(self, crops: np.ndarray) -> dict[str, Tensor]:
        check_crops(crops, self.spec.input_size)
        _ = self._modules  # loaded once, before threads ask for it
        return in_parts(self._maps, crops, self.settings.device)

    def fingerprint(self) -> dict[str, object]:
        """Hashes of the files' bytes and every setting but the paths and the device."""
        preprocessing = {key: value for key, value in asdict(self.settings).items() if key not in PLACES}
        if not self.settings.inverts:
            del preprocessing["invert"]  # decides nothing, and older stores don't know it
        preprocessing = {k: list(v) if isinstance(v, tuple) else v for k, v in preprocessing.items()}
        return dict(spec=self.spec.as_dict(), weights=dict(self._hashes), preprocessing=preprocessing)

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        usable_device(self.settings.device)  # before gigabytes are read
        modules = {
            name: self._adopted[name] if name in self._adopted else self.load(name, path)
            for name, path in self._paths.items()
        }
        if self.settings.precision == "bfloat16":
            modules = {name: module.to(torch.bfloat16) for name, module in modules.items()}
        return modules

    @torch.inference_mode()
    def _maps(self, crops: np.ndarray) -> dict[str, Tensor]:
        pixels = to_tensor(crops, self.settings.device)
        mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (self.settings.mean, self.settings.std))
        images = (pixels - mean) / std
        answers = self.unpack({name: self._answer(name, images) for name in self._modules})
        raw = {name: self._check(name, value, len(images)).float() for name, value in answers.items()}
        maps = {name: self._finish(name, value) for name, value in raw.items() if name != "mask"}
        maps["mask"] = resize_maps(self._mask(raw, maps), self.spec.map_size)
        if self.settings.inverts:
            maps["depth"] = depth_from_disparity(maps["depth"], maps["normal"], maps["mask"])
        return {name: maps[name] for name in self.spec.outputs}

    def _answer(self, name: str, images: Tensor) -> object:
        """What one file says, in the precision of its own weights."""
        module = self._modules[name]
        weight = next((p for p in module.parameters() if p.is_floating_point()), images)
        try:
            return module(images.to(weight.dtype))
        except (
            RuntimeError,
            ValueError,
            torch.jit.Error,
        ) as error:  # the last is what a script raises itself
            reason = [line for line in str(error).strip().splitlines() if line.strip()][-1]
            raise SagecacheError(
                f"the network failed on a batch {tuple(images.shape)}: {reason}",
                file=self._paths[name],
                fix="Check input_size, and that the file was exported for this device.",
            ) from error

    def _check(self, name: str, value: object, count: int) -> Tensor:
        """A tensor (count, C, h, w); (count, h, w) gets its channel."""
        if isinstance(value, (tuple, list)) and len(value) == 1:
            value = value[0]
        if isinstance(value, Tensor) and value.ndim == 3 and FIELDS[name] == 1:
            value = value[:, None]
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        right = isinstance(value, Tensor) and value.ndim == 4 and len(value) == count
        if not right or (name != "mask" and value.shape[1] != FIELDS[name]):
            raise SagecacheError(
                f"output '{name}' is {shape}, expected ({count}, {FIELDS[name]}, h, w)",
                file=self._paths.get(name, next(iter(self._paths.values()))),
                fix="Check 'files' or 'outputs', and that the file takes a batch.",
            )
        return value

    def _finish(self, name: str, value: Tensor) -> Tensor:
        """To map_size, our axes and our direction of depth."""
        value = resize_maps(value, self.spec.map_size)
        if name == "normal":
            return convert_normals(value, self.settings.normal_axes)
        return -value if self.settings.towards else value

    def _mask(self, raw: Mapping[str, Tensor], maps: Mapping[str, Tensor]) -> Tensor:
        if self.settings.mask == "network":
            logits = raw["mask"]
            return logits.sigmoid() if logits.shape[1] == 1 else 1 - logits.softmax(1)[:, :1]
        if self.settings.mask == "threshold":
            low, high = self.settings.mask_range
            return ((raw["depth"] >= low) & (raw["depth"] <= high)).float()
        return torch.ones_like(next(iter(maps.values()))[:, :1])
