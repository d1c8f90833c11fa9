#!/usr/bin/env python
"""Export the demo geometry teacher as TorchScript files in the manner of Sapiens-lite.

    python tools/export_torchscript.py OUT

writes OUT/depth.pt2, OUT/normal.pt2 and OUT/mask.pt2, which the 'torchscript' teacher runs with the
settings that this prints. They take RGB grey levels minus MEAN over STD; normals are x right, y up, z to
the viewer. The files give the targets of dict(type='demo', flip_test=False): an example of the format, and
a test.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sagecache.models.convnet import GeometryNet  # noqa: E402
from sagecache.models.weights import load_geometry_net  # noqa: E402

MEAN = (123.5, 116.5, 103.5)
STD = (58.5, 57.0, 57.5)
OUTPUTS = ("depth", "normal", "mask")


class Export(nn.Module):
    """One output of the network behind Sapiens-lite's input normalisation."""

    def __init__(self, net: GeometryNet, output: str) -> None:
        super().__init__()
        self.net, self.output = net, output
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))
        self.register_buffer("up", torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        relief, normals, person = self.net((images * self.std + self.mean) / 255)
        if self.output == "depth":
            return relief - relief.mean((2, 3), keepdim=True)
        return normals * self.up if self.output == "normal" else person


def export(net: GeometryNet, folder: Path) -> dict[str, object]:
    """Write the three files; returns the config of the teacher that runs them."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = GeometryNet.INPUT_SIZE
    example = torch.zeros(2, 3, height, width)
    files = {output: str(folder / f"{output}.pt2") for output in OUTPUTS}
    for output, path in files.items():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
            traced = torch.jit.trace(Export(net, output).eval(), example, check_trace=False)
            torch.jit.save(traced, path)
    return dict(
        type="torchscript",
        files=files,
        input_size=(width, height),
        map_size=(width // GeometryNet.STRIDE, height // GeometryNet.STRIDE),
        mean=MEAN,
        std=STD,
        normal_axes="opengl",
        mask="network",
        unit="crop widths",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the demo geometry teacher as TorchScript files.")
    parser.add_argument("folder", type=Path)
    settings = export(load_geometry_net(), parser.parse_args().folder)
    print("teacher = dict(")
    for key, value in settings.items():
        print(f"    {key}={value!r},")
    print(")")


if __name__ == "__main__":
    main()
