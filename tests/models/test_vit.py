"""The ViT against transformers' VitPose backbone and slow arithmetic; freezing, checkpointing, sizes."""

import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.models.public_weights import from_public
from sagecache.models.vit import ARCHS, VisionTransformer, arch_of, arch_of_state, resize_pos_embed

TINY = dict(embed_dims=24, num_layers=3, num_heads=4, feedforward_channels=96)


def tiny(**options):
    torch.manual_seed(0)
    net = VisionTransformer(TINY, **{"img_size": (64, 48), **options})
    with torch.no_grad():
        for parameter in net.parameters():  # far from the start, where every block is nearly the identity
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()


def images(height=64, width=48):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_equals_the_backbone_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.VitPoseBackboneConfig(
        image_size=(64, 48),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        layer_norm_eps=1e-6,
        initializer_range=0.3,
    )
    theirs = transformers.VitPoseBackbone(config).eval()
    state, _ = from_public({f"backbone.{name}": value for name, value in theirs.state_dict().items()})
    ours = tiny()
    ours.load_state_dict({name.removeprefix("backbone."): value for name, value in state.items()})
    with torch.no_grad():
        want = theirs(images()).feature_maps[-1]  # tokens (B, N, C)
        got = ours(images())
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHS)
def test_parameters_are_as_many_as_arithmetic_says(name):
    """12 C^2 and 13 C a block (its biases and norms), 768 C and C the patches, 2 C the last norm."""
    with torch.device("meta"):
        net = VisionTransformer(name, img_size=(256, 192))
    width, depth = ARCHS[name].embed_dims, ARCHS[name].num_layers
    blocks = depth * (12 * width**2 + 13 * width)
    assert (
        sum(p.numel() for p in net.parameters()) == blocks + 768 * width + width + 16 * 12 * width + 2 * width
    )


@pytest.mark.parametrize(("padding", "shift"), [(2, 2), (0, 0)])
def test_a_token_sees_its_own_patch(padding, shift):
    """Token (i, j) looks at pixels 16 i - padding to 16 i + 15 - padding, and at no others."""
    net = tiny(padding=padding)
    seen = torch.zeros(1, 3, 64, 48, requires_grad=True)
    net.patch_embed.projection(seen)[0, :, 1, 1].sum().backward()
    rows, columns = seen.grad[0].abs().sum(0).nonzero().T
    assert (rows.min(), rows.max()) == (16 - shift, 31 - shift)
    assert (columns.min(), columns.max()) == (16 - shift, 31 - shift)


def test_another_size_gets_other_positions_and_the_own_size_keeps_them():
    net = tiny()
    assert net(images(128, 96)).shape == (2, 24, 8, 6)
    same = resize_pos_embed(net.pos_embed, (4, 3), (4, 3))
    assert same is net.pos_embed
    plane = torch.linspace(0, 1, 8).view(1, 1, 8, 1).expand(1, 2, 8, 6).flatten(2).transpose(1, 2)
    grown = resize_pos_embed(plane, (8, 6), (16, 12)).transpose(1, 2).view(1, 2, 16, 12)
    want = ((torch.arange(16) + 0.5) / 2 - 0.5) / 7  # half-pixel centres; a cell off would be .07
    torch.testing.assert_close(grown[0, 0, 3:-3, 0], want[3:-3], atol=0.01, rtol=0)


def test_checkpointing_gives_the_same_gradients():
    plain, saving = tiny(), tiny(with_cp=True)
    for net in (plain, saving):
        net.train()
        net(images()).square().mean().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 3])
def test_frozen_blocks_get_no_gradient_and_the_others_do(frozen_stages):
    net = tiny(frozen_stages=frozen_stages, drop_path_rate=0.5).train()
    net(images()).square().mean().backward()
    trained = {name for name, p in net.named_parameters() if p.grad is not None}
    blocks = {int(name.split(".")[1]) for name in trained if name.startswith("layers.")}
    assert blocks == set(range(max(frozen_stages, 0), 3))
    assert ("pos_embed" in trained, "ln1.weight" in trained) == (frozen_stages < 0, True)
    assert [block.training for block in net.layers] == [n >= frozen_stages for n in range(3)]


def test_dropped_paths_keep_their_mean_and_are_whole_samples():
    block = tiny(drop_path_rate=0.5).layers[-1].train()
    torch.manual_seed(0)
    dropped = block._dropped(torch.ones(4000, 5, 2))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped.flatten(1).std(1) == 0).all()
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert (block.eval()._dropped(torch.ones(4, 5, 2)) == 1).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(arch="sapiens_0.5b"), "sapiens_0.6b"),
        (dict(arch=dict(embed_dims=24)), "arch is"),
        (dict(arch=TINY | dict(num_heads=5)), "5 heads"),
        (dict(arch=TINY, img_size=(250, 192)), "multiples of 16"),
        (dict(arch=TINY, frozen_stages=4), "3 blocks"),
    ],
)
def test_what_can_not_be_is_told(options, told):
    with pytest.raises(SagecacheError, match=told):
        VisionTransformer(**options)


def test_names_of_mmpretrain_are_known():
    assert arch_of("base") == arch_of("b") == ARCHS["vitpose_b"]
    assert arch_of("Sapiens_0.6b") == ARCHS["vitpose_h"]  # the same width and depth


def test_blocks_run_without_gaps_from_the_first():
    state = {f"backbone.{name}": value for name, value in VisionTransformer(TINY).state_dict().items()}
    assert arch_of_state(state).num_layers == 3
    lost = {name: value for name, value in state.items() if ".layers.1." not in name}
    with pytest.raises(SagecacheError, match="there is a block 2 and no block 1"):
        arch_of_state(lost)
    name = "backbone.patch_embed.projection.weight"
    with pytest.raises(SagecacheError, match=rf"{name}: its shape is \(\), expected 4 dimensions"):
        arch_of_state(state | {name: torch.tensor(1.0)})
