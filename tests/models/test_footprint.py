"""Bytes kept for the backward pass: equal to what a real pass keeps, and to arithmetic for two layers."""

import pytest
import torch
from torch import nn

from sagecache.models.convnet import PoseNet
from sagecache.models.footprint import footprint
from sagecache.models.vit import VisionTransformer

TINY = dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=256)


def really_kept(net, images, amp):
    own, kept = {p.untyped_storage()._cdata for p in net.parameters()}, {}

    def keep(value):
        if value.untyped_storage()._cdata not in own:
            kept[value.untyped_storage()._cdata] = (value.untyped_storage().nbytes(), value)
        return value

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=amp):
        net(images)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda: VisionTransformer(TINY, (64, 48)),
        lambda: VisionTransformer(TINY, (64, 48), with_cp=True),
        lambda: VisionTransformer(TINY, (64, 48), frozen_stages=2),
        PoseNet,
    ],
    ids=["vit", "checkpointed", "frozen", "convnet"],
)
def test_is_what_a_real_pass_keeps(build, amp):
    shape = (2, 3, 64, 48)
    want = really_kept(build().train(), torch.randn(shape), amp)
    assert footprint(build, shape, amp).saved == pytest.approx(
        want, rel=0.005
    )  # batch norms keep a little less


def test_a_linear_layer_keeps_its_input_and_a_relu_its_output():
    def build():
        return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))

    found = footprint(build, (7, 10))
    assert (found.parameters, found.saved) == (10 * 20 + 20 + 20 * 5 + 5, 4 * 7 * (10 + 20))
    assert found.widest == 4 * 7 * (20 + 20)  # the ReLU's


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_operations_of_a_vit_are_those_of_its_formula(with_cp, amp):
    """Vaswani et al. 2017: projections, attention and feed-forward, two operations a multiplication."""
    images, tokens, dims, wide = 2, 12, 64, 256
    block = 2 * tokens * dims * (3 * dims + dims + 2 * wide) + 2 * 2 * tokens**2 * dims
    found = footprint(lambda: VisionTransformer(TINY, (64, 48), with_cp=with_cp), (images, 3, 64, 48), amp)
    assert found.flops == images * (2 * tokens * 3 * 16**2 * dims + 3 * block)


def test_frozen_parameters_are_counted_apart():
    found = footprint(lambda: VisionTransformer(TINY, (64, 48), frozen_stages=3), (1, 3, 64, 48))
    assert found.trained == 2 * 64 < found.parameters


def test_checkpointing_saves_and_the_largest_network_costs_no_memory():
    shape = (1, 3, 1024, 768)
    plain, saving = (
        footprint(lambda with_cp=with_cp: VisionTransformer("sapiens_2b", shape[2:], with_cp=with_cp), shape)
        for with_cp in (False, True)
    )
    assert 2.0e9 < plain.parameters < 2.3e9
    assert saving.saved < plain.saved / 10
