"""What a frozen teacher promises: one call on upright crops, a spec, a fingerprint; and how axes turn.

Teachers know no files of a split, no boxes and no stores: uint8 crops in, float32 maps out, in the one
frame of the project (camera x right, y down, z away; normals face the camera, nz < 0; depth grows away).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sagecache.errors import SagecacheError, counted, nearest

T, R = TypeVar("T"), TypeVar("R")
FIELDS = {"depth": 1, "normal": 3, "mask": 1}  # channels of each output
DEPTH_KINDS = ("metric", "affine", "disparity")
_ONE_AT_A_TIME = threading.Lock()  # the number of threads is torch's own global
NO_DEVICE = "Set device='cpu' in data.py (or --device cpu), or install torch for CUDA."
PART = 4  # crops that one thread of a CPU takes through the network
# What turns a foreign normal into ours: the sign of each component.
NORMAL_AXES = {
    "opencv": (1.0, 1.0, 1.0),  # x right, y down, z away
    "opengl": (1.0, -1.0, -1.0),  # x right, y up, z towards the viewer
}


@dataclass(frozen=True)
class TeacherSpec:
    """What goes in and comes out.

    input_size, map_size: (width, height) of the crops and of the maps; map pixel i sees crop pixel
    (i + .5) * input / map - .5 (half-pixel centres).
    outputs: of 'depth', 'normal', 'mask'. depth_kind: 'metric'; 'affine' (true up to scale and offset, per
    instance); 'disparity' (inverse depth). unit: of the depth, for people to read.
    mask_from: how the mask comes about: 'network', 'threshold' or 'everything' (all ones: it says nothing).
    """

    name: str
    input_size: tuple[int, int]
    map_size: tuple[int, int]
    outputs: tuple[str, ...]
    depth_kind: str
    unit: str
    mask_from: str = "network"

    def __post_init__(self) -> None:
        unknown = [name for name in self.outputs if name not in FIELDS]
        if unknown or not self.outputs:
            raise SagecacheError(f"teacher outputs {self.outputs} are not of {tuple(FIELDS)}")
        (width, height), (across, down) = self.input_size, self.map_size
        if width * down != height * across:
            raise SagecacheError(
                f"teacher '{self.name}' has maps of {across}x{down} for crops of {width}x{height}: pixels "
                "that are not square, on which depth can't be compared with normals",
                fix="Give map_size the aspect of input_size.",
            )
        if self.depth_kind not in DEPTH_KINDS:
            raise SagecacheError(
                f"unknown depth_kind '{self.depth_kind}'", fix=nearest(self.depth_kind, DEPTH_KINDS)
            )

    def as_dict(self) -> dict[str, object]:
        """Plain values (lists, strings) for fingerprints and attributes."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


class Teacher(Protocol):
    """Frozen network of phase one."""

    spec: TeacherSpec

    def __call__(self, crops: np.ndarray) -> dict[str, Tensor]:
        """crops (B, H, W, 3) uint8 RGB of spec.input_size -> {output: (B, C, h, w)}, float, on any device.

        On a GPU it need not wait for the result: whoever copies the maps to the host does.
        'normal' is unit length, 'mask' a probability in [0, 1]. A crop whose result is not finite comes
        back as NaN for the caller to record; it is never silently repaired.
        """

    def fingerprint(self) -> dict[str, object]:
        """What decides the numbers, as plain JSON: hashes of weights, preprocessing; never a path."""


class Detector(Protocol):
    """Frozen person detector."""

    def __call__(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """RGB uint8 images of any sizes -> for each (boxes xyxy (n, 4), scores (n,)) float32, best first."""

    def fingerprint(self) -> dict[str, object]:
        """As Teacher.fingerprint."""


def check_crops(crops: np.ndarray, size: tuple[int, int]) -> None:
    """Raise SagecacheError unless crops are (B, H, W, 3) uint8 of size (width, height)."""
    want = (size[1], size[0], 3)
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != want:
        raise SagecacheError(
            f"a teacher takes uint8 crops (B, {want[0]}, {want[1]}, 3), it got {crops.shape} {crops.dtype}",
            fix="Cut the crops at the teacher's spec.input_size.",
        )


def known_device(name: str) -> torch.device:
    """A device by its name, whether it is here or not. Raises SagecacheError where that is no name of one."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise SagecacheError(f"unknown device '{name}'", fix="For example 'cpu' or 'cuda'.") from error


def usable_device(name: str) -> torch.device:
    """A device that can hold a network now: asked when one is loaded, as settings are read without a GPU too.

    Raises SagecacheError for a device that torch lacks or can't use.
    """
    device = known_device(name)
    told = None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        told = f"sees {counted(count, 'GPU')}, the first is cuda:0" if count else "sees none"
    else:
        try:
            torch.zeros(1, device=device).tolist()
        except (RuntimeError, AssertionError) as error:  # the second where torch was built without it
            told = f"can't use it: {str(error).strip().splitlines()[0]}"
    if told:
        raise SagecacheError(f"device '{name}' is asked for, and torch {told}", fix=NO_DEVICE)
    return device


def to_tensor(crops: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in 0..255; to a GPU by pinned memory, without waiting."""
    pixels = torch.from_numpy(np.ascontiguousarray(crops))
    if torch.device(device).type == "cuda":
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float()


def in_parts(
    run: Callable[[np.ndarray], dict[str, Tensor]], crops: np.ndarray, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """run(crops); on a CPU PART crops a thread, see `in_threads`."""
    if torch.device(device).type != "cpu" or len(crops) == 0:
        return run(crops)
    parts = in_threads(run, [crops[first : first + PART] for first in range(0, len(crops), PART)])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def in_threads(run: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """run of each item, in as many threads as torch has, each of them with torch to itself.

    A network whose layers are shared among threads rounds differently with their number, and a store would
    depend on who made it; it is also slower. run must be safe to call from several threads.
    """

    def alone(item: T) -> R:
        torch.set_num_threads(1)  # of this thread, and of those to come: hence set back below
        return run(item)

    with _ONE_AT_A_TIME:
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(alone, items))
        finally:
            torch.set_num_threads(threads)


def convert_normals(normals: Tensor, axes: str) -> Tensor:
    """Foreign camera axes -> ours, unit length. normals (B, 3, h, w); axes: a key of NORMAL_AXES.

    A zero vector (Sapiens writes none, but exported models may) becomes NaN: it has no direction.
    """
    if axes not in NORMAL_AXES:
        raise SagecacheError(f"unknown normal_axes '{axes}'", fix=nearest(axes, NORMAL_AXES))
    normals = normals * normals.new_tensor(NORMAL_AXES[axes]).view(3, 1, 1)
    return normals / normals.norm(dim=1, keepdim=True)


def mirror_maps(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps (B, C, h, w) of the mirror image, left for right: pixels move and nx changes sign."""
    sign = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    return {name: value.flip(3) * (sign if name == "normal" else 1) for name, value in maps.items()}


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> size (width, height), bilinear at half-pixel centres, antialiased where it shrinks."""
    if maps.shape[2:] == (size[1], size[0]):
        return maps
    return torch.nn.functional.interpolate(
        maps, size=(size[1], size[0]), mode="bilinear", align_corners=False, antialias=maps.shape[3] > size[0]
    )


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
