"""A teacher of the size of Sapiens-0.3B: a ViT with 24 layers, width 1024, 16 heads, patches of 16 pixels.

Random weights and a linear dense head: its maps mean nothing, its cost is that of the real one. (Sapiens'
heads are convolutional and cost more; what is measured with this one favours the online side.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sagecache.teachers.base import TeacherSpec, check_crops, to_tensor

PATCH, WIDTH, LAYERS, HEADS, CHANNELS = 16, 1024, 24, 16, 5  # channels: depth, normal, mask


class Block(nn.Module):
    """Pre-norm attention and a four times wider MLP (Dosovitskiy et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, HEADS, WIDTH // HEADS)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))  # (B, heads, T, d)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.mlp(self.norm2(x))


class DenseViT(nn.Module):
    """(B, 3, H, W) -> (B, 5, H, W), sides multiples of 16; a learned position for each patch."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        width, height = size
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, width * height // PATCH**2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHANNELS * PATCH**2)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images)  # (B, C, h, w)
        x = self.blocks(patches.flatten(2).transpose(1, 2) + self.position)
        maps = self.head(self.norm(x)).transpose(1, 2).unflatten(2, patches.shape[2:])
        return F.pixel_shuffle(maps, PATCH)


class VitTeacher:
    """The network as a teacher with maps of its input's size; mask: an ellipse with the network's ripples."""

    def __init__(self, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        self.spec = TeacherSpec(
            name="vit-large-random",
            input_size=size,
            map_size=size,
            outputs=("depth", "normal", "mask"),
            depth_kind="affine",
            unit="none",
        )
        self.net = DenseViT(size).eval()
        x, y = torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1])
        self._ellipse = 8 * (0.5 - x.square() - y.square()[:, None])

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> dict[str, Tensor]:
        check_crops(crops, self.spec.input_size)
        maps = self.net(to_tensor(crops) / 255)
        normals = torch.cat([maps[:, 1:3], -1 - maps[:, 3:4].abs()], 1)
        return {
            "depth": maps[:, :1],
            "normal": normals * normals.square().sum(1, keepdim=True).rsqrt(),
            "mask": (self._ellipse + 0.1 * maps[:, 4:]).sigmoid(),
        }

    def fingerprint(self) -> dict[str, object]:
        return dict(spec=self.spec.as_dict(), weights="random, seed 0")


def flops(size: tuple[int, int]) -> int:
    """Floating-point operations (a multiply-add is two) of one image; nothing is computed."""
    with torch.device("meta"):
        net, image = DenseViT(size), torch.empty(1, 3, size[1], size[0])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    return counter.get_total_flops()
