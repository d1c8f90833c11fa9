"""What a network needs in memory: without running it, by torch's fake tensors, or watched while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _attention(query: tuple, key: tuple, value: tuple, *_args: object, **_kwargs: object) -> int:
    return sdpa_flop_count(query, key, value)


# torch counts attention by its GPU kernels; fake tensors lie on a CPU, whose kernel it leaves out.
ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@dataclass(frozen=True)
class Footprint:
    """parameters: numbers, trained ones apart. saved: bytes that a forward pass keeps for its backward pass;
    a buffer that two layers keep counts once, parameters not at all, casts of them under autocast do.
    widest: bytes of what goes in and out of the layer with most of it: what a pass without gradients needs.
    flops: floating-point operations of a forward pass (a multiplication and an addition are two), of
    convolutions, matrix products and attention.
    """

    parameters: int
    trained: int
    saved: int
    widest: int
    flops: int


def footprint(
    build: Callable[[], nn.Module], shape: tuple[int, ...], amp: bool = False, train: bool = True
) -> Footprint:
    """Of the network that build() makes, for a float32 input (B, C, H, W) on one device.

    amp: under bfloat16 autocast. train: in training mode, else in evaluation mode with gradients.
    What torch keeps on a CPU is counted; what a GPU's kernels keep may differ and was not measured.
    """
    with torch.device("meta"):
        net = build()
    net.train(train)
    with FakeTensorMode(allow_non_fake_inputs=True):
        net.to_empty(device="cpu")
        own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
        kept: dict[int, tuple[int, Tensor]] = {}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = (storage.nbytes(), value)  # held, or its address would be used again
            return value

        through = [0]

        def measure(_: nn.Module, inputs: tuple, output: object) -> None:
            through.append(sum(one.nbytes for one in (*inputs, output) if isinstance(one, Tensor)))

        for module in net.modules():
            if next(module.children(), None) is None:
                module.register_forward_hook(measure)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
        counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
        with counter, hooks, torch.autocast("cpu", torch.bfloat16, enabled=amp):
            net(torch.empty(shape))
        parameters = list(net.parameters())
    return Footprint(
        sum(one.numel() for one in parameters),
        sum(one.numel() for one in parameters if one.requires_grad),
        sum(size for size, _ in kept.values()),
        max(through),
        counter.get_total_flops(),
    )


class _Widest(TorchDispatchMode):
    """bytes: the most that goes in and out of one operation, weights left out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._own = {parameter.data_ptr() for parameter in net.parameters()}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ARG002 (torch's signature)
        answer = function(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, answer)) if isinstance(one, Tensor)]
        self.bytes = max(self.bytes, sum(one.nbytes for one in tensors if one.data_ptr() not in self._own))
        return answer


@torch.inference_mode()
def run_watched(net: nn.Module, images: Tensor) -> tuple[object, int]:
    """(what any network, TorchScript too, answers; bytes of what goes in and out of its widest operation)."""
    with _Widest(net) as watch:
        answer = net(images)
    return answer, watch.bytes
