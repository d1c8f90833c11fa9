"""Let mmpose 1.3.2 import and train on today's torch, numpy and setuptools.

``activate()`` comes before the first import of mmpose. It asks each shim whether the installed packages
still need it, imports mmpose, and takes every stand-in module away again: transformers and others decide
by ``find_spec("torchvision")`` what they may use, so a lasting fake would break them. Knows packages and
versions only, nothing of poses.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from sagecache.errors import SagecacheError
from sagecache.mm.shims import SHIMS, absent

MMPOSE_PINS = ("mmpose==1.3.2", "xtcocotools==1.14.3")
INSTALL = (
    "From a checkout: pip install torch==2.13.0 && pip install --no-deps -r requirements.lock. "
    f"Beside an installed sagecache: pip install --no-deps {' '.join(MMPOSE_PINS)}."
)


@dataclass(frozen=True)
class ShimStatus:
    name: str
    active: bool
    reason: str
    until: str


_lock = threading.RLock()
_active: dict[str, str] | None = None
_failure: SagecacheError | None = None


def activate() -> dict[str, str]:
    """Import mmpose so that it works; returns {shim: reason} of those in use.

    Cheap after the first call. Raises SagecacheError where mmpose is missing, can't be imported, or was
    imported before (its heads then hold the unpatched names).
    """
    global _active, _failure
    with _lock:
        if _failure is not None:
            raise _failure  # a second try would fail on registries that the first one half filled
        if _active is None:
            try:
                _active = _import_mmpose()
            except SagecacheError as error:
                _failure = error
                raise
            except Exception as error:
                message = f"mmpose can't be imported: {type(error).__name__}: {error}"
                _failure = SagecacheError(message, fix=INSTALL)
                raise _failure from error
        return dict(_active)


def shim_status() -> list[ShimStatus]:
    """Every shim, in use or not, in the order of application. Activates them."""
    active = activate()
    return [ShimStatus(shim.name, shim.name in active, shim.reason, shim.until) for shim in SHIMS]


def init_cpu_distributed() -> bool:
    """Join torchrun's process group over gloo on a machine without a GPU; True where that was done.

    Runner's own start calls ``torch.cuda.set_device``, which a CPU build lacks; it skips that step where a
    group exists. Call it before the Runner is built. Does nothing with a GPU or where a group exists.
    """
    if torch.cuda.is_available() or torch.distributed.is_initialized():
        return False
    torch.distributed.init_process_group("gloo")
    return True


def ddp_wrapper_cfg() -> dict[str, Any] | None:
    """Runner's ``model_wrapper_cfg``: its default with a GPU; on CPU no ``device_ids``, which DDP refuses."""
    if torch.cuda.is_available():
        return None
    return dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)


def _import_mmpose() -> dict[str, str]:
    if absent("mmpose"):
        raise SagecacheError("mmpose is not installed", fix=INSTALL)
    if "mmpose.models" in sys.modules:
        raise SagecacheError("mmpose was imported before its shims", fix="Import sagecache.mm.compat first.")
    active: dict[str, str] = {}
    # mmpose's and mmcv's own deprecations (torch.jit, pkg_resources): nobody here can act on them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("mmengine.runner")  # before any stand-in: it may import transformers
        _apply("before", active)
        with _standing_in(_apply("during", active)):
            importlib.import_module("mmpose.utils").register_all_modules(init_default_scope=False)
        _apply("after", active)
    return active


def _apply(stage: str, active: dict[str, str]) -> dict[str, ModuleType]:
    modules: dict[str, ModuleType] = {}
    for shim in SHIMS:
        stand_ins = shim.apply() if shim.stage == stage else None
        if stand_ins is not None:
            modules |= stand_ins
            active[shim.name] = shim.reason
    return modules


@contextmanager
def _standing_in(modules: dict[str, ModuleType]) -> Iterator[None]:
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
