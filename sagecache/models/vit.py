"""The plain vision transformer of Sapiens and ViTPose: patches of 16, no class token, one map at stride 16.

One definition for frozen teachers and for students. Parameters have the names of mmpretrain's
VisionTransformer, in which Sapiens v1 and mmpose's ViTPose are published; other layouts are renamed in
``public_weights``. Knows no files and no mmengine.

Dosovitskiy et al. 2021 (ViT); Xu et al. 2022 (ViTPose); Khirodkar et al. 2024 (Sapiens).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sagecache.errors import SagecacheError, nearest

CHECK = "Check what the file is, and whether it arrived whole."


@dataclass(frozen=True)
class Arch:
    """Width of a token, blocks, attention heads, and width inside the MLP."""

    embed_dims: int
    num_layers: int
    num_heads: int
    feedforward_channels: int


def _arch(embed_dims: int, num_layers: int, num_heads: int) -> Arch:
    return Arch(embed_dims, num_layers, num_heads, 4 * embed_dims)


ARCHS = {
    "vitpose_s": _arch(384, 12, 12),
    "vitpose_b": _arch(768, 12, 12),
    "vitpose_l": _arch(1024, 24, 16),
    "vitpose_h": _arch(1280, 32, 16),
    "sapiens_0.3b": _arch(1024, 24, 16),
    "sapiens_0.6b": _arch(1280, 32, 16),
    "sapiens_1b": _arch(1536, 40, 24),
    "sapiens_2b": _arch(1920, 48, 32),
}
# mmpretrain's words, as mmpose's pages of ViTPose have them; its 'small' is another network than ViTPose-S.
ALIASES = {
    "b": "vitpose_b",
    "base": "vitpose_b",
    "l": "vitpose_l",
    "large": "vitpose_l",
    "h": "vitpose_h",
    "huge": "vitpose_h",
}


def arch_of(arch: str | Mapping[str, int] | Arch) -> Arch:
    """A name of ARCHS or ALIASES, or a dict of Arch's fields. Raises SagecacheError."""
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        name = ALIASES.get(arch.lower(), arch.lower())
        if name not in ARCHS:
            raise SagecacheError(f"unknown arch '{arch}'", fix=nearest(arch, [*ARCHS, *ALIASES]))
        return ARCHS[name]
    fields = Arch.__dataclass_fields__
    if not isinstance(arch, Mapping) or set(arch) != set(fields):
        raise SagecacheError(
            f"arch is {arch!r}", fix=f"Name one of {', '.join(ARCHS)}, or give {', '.join(fields)}."
        )
    return Arch(**arch)


def arch_of_state(state: Mapping[str, Tensor], prefix: str = "backbone.") -> Arch:
    """Width, blocks, heads and MLP of a ViT by its weights.

    Heads leave no trace: they are those of the published size, else one for each 64 channels.
    Raises SagecacheError where it is no ViT of this layout, and where a block between others is missing.
    """
    number = re.compile(re.escape(prefix) + r"layers\.(\d+)\.")
    blocks = {found.group(1) for name in state if (found := number.match(name))}
    patches = ranked(state, f"{prefix}patch_embed.projection.weight", 4)
    inner = ranked(state, f"{prefix}layers.0.ffn.layers.0.0.weight", 2)
    if not blocks or patches is None or inner is None:
        raise SagecacheError("it is no vision transformer of Sapiens' layout", fix=CHECK)
    # as many as there are, not up to the highest: one name must not ask for a million blocks
    if odd := blocks - {str(block) for block in range(len(blocks))}:
        gap = next(str(block) for block in range(len(blocks)) if str(block) not in blocks)
        name = min(odd, key=lambda one: (len(one), one))[:12]
        raise SagecacheError(
            f"there is a block {name} and no block {gap}", record=f"{prefix}layers", fix=CHECK
        )
    width, depth = patches.shape[0], len(blocks)
    sizes = {(arch.embed_dims, arch.num_layers): arch.num_heads for arch in ARCHS.values()}
    return Arch(width, depth, sizes.get((width, depth), max(width // 64, 1)), inner.shape[0])


def ranked(state: Mapping[str, Tensor], name: str, rank: int) -> Tensor | None:
    """A tensor of a state whose shape will be read; None where there is none of this name.

    Raises SagecacheError unless it has so many dimensions, none of them empty.
    """
    value = state.get(name)
    if value is not None and (value.ndim != rank or 0 in value.shape):
        raise SagecacheError(
            f"its shape is {tuple(value.shape)}, expected {rank} dimensions, none of them empty",
            record=name,
            fix=CHECK,
        )
    return value


class VisionTransformer(nn.Module):
    """images (B, 3, H, W), normalised -> (B, embed_dims, H / 16, W / 16), after the last layer norm.

    arch: see arch_of. img_size: (height, width) for which position embeddings are kept; images of another
    size get them resized. padding: of the patch embedding, in pixels: 2 in ViTPose and in Sapiens' pose,
    normal and segmentation networks, 0 in its depth network; the wrong one moves every feature by 2 pixels.
    drop_path_rate: of the last block, rising linearly from 0 (Huang et al. 2016).
    frozen_stages: -1 trains all; 0 freezes the embeddings, n > 0 the first n blocks as well.
    with_cp: blocks are computed again in the backward pass instead of kept.
    norm_eps: of every layer norm.
    """

    def __init__(
        self,
        arch: str | Mapping[str, int] | Arch,
        img_size: tuple[int, int] = (256, 192),
        patch_size: int = 16,
        padding: int = 2,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        arch = arch_of(arch)
        _check(arch, img_size, patch_size, frozen_stages)
        self.arch, self.patch_size, self.with_cp, self.frozen_stages = (
            arch,
            patch_size,
            with_cp,
            frozen_stages,
        )
        self.grid = tuple(_tokens(side, patch_size, padding) for side in img_size)
        self.patch_embed = PatchEmbed(arch.embed_dims, patch_size, padding)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], arch.embed_dims))
        rise = drop_path_rate / max(arch.num_layers - 1, 1)
        self.layers = nn.ModuleList(Block(arch, n * rise, norm_eps) for n in range(arch.num_layers))
        self.ln1 = nn.LayerNorm(arch.embed_dims, norm_eps)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_initialise)
        self._freeze()

    def forward(self, images: Tensor) -> Tensor:
        features = self.patch_embed.projection(images)  # (B, C, h, w)
        grid = tuple(features.shape[2:])
        tokens = features.flatten(2).transpose(1, 2) + resize_pos_embed(self.pos_embed, self.grid, grid)
        for block in self.layers:
            if self.with_cp and tokens.requires_grad:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.ln1(tokens).transpose(1, 2).reshape(features.shape)

    def train(self, mode: bool = True) -> VisionTransformer:
        """Frozen blocks stay as in evaluation: they drop no paths."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [self.patch_embed, *self.layers[: self.frozen_stages]] if self.frozen_stages >= 0 else []

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            self.pos_embed.requires_grad_(False)
        for part in self._frozen():
            part.requires_grad_(False)


class PatchEmbed(nn.Module):
    """A token for each patch: its ``projection`` alone, under the public name."""

    def __init__(self, embed_dims: int, patch_size: int, padding: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, embed_dims, patch_size, patch_size, padding)


class Block(nn.Module):
    """Attention, then an MLP, each after a layer norm and beside a shortcut; tokens (B, N, C)."""

    def __init__(self, arch: Arch, drop_path: float, norm_eps: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(arch.embed_dims, norm_eps)
        self.attn = Attention(arch.embed_dims, arch.num_heads)
        self.ln2 = nn.LayerNorm(arch.embed_dims, norm_eps)
        self.ffn = Mlp(arch.embed_dims, arch.feedforward_channels)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._dropped(self.attn(self.ln1(tokens)))
        return tokens + self._dropped(self.ffn(self.ln2(tokens)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Without the branch for some samples, scaled for the others, while training."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep).div_(keep)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.qkv(tokens).view(batch, count, 3, self.num_heads, width // self.num_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()  # each (B, heads, N, C / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    """Two linear layers around a GELU; nested as mmcv's FFN is, whose names the weights have."""

    def __init__(self, embed_dims: int, feedforward_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(embed_dims, feedforward_channels), nn.GELU()),
            nn.Linear(feedforward_channels, embed_dims),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Position embeddings (1, h * w, C) of one grid (h, w) for another: bicubic, in float32.

    As mmpretrain does it: half-pixel centres, no antialiasing.
    """
    if grid == to:
        return pos_embed
    # float32 stays float32 here under autocast, which the meta device, on which shapes are checked, has not
    maps = pos_embed.float().transpose(1, 2).reshape(1, -1, *grid)
    maps = F.interpolate(maps, size=to, mode="bicubic", align_corners=False)
    return maps.flatten(2).transpose(1, 2).to(pos_embed.dtype)


def _tokens(side: int, patch_size: int, padding: int) -> int:
    return (side + 2 * padding - patch_size) // patch_size + 1


def _check(arch: Arch, img_size: tuple[int, int], patch_size: int, frozen_stages: int) -> None:
    if len(img_size) != 2 or any(side % patch_size or side <= 0 for side in img_size):
        raise SagecacheError(
            f"img_size (height, width) is {tuple(img_size)}", fix=f"Give two multiples of {patch_size}."
        )
    if arch.embed_dims % arch.num_heads:
        raise SagecacheError(f"{arch.embed_dims} channels can't be shared by {arch.num_heads} heads")
    if not -1 <= frozen_stages <= arch.num_layers:
        raise SagecacheError(
            f"frozen_stages is {frozen_stages}, the network has {arch.num_layers} blocks",
            fix="Give -1 (all is trained) up to the number of blocks.",
        )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
