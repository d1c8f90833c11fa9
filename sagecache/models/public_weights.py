"""Public layouts of ViT weights, brought to the names of ``models.vit`` and mmpose's heads; and back.

Works on {name: tensor}, reads no file. Known layouts: mmpretrain's (Sapiens v1, mmpose's ViTPose: ours), that
of the first ViTPose repository (also timm's and MAE's), and Hugging Face VitPose. Mixtures of experts
(ViTPose+) become plain networks: one data set's expert is folded into the layer beside which it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from math import isqrt

import torch
from torch import Tensor

from sagecache.errors import SagecacheError
from sagecache.models.vit import CHECK, ranked, resize_pos_embed

State = Mapping[str, Tensor]
POSITIONS = "backbone.pos_embed"
EXPERT = 0  # of ViTPose+: COCO; then AIC, MPII, AP-10K, APT-36K, COCO-WholeBody
PUBLISHED = (4, 3)  # rows : columns of the tokens of every published pose network: 16x12, 48x36, 64x48
# Words that DistributedDataParallel and torch.compile put before every name.
WRAPPERS = ("module.", "_orig_mod.")
# Parts of a pretraining, of a classifier, and of ViTPose+'s other data sets: no pose network has them.
_LEFT_OUT = re.compile(
    r"(backbone\.)?(cls_token|mask_token|fc_norm\.|decoder_|head\.(weight|bias)$)|associate_keypoint_heads\."
)

# ours: theirs; # is a block's number. What a name goes on with stays as it is.
_ORIGINAL = {
    "backbone.patch_embed.projection": "backbone.patch_embed.proj",
    "backbone.layers.#.ln1": "backbone.blocks.#.norm1",
    "backbone.layers.#.attn": "backbone.blocks.#.attn",
    "backbone.layers.#.ln2": "backbone.blocks.#.norm2",
    "backbone.layers.#.ffn.layers.0.0": "backbone.blocks.#.mlp.fc1",
    "backbone.layers.#.ffn.layers.1": "backbone.blocks.#.mlp.fc2",
    "backbone.layers.#.ffn.experts": "backbone.blocks.#.mlp.experts",
    "backbone.ln1": "backbone.last_norm",
    "head": "keypoint_head",
}
_HUGGING_FACE = {
    "backbone.patch_embed.projection": "backbone.embeddings.patch_embeddings.projection",
    POSITIONS: "backbone.embeddings.position_embeddings",
    "backbone.layers.#.ln1": "backbone.encoder.layer.#.layernorm_before",
    "backbone.layers.#.attn.query": "backbone.encoder.layer.#.attention.attention.query",
    "backbone.layers.#.attn.key": "backbone.encoder.layer.#.attention.attention.key",
    "backbone.layers.#.attn.value": "backbone.encoder.layer.#.attention.attention.value",
    "backbone.layers.#.attn.proj": "backbone.encoder.layer.#.attention.output.dense",
    "backbone.layers.#.ln2": "backbone.encoder.layer.#.layernorm_after",
    "backbone.layers.#.ffn.layers.0.0": "backbone.encoder.layer.#.mlp.fc1",
    "backbone.layers.#.ffn.layers.1": "backbone.encoder.layer.#.mlp.fc2",
    "backbone.layers.#.ffn.experts": "backbone.encoder.layer.#.mlp.experts",
    "backbone.ln1": "backbone.layernorm",
    "head.deconv_layers.0": "head.deconv1",
    "head.deconv_layers.1": "head.batchnorm1",
    "head.deconv_layers.3": "head.deconv2",
    "head.deconv_layers.4": "head.batchnorm2",
    "head.final_layer": "head.conv",
}


def unwrapped(state: State) -> dict[str, Tensor]:
    """Without the word that a wrapper put before every single name, or before each network's."""
    state = dict(state)
    for _ in WRAPPERS:  # both at once: compiled, then distributed, or the other way round
        for wrapper in WRAPPERS:
            if state and all(key.startswith(wrapper) for key in state):
                state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def from_public(state: State) -> tuple[dict[str, Tensor], list[str]]:
    """A state under our names, whatever public layout it has, and what was done to it in words.

    A layout that nobody here knows comes back as it is: comparing it with a network tells what is wrong.
    Raises SagecacheError for tensors whose shapes can't be those of their names.
    """
    state = dict(state)
    if "backbone.embeddings.position_embeddings" in state:
        return _from_hugging_face(state)
    if "patch_embed.projection.weight" in state or "patch_embed.proj.weight" in state:  # a backbone alone
        state = {f"backbone.{name}": value for name, value in state.items()}
    if "backbone.patch_embed.proj.weight" in state:
        return _from_original(state)
    return _without_extras(state)


def to_hugging_face(state: State) -> dict[str, Tensor]:
    """Our names to those of transformers' VitPoseForPoseEstimation: q, k and v apart, one position more.

    The added one is zero: transformers adds it to each of the others.
    """
    state = dict(state)
    for name in [name for name in state if ".attn.qkv." in name]:
        for part, value in zip(("query", "key", "value"), state.pop(name).chunk(3), strict=True):
            state[name.replace("qkv", part)] = value.contiguous()
    positions = state[POSITIONS]
    state[POSITIONS] = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    return _renamed(state, dict(_HUGGING_FACE), to_ours=False)


def fit_positions(state: State, own: State, grid: tuple[int, int]) -> tuple[dict[str, Tensor], list[str]]:
    """The state with position embeddings for another network's grid (h, w), and what was done in words.

    Without a word where they fit already. The grid that they come from has the aspect of the new one, else it
    is a square (pretraining), else 4:3 as published, with or without a class token's position in front, which
    goes. Raises SagecacheError for any other count.
    """
    state, wanted = dict(state), own.get(POSITIONS)
    positions = ranked(state, POSITIONS, 3)
    if positions is None or wanted is None or positions.shape == wanted.shape:
        return state, []
    count = positions.shape[1]
    found, guessed = grid_of(count, grid), ""
    if found is None:
        found, guessed = grid_of(count, PUBLISHED), ", taken for a published grid of aspect 4:3"
    if found is None:
        aspect = f"{grid[0]}x{grid[1]} or 4x3"
        raise SagecacheError(
            f"{count} position embeddings are neither a square nor of the aspect of {aspect}",
            fix="Give model.py an img_size of the aspect that the file was trained with.",
        )
    source, extra = found
    state[POSITIONS] = resize_pos_embed(positions[:, extra:], source, grid)
    told = f"position embeddings resized from {source[0]}x{source[1]} to {grid[0]}x{grid[1]} tokens"
    told += guessed
    return state, [told] if source != grid else ["the class token's position is left out"]


def grid_of(count: int, like: tuple[int, int] = PUBLISHED) -> tuple[tuple[int, int], int] | None:
    """((h, w), extra): the grid that so many position embeddings are for, and those before it; None if none.

    Of the aspect of ``like`` (h, w), else square; extra: 1 where a class token's comes first.
    """
    return next(_grids(count, like), None)


def _grids(count: int, like: tuple[int, int]) -> Iterator[tuple[tuple[int, int], int]]:
    """((h, w), extra): grids of the aspect of ``like``, then squares, without and with an extra position."""
    for extra in (0, 1):
        cells = count - extra
        height = isqrt(cells * like[0] // like[1])
        # the second condition: of aspect 4:3, 27 cells would be 6 rows of 4.5
        if height and height * height * like[1] == cells * like[0] and cells % height == 0:
            yield (height, cells // height), extra
    for extra in (0, 1):
        side = isqrt(count - extra)
        if side and side * side == count - extra:
            yield (side, side), extra


def _from_hugging_face(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    state = _renamed(state, dict(_HUGGING_FACE), to_ours=True)
    for name in [name for name in state if ".attn.query." in name]:
        parts = [state.pop(name.replace("query", part), None) for part in ("query", "key", "value")]
        if all(part is not None for part in parts):
            joined = name.replace("query", "qkv")
            state[joined] = _joined(joined, parts)
    state, folded = _fold_experts(_sum_positions(state))
    return state, ["Hugging Face's names changed to mmpose's", "queries, keys and values joined", *folded]


def _from_original(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    names = dict(_ORIGINAL)
    if "backbone.last_norm.weight" not in state:
        names["backbone.ln1"] = "backbone.norm"  # timm's
    positions = ranked(state, POSITIONS, 3)
    if positions is not None and (
        "backbone.last_norm.weight" in state or isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1
    ):
        state = _sum_positions(state)
    state, dropped = _without_extras(state)
    state, folded = _fold_experts(_renamed(state, names, to_ours=True))
    return state, ["the names of the first ViTPose and of timm changed to mmpose's", *dropped, *folded]


def _without_extras(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A ViT's state without what belongs to other tasks; other networks may need what has these names."""
    if not any(name.startswith("backbone.patch_embed.") for name in state):
        return state, []
    extras = [name for name in state if _LEFT_OUT.match(name)]
    kept = {name: value for name, value in state.items() if name not in extras}
    return kept, [f"left out: {', '.join(extras)}"] if extras else []


def _sum_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ViTPose adds the class token's position to each of the others, and has no class token."""
    positions = ranked(state, POSITIONS, 3)
    if positions is None:
        return state
    return state | {POSITIONS: positions[:, 1:] + positions[:, :1]}


def _fold_experts(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """ViTPose+: the last channels of each MLP come from the expert of a data set; here EXPERT's for good."""
    chosen = f".ffn.experts.{EXPERT}."
    for name in [name for name in state if chosen in name]:
        shared = name.replace(chosen, ".ffn.layers.1.")
        if shared not in state:
            raise SagecacheError(
                f"an expert without what all experts share, '{shared}'", record=name, fix=CHECK
            )
        state[shared] = _joined(shared, [state[shared], state[name]])
    kept = {name: value for name, value in state.items() if ".ffn.experts." not in name}
    return kept, ["ViTPose+'s expert for COCO folded into its MLPs"] if len(kept) < len(state) else []


def _joined(name: str, parts: Sequence[Tensor]) -> Tensor:
    try:
        return torch.cat(list(parts))
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise SagecacheError(f"parts of {shapes} can't be joined", record=name, fix=CHECK) from error


def _renamed(state: dict[str, Tensor], names: dict[str, str], *, to_ours: bool) -> dict[str, Tensor]:
    pairs = [(theirs, ours) if to_ours else (ours, theirs) for ours, theirs in names.items()]

    def rename(name: str) -> str:
        for old, new in pairs:
            if match := _pattern(old).match(name):
                number = match.group(1) if "#" in old else ""
                return new.replace("#", number) + name[match.end() :]
        return name

    return {rename(name): value for name, value in state.items()}


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\#", r"(\d+)").replace("#", r"(\d+)") + r"(?=\.|$)")
