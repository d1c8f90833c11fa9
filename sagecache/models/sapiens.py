"""Sapiens v1's depth, normal and segmentation networks under their public names: a ViT and a dense head.

In the head deconvolutions double the size, convolutions mix, and one more convolution gives the channels of
the answer (Khirodkar et al. 2024; layers as in its published source). Instance norms have no weights, hence
no names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.models.public_weights import fit_positions
from sagecache.models.vit import VisionTransformer, arch_of_state, ranked
from sagecache.models.weights import check_floats, fill


class SapiensNetwork(nn.Module):
    """images (B, 3, H, W), normalised -> maps (B, C, h, w): a backbone and its dense head."""

    def __init__(self, backbone: VisionTransformer, decode_head: DenseHead) -> None:
        super().__init__()
        self.backbone, self.decode_head = backbone, decode_head

    def forward(self, images: Tensor) -> Tensor:
        return self.decode_head(self.backbone(images))


def sapiens_network(state: Mapping[str, Tensor], img_size: tuple[int, int], padding: int) -> SapiensNetwork:
    """The network of a checkpoint's tensors for images of img_size (height, width), in evaluation mode.

    Every tensor is used and none is missing; they may be of any precision. Raises SagecacheError otherwise,
    and for integers.
    """
    state = {name: value for name, value in state.items() if not name.startswith("auxiliary_head.")}
    with torch.device("meta"):  # no time for first values that are replaced at once
        net = SapiensNetwork(
            VisionTransformer(arch_of_state(state), img_size, padding=padding), dense_head_of(state)
        )
    check_floats(state, net.state_dict())
    state, _ = fit_positions(state, net.state_dict(), net.backbone.grid)
    return fill(net.to_empty(device="cpu"), {name: value.float() for name, value in state.items()})


class DenseHead(nn.Module):
    """features (B, C, h, w) -> (B, out_channels, h * 2^n, w * 2^n), n deconvolutions of kernel 4.

    deconvs: channels of each; convs: (channels, kernel) of each.
    """

    def __init__(
        self, in_channels: int, deconvs: Sequence[int], convs: Sequence[tuple[int, int]], out_channels: int
    ) -> None:
        super().__init__()
        widths = [in_channels, *deconvs]
        self.deconv_layers = nn.Sequential(
            *(
                layer
                for before, after in pairwise(widths)
                for layer in _normed(nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), after)
            )
        )
        widths = [widths[-1], *(width for width, _ in convs)]
        self.conv_layers = nn.Sequential(
            *(
                layer
                for (before, after), (_, kernel) in zip(pairwise(widths), convs, strict=True)
                for layer in _normed(nn.Conv2d(before, after, kernel, padding=kernel // 2), after)
            )
        )
        self.conv_seg = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv_seg(self.conv_layers(self.deconv_layers(features)))


def dense_head_of(state: Mapping[str, Tensor], prefix: str = "decode_head.") -> DenseHead:
    """The head whose weights a state holds, by their names and shapes; with values of its own.

    Raises SagecacheError where its last layer is missing, or a deconvolution's kernel is not 4.
    """
    last = ranked(state, f"{prefix}conv_seg.weight", 4)
    if last is None:
        raise SagecacheError(
            f"no '{prefix}conv_seg.weight': it has no dense head",
            fix="Take a depth, normal or segmentation checkpoint.",
        )
    deconvs, convs = _weights(state, f"{prefix}deconv_layers."), _weights(state, f"{prefix}conv_layers.")
    if any(weight.shape[2:] != (4, 4) for weight in deconvs):
        raise SagecacheError(f"deconvolutions of {tuple(deconvs[0].shape[2:])}", fix="Sapiens' are 4x4.")
    in_channels = deconvs[0].shape[0] if deconvs else (convs[0] if convs else last).shape[1]
    return DenseHead(
        in_channels,
        [weight.shape[1] for weight in deconvs],
        [(weight.shape[0], weight.shape[2]) for weight in convs],
        last.shape[0],
    )


def _weights(state: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    """Weights of numbered layers, in their order."""
    found = {}
    for name in state:
        if match := re.fullmatch(re.escape(prefix) + r"(\d{1,9})\.weight", name):
            found[int(match.group(1))] = ranked(state, name, 4)
    return [found[number] for number in sorted(found)]


def _normed(convolution: nn.Module, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return convolution, nn.InstanceNorm2d(channels), nn.SiLU()
