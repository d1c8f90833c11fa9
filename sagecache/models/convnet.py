"""The three small networks of the demo project, from one residual block.

Plain torch modules on RGB images scaled to [0, 1] (GeometryNet, PersonDetector) or normalised by
PIXEL_MEAN and PIXEL_STD (PoseNet). They know nothing of files, crops, skeletons or mmpose.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ImageNet's RGB statistics, in grey levels of 0..255: inputs of PoseNet, mmpose's networks, Sapiens.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
MAX_SLOPE = 2.0


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, basic block); stride in the first."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        if channels_in == channels_out and stride == 1:
            self.shortcut = nn.Identity()
            nn.init.zeros_(self.norm2.weight)  # starts as the identity
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def cbr(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; keeps the size at stride 1."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


def standardise(images: Tensor) -> Tensor:
    """Remove each image's own mean colour and contrast, so that exposure and tint drop out.

    images (B, 3, H, W) in [0, 1] -> zero mean per channel, unit standard deviation over all channels
    (floored at .02: a blank image stays blank instead of becoming amplified noise).
    """
    centred = images - images.mean((2, 3), keepdim=True)
    return centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(0.02)


def _grow(x: Tensor, like: Tensor) -> Tensor:
    """Resize x bilinearly to the height and width of another map."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def _plane(slopes: Tensor, height: int, width: int) -> Tensor:
    """slopes (B, 2) along x and y -> planes (B, 1, height, width), zero in the middle, lengths in widths."""
    x = (torch.arange(width, device=slopes.device) + 0.5 - width / 2) / width
    y = (torch.arange(height, device=slopes.device) + 0.5 - height / 2) / width
    along_x, along_y = slopes[:, 0].view(-1, 1, 1, 1), slopes[:, 1].view(-1, 1, 1, 1)
    return along_x * x + along_y * y[:, None]


def _unit(vectors: Tensor) -> Tensor:
    """(B, 3, h, w) of length one; on CPUs 20 times as fast as F.normalize along channels."""
    return vectors * vectors.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()


def _relief_normals(relief: Tensor) -> Tensor:
    """Unit normals (B, 3, h, w) of a relief (B, 1, h, w) in map widths; steeper than MAX_SLOPE is a step."""
    padded = F.pad(relief, (1, 1, 1, 1), mode="replicate")
    along_x = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    along_y = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    slopes = (torch.cat([along_x, along_y], 1) * (relief.shape[3] / 2)).clamp(-MAX_SLOPE, MAX_SLOPE)
    return _unit(torch.cat([slopes, -torch.ones_like(relief)], 1))


class GeometryMaps(NamedTuple):
    """relief (B, 1, h, w): depth in crop widths, growing away from the camera, its constant is free.

    normals (B, 3, h, w): unit, camera axes (x right, y down, z away), facing the camera.
    person (B, 1, h, w): logit of the mask of the person whom the crop is centred on.
    """

    relief: Tensor
    normals: Tensor
    person: Tensor


class GeometryNet(nn.Module):
    """Relief, normals and mask of the person who fills an upright crop.

    images (B, 3, H, W) RGB in [0, 1], sides multiples of 32; trained at INPUT_SIZE.
    The normals head corrects the normals of the relief: that way they know the body's tilt.
    Returns GeometryMaps at stride STRIDE, at half-pixel centres: map pixel i sees crop pixel 4 i + 1.5.
    """

    INPUT_SIZE = (192, 256)  # width, height
    STRIDE = 4

    def __init__(self, channels: tuple[int, int, int, int] = (24, 48, 96, 144)) -> None:
        super().__init__()
        a, b, c, d = channels
        self.stem = cbr(3, a, 7, 4)
        self.down8 = Block(a, b, 2)
        self.down16 = nn.Sequential(Block(b, c, 2), Block(c, c))
        self.down32 = nn.Sequential(Block(c, d, 2), Block(d, d), Block(d, d))
        self.lateral16, self.merge16 = nn.Conv2d(d, c, 1), cbr(c, c)
        self.lateral8, self.merge8 = nn.Conv2d(c, b, 1), cbr(b, b)
        self.lateral4, self.merge4 = nn.Conv2d(b, a, 1), cbr(a, a)
        self.output = nn.Conv2d(a, 5, 3, 1, 1)
        # Most of a lying body's relief is one plane, which convolutions draw badly: a head for its slopes.
        self.survey = nn.Sequential(
            nn.Conv2d(d, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 3)), nn.Flatten()
        )
        self.slopes = nn.Sequential(nn.Linear(16 * 12, 64), nn.ReLU(), nn.Linear(64, 2))
        with torch.no_grad():  # starts flat and facing the camera
            self.slopes[2].weight.zero_()
            self.slopes[2].bias.zero_()
            self.output.weight.mul_(0.1)
            self.output.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -1.0, 0.0]))

    def forward(self, images: Tensor) -> GeometryMaps:
        at4 = self.stem(standardise(images))
        at8 = self.down8(at4)
        at16 = self.down16(at8)
        at32 = self.down32(at16)
        top = self.merge16(_grow(self.lateral16(at32), at16) + at16)
        top = self.merge8(_grow(self.lateral8(top), at8) + at8)
        top = self.merge4(_grow(self.lateral4(top), at4) + at4)
        out = self.output(top).float()
        relief = out[:, :1] + _plane(self.slopes(self.survey(at32)).float(), out.shape[2], out.shape[3])
        normals = _unit(out[:, 1:4] + _relief_normals(relief))
        return GeometryMaps(relief, normals, out[:, 4:])


class PersonDetector(nn.Module):
    """Persons as points (Zhou et al. 2019, CenterNet): a centre map and four distances to the box's sides.

    images (B, 3, 160, 160) RGB in [0, 1], letterboxed. Returns (B, 5, 40, 40): centre logit, then the
    logarithms of the distances left, top, right, bottom in cells of STRIDE pixels.
    """

    INPUT_SIZE = (160, 160)
    STRIDE = 4

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        c = width
        self.stem = cbr(3, 16, 3, 2)
        self.down4 = Block(16, c, 2)
        self.down8 = Block(c, 2 * c, 2)
        self.down16 = Block(2 * c, 3 * c, 2)
        self.down32 = nn.Sequential(Block(3 * c, 4 * c, 2), Block(4 * c, 4 * c))
        self.lateral4, self.lateral8 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 1)
        self.lateral16, self.lateral32 = nn.Conv2d(3 * c, 2 * c, 1), nn.Conv2d(4 * c, 2 * c, 1)
        self.merge8 = cbr(2 * c, 2 * c)
        self.merge4 = cbr(2 * c, 2 * c)
        self.output = nn.Conv2d(2 * c, 5, 1)
        with torch.no_grad():
            # centres are rare: start by saying no; boxes start at e^1.5 = 4.5 cells a side
            self.output.bias.copy_(torch.tensor([-4.0, 1.5, 1.5, 1.5, 1.5]))

    def forward(self, images: Tensor) -> Tensor:
        at4 = self.down4(self.stem(standardise(images)))
        at8 = self.down8(at4)
        at16 = self.down16(at8)
        top = self.lateral16(at16) + _grow(self.lateral32(self.down32(at16)), at16)
        top = self.merge8(self.lateral8(at8) + _grow(top, at8))
        return self.output(self.merge4(self.lateral4(at4) + _grow(top, at4)))


class PoseNet(nn.Module):
    """Backbone of the demo student: a small U-shaped network at stride 4.

    images (B, 3, H, W) RGB normalised by PIXEL_MEAN and PIXEL_STD, sides multiples of 16; trained at
    INPUT_SIZE. Returns a tuple of one map (B, out_channels, H / 4, W / 4), on which a 1x1 convolution
    to K logit maps is the whole head.
    """

    INPUT_SIZE = (96, 128)
    STRIDE = 4

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        c = width
        self.out_channels = c
        self.stem = nn.Sequential(cbr(3, c // 2, 3, 2), cbr(c // 2, c, 3, 2))
        self.stage4 = Block(c, c)
        self.stage8 = nn.Sequential(Block(c, 2 * c, 2), Block(2 * c, 2 * c))
        self.stage16 = nn.Sequential(Block(2 * c, 4 * c, 2), Block(4 * c, 4 * c), Block(4 * c, 4 * c))
        self.lateral16, self.merge8 = nn.Conv2d(4 * c, 2 * c, 1), cbr(2 * c, 2 * c)
        self.lateral8, self.merge4 = nn.Conv2d(2 * c, c, 1), cbr(c, c)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        at4 = self.stage4(self.stem(images))
        at8 = self.stage8(at4)
        top = self.merge8(_grow(self.lateral16(self.stage16(at8)), at8) + at8)
        return (self.merge4(_grow(self.lateral8(top), at4) + at4),)
