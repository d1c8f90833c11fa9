"""A small network in TorchScript, and teachers of such files, for tests."""

from __future__ import annotations

from torch import Tensor, nn

from sagecache.teachers.registry import build_teacher

SIZE = dict(input_size=(12, 16), map_size=(12, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Red(nn.Module):
    """Depth = the red channel as the file sees it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


def build(**config):
    return build_teacher(dict(type="torchscript", **{**SIZE, **config}))
