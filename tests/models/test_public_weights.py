"""Public layouts: names go there and back, experts and class tokens are folded as their papers do it."""

import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.models.public_weights import fit_positions, from_public, to_hugging_face
from sagecache.models.vit import VisionTransformer, resize_pos_embed

TINY = dict(embed_dims=24, num_layers=2, num_heads=4, feedforward_channels=96)


def ours(img_size=(64, 48)):
    torch.manual_seed(0)
    state = {f"backbone.{k}": v for k, v in VisionTransformer(TINY, img_size=img_size).state_dict().items()}
    return state | {
        "head.final_layer.weight": torch.randn(17, 24, 1, 1),
        "head.final_layer.bias": torch.randn(17),
    }


def as_original(state):
    """The names of ViTAE-Transformer/ViTPose, by hand."""
    words = (
        ("patch_embed.projection", "patch_embed.proj"),
        ("layers.", "blocks."),
        (".ln1.", ".norm1."),
        (".ln2.", ".norm2."),
        ("ffn.blocks.0.0.", "mlp.fc1."),
        ("ffn.blocks.1.", "mlp.fc2."),
        ("backbone.norm1.", "backbone.last_norm."),
        ("head.", "keypoint_head."),
    )
    renamed = {}
    for name, value in state.items():
        for old, new in words:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name)


def test_our_own_names_stay():
    state, told = from_public(ours())
    same(state, ours())
    assert told == []


def test_a_network_that_is_no_vit_is_left_alone():
    state = {
        "backbone.conv1.weight": torch.zeros(3),
        "head.weight": torch.zeros(2),
        "cls_token": torch.zeros(1),
    }
    assert from_public(state) == (state, [])


def test_the_first_vitpose():
    """Its position embeddings have one more, which it adds to all others."""
    extra = torch.randn(1, 1, 24)
    public = as_original(ours())
    public["backbone.pos_embed"] = torch.cat([extra, ours()["backbone.pos_embed"] - extra], 1)
    state, told = from_public(public)
    same(state, ours())
    assert "mmpose's" in told[0]


def test_a_backbone_of_timm_with_its_class_token():
    square = {
        k.removeprefix("backbone."): v for k, v in as_original(ours((64, 64))).items() if "head" not in k
    }
    square["norm.weight"], square["norm.bias"] = square.pop("last_norm.weight"), square.pop("last_norm.bias")
    square["pos_embed"] = torch.cat([torch.zeros(1, 1, 24), square["pos_embed"]], 1)
    square |= {
        "cls_token": torch.zeros(1, 1, 24),
        "head.weight": torch.zeros(1000, 24),
        "head.bias": torch.zeros(1000),
    }
    state, told = from_public(square)
    same(state, {k: v for k, v in ours((64, 64)).items() if not k.startswith("head")})
    assert "cls_token" in told[1] and "head.weight" in told[1]


def test_hugging_face_and_back():
    there = to_hugging_face(ours())
    assert "backbone.encoder.layer.1.attention.attention.query.weight" in there
    assert there["backbone.embeddings.position_embeddings"].shape == (1, 13, 24)
    state, told = from_public(there)
    same(state, ours())
    assert "Hugging Face" in told[0]


def test_an_expert_is_the_last_channels_of_its_layer():
    """The first four channels of an MLP are shared here, the others come from the expert for COCO."""
    torch.manual_seed(0)
    there, want = to_hugging_face(ours()), ours()
    for layer in range(2):
        for kind in ("weight", "bias"):
            name = f"backbone.encoder.layer.{layer}.mlp"
            whole = there[f"{name}.fc2.{kind}"]
            there[f"{name}.fc2.{kind}"], there[f"{name}.experts.0.{kind}"] = whole[:4], whole[4:]
            there[f"{name}.experts.1.{kind}"] = torch.randn_like(whole[4:])
    state, told = from_public(there)
    same(state, want)
    assert "expert" in told[-1]


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("size", [(64, 64), (128, 96)])
def test_positions_of_a_square_or_of_the_same_aspect_are_resized(size, extra):
    state, own = ours(size), ours()
    grid = size[0] // 16, size[1] // 16
    positions = state["backbone.pos_embed"]
    state["backbone.pos_embed"] = torch.cat([torch.full((1, extra, 24), 9.0), positions], 1)
    fitted, (told,) = fit_positions(state, own, (4, 3))
    torch.testing.assert_close(fitted["backbone.pos_embed"], resize_pos_embed(positions, grid, (4, 3)))
    assert f"{grid[0]}x{grid[1]} to 4x3" in told


def test_positions_that_fit_are_not_touched():
    state, told = fit_positions(ours(), ours(), (4, 3))
    same(state, ours())
    assert told == []


def test_positions_of_an_unknown_grid_are_refused():
    with pytest.raises(SagecacheError, match="15 position embeddings"):
        fit_positions(ours() | {"backbone.pos_embed": torch.zeros(1, 15, 24)}, ours(), (4, 3))


@pytest.mark.parametrize("shape", [(), (24,), (1, 0, 24)])
@pytest.mark.parametrize("layout", [to_hugging_face, as_original])
def test_positions_that_are_none_are_told(layout, shape):
    state = layout(ours())
    (name,) = (name for name in state if "pos" in name)
    with pytest.raises(SagecacheError, match=r"backbone.pos_embed: its shape is \(.*expected 3 dimensions"):
        from_public(state | {name: torch.zeros(shape)})
    with pytest.raises(SagecacheError, match="expected 3 dimensions"):
        fit_positions(ours() | {"backbone.pos_embed": torch.zeros(shape)}, ours(), (4, 3))


def test_parts_that_can_not_be_joined_are_told():
    state = to_hugging_face(ours())
    name = "backbone.encoder.layer.1.attention.attention.key.weight"
    with pytest.raises(SagecacheError, match=r"layers.1.attn.qkv.weight: parts of .* can't be joined"):
        from_public(state | {name: torch.tensor(1.0)})
    lone = {"backbone.encoder.layer.9.mlp.experts.0.weight": torch.zeros(2)}
    with pytest.raises(SagecacheError, match="layers.9.ffn.experts.0.weight: an expert without"):
        from_public(state | lone)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("grid", [(4, 3), (16, 12)])
def test_published_positions_are_resized_for_an_image_of_any_aspect(grid, extra):
    """A square student from a pose network of 4:3: no count of theirs is a square."""
    state, square = ours((16 * grid[0], 16 * grid[1])), ours((64, 64))
    positions = state["backbone.pos_embed"]
    state["backbone.pos_embed"] = torch.cat([torch.full((1, extra, 24), 9.0), positions], 1)
    fitted, (told,) = fit_positions(state, square, (4, 4))
    torch.testing.assert_close(fitted["backbone.pos_embed"], resize_pos_embed(positions, grid, (4, 4)))
    assert told == (
        f"position embeddings resized from {grid[0]}x{grid[1]} to 4x4 tokens, "
        "taken for a published grid of aspect 4:3"
    )


@pytest.mark.parametrize("count", [3, 15, 24, 27])
def test_positions_that_fit_no_aspect_are_refused(count):
    state = ours() | {"backbone.pos_embed": torch.zeros(1, count, 24)}
    with pytest.raises(SagecacheError, match=f"{count} position embeddings are neither"):
        fit_positions(state, ours((64, 64)), (4, 4))
