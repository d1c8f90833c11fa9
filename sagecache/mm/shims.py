"""The repairs that mmpose 1.3.2 needs on today's torch, numpy and setuptools, one function each.

Each asks first whether the installed packages still need it. ``compat.activate`` applies them around the
import of mmpose; nothing here runs by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from sagecache.errors import SagecacheError

StandIns = dict[str, ModuleType]


@dataclass(frozen=True)
class Shim:
    """One repair. ``apply`` returns None where the installed packages don't need it and it steps aside; else
    it has patched in place, and returns stand-ins {module name: module} for the time of mmpose's import.
    """

    name: str
    stage: str  # 'before' | 'during' | 'after' the import of mmpose
    reason: str
    until: str
    apply: Callable[[], StandIns | None]


SHIMS: list[Shim] = []


def absent(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except (ImportError, ValueError):
        return True


def _raises(errors: tuple[type[Exception], ...], function: Callable, *args: Any) -> bool:
    try:
        function(*args)
    except errors:
        return True
    return False


def _shim(name: str, stage: str, until: str) -> Callable:
    """Add the decorated ``apply`` to SHIMS; the first line of its docstring is the reason."""

    def add(apply: Callable) -> Callable:
        SHIMS.append(Shim(name, stage, apply.__doc__.splitlines()[0].rstrip("."), until, apply))
        return apply

    return add


@_shim("torch.load", "before", until="mmengine stores plain numbers")
def _allow_history_buffers() -> StandIns | None:
    """torch loads weights only by default and refuses the history buffers in mmengine's checkpoints.

    Allows exactly those, buffers of numpy numbers; everything else stays refused.
    """
    if inspect.signature(torch.load).parameters["weights_only"].default is False:
        return None
    from mmengine.logging.history_buffer import HistoryBuffer

    def history_method(owner: type, name: str) -> Any:
        # A buffer pickles its table of methods as getattr(HistoryBuffer, "min"); the real getattr is a hole.
        if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
            raise ValueError(
                f"the checkpoint asks for {owner!r}.{name}, which is no part of a history buffer"
            )
        return getattr(owner, name)

    allowed: list[Any] = [HistoryBuffer, np.ndarray, np.dtype]
    for core in ("core", "_core"):  # numpy 1 and numpy 2 name the module differently
        for function in (np._core.multiarray._reconstruct, np._core.multiarray.scalar):
            allowed.append((function, f"numpy.{core}.multiarray.{function.__name__}"))
    allowed += [type(np.dtype(code)) for code in "e f d b h i l q B H I L Q ?".split()]
    allowed += [(history_method, f"{module}.getattr") for module in ("builtins", "__builtin__")]
    torch.serialization.add_safe_globals(allowed)
    return {}


@_shim("AmpOptimWrapper", "before", until="torch sees a GPU")
def _let_amp_run_on_cpu() -> StandIns | None:
    """mmengine asserts a GPU, though bfloat16 autocast works on CPU."""
    if torch.cuda.is_available():
        return None
    module = importlib.import_module("mmengine.optim.optimizer.amp_optimizer_wrapper")

    def no_scaler(**options: Any) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", **{**options, "enabled": False})  # bfloat16 needs no loss scaling

    module.is_cuda_available = lambda: True  # read by the constructor's assertion alone
    module.GradScaler = no_scaler
    return {}


@_shim("to_numpy", "before", until="mmpose casts to float32 itself")
def _cast_bfloat16() -> StandIns | None:
    """Heads compute their accuracy under autocast, and numpy has no bfloat16."""
    module = importlib.import_module("mmpose.utils.tensor_utils")
    original = module.to_numpy
    if not _raises((TypeError,), original, torch.zeros(1, dtype=torch.bfloat16)):
        return None

    def to_numpy(x: Any, return_device: bool = False, unzip: bool = False) -> Any:
        if isinstance(x, torch.Tensor) and x.dtype is torch.bfloat16:
            x = x.float()
        return original(x, return_device=return_device, unzip=unzip)

    module.to_numpy = to_numpy  # before mmpose.models, which imports it by name; lists recurse through it
    return {}


@_shim("xtcocotools._mask", "during", until="'import xtcocotools._mask' works")
def _pycocotools_mask() -> StandIns | None:
    """The wheel's C part is built for numpy 1; pycocotools compiles the same source."""
    broken = (ImportError, ValueError, AttributeError)  # "numpy.dtype size changed" is a ValueError
    if not _raises(broken, importlib.import_module, "xtcocotools._mask"):
        return None
    sys.modules.pop("xtcocotools._mask", None)
    return {"xtcocotools._mask": importlib.import_module("pycocotools._mask")}


@_shim("mmcv._ext", "during", until="the full mmcv is installed")
def _mmcv_operators() -> StandIns | None:
    """Two heads import mmcv.ops at once, and mmcv-lite has no operators."""
    if not absent("mmcv._ext"):
        return None
    extension = ModuleType("mmcv._ext")

    def operator(name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise SagecacheError(
                f"mmcv's operator '{name}' is not in mmcv-lite", fix="Install the full mmcv."
            )

        return missing

    extension.__getattr__ = operator  # PEP 562
    return {"mmcv._ext": extension}


@_shim("mmdet.utils", "during", until="mmdet is installed")
def _mmdet_names() -> StandIns | None:
    """rtmo_head imports two names from mmdet that mmpose has itself."""
    if not absent("mmdet"):
        return None
    from mmpose.utils import reduce_mean
    from mmpose.utils.typing import ConfigType

    mmdet, utils = ModuleType("mmdet"), ModuleType("mmdet.utils")
    mmdet.__path__, mmdet.utils = [], utils
    utils.ConfigType, utils.reduce_mean = ConfigType, reduce_mean
    return {"mmdet": mmdet, "mmdet.utils": utils}


@_shim("torchvision.transforms", "during", until="torchvision is installed")
def _torchvision_names() -> StandIns | None:
    """simcc_vis imports ToPILImage, and no CPU build of torchvision fits this torch."""
    if not absent("torchvision"):
        return None
    torchvision, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    torchvision.__path__, torchvision.transforms = [], transforms
    transforms.ToPILImage = _ToPILImage
    return {"torchvision": torchvision, "torchvision.transforms": transforms}


class _ToPILImage:
    """torchvision's, for what mmpose hands it: float tensors (H, W) or (C, H, W) in [0, 1]."""

    def __call__(self, picture: torch.Tensor) -> Image.Image:
        levels = picture.detach().cpu().float().mul(255).byte().numpy()
        levels = levels if levels.ndim == 2 else np.ascontiguousarray(levels.transpose(1, 2, 0))
        return Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels)


@_shim("draw_circles", "after", until="mmpose passes a plain number")
def _draw_circles_with_scalar_radius() -> StandIns | None:
    """numpy refuses int(array of one), which the OpenCV visualizer relies on."""
    if not _raises((TypeError,), int, np.ones(1)):
        return None
    from mmpose.visualization.opencv_backend_visualizer import OpencvBackendVisualizer

    original = OpencvBackendVisualizer.draw_circles

    def draw_circles(self: Any, center: Any, radius: Any, *args: Any, **kwargs: Any) -> Any:
        if self.backend == "opencv":
            radius = float(np.ravel(radius)[0])
        return original(self, center, radius, *args, **kwargs)

    OpencvBackendVisualizer.draw_circles = draw_circles
    return {}
