"""Watches what a function asks of torch: whether it does anything, and whether the host must wait."""

import torch
from torch.overrides import TorchFunctionMode

WAITING = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero"}
WAITING |= {"tensor", "as_tensor", "new_tensor", "masked_select", "unique", "equal", "inv"}
FREE = {"__get__", "_set_grad_enabled"}  # attributes, and no_grad


class Operations(TorchFunctionMode):
    """Names of the operations done inside, in order; an index that holds a mask counts as 'mask'."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ not in FREE:
            self.seen.append(function.__name__)
        if function.__name__ in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in index):
                self.seen.append("mask")
        return function(*args, **(kwargs or {}))

    @property
    def waiting(self) -> set[str]:
        """Those for which the host waits for the device, or copies to it from its own memory."""
        return set(self.seen) & (WAITING | {"mask"})
