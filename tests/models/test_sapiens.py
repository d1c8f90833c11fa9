"""Sapiens' dense networks from names and shapes alone; their numbers are tested with the teacher."""

import pytest
import torch
from public_networks import sapiens_state

from sagecache.errors import SagecacheError
from sagecache.models.sapiens import dense_head_of, sapiens_network


@pytest.mark.parametrize(("deconvs", "convs", "channels"), [(4, 2, 1), (3, 3, 3), (2, 0, 28)])
def test_a_head_is_built_as_its_weights_say(deconvs, convs, channels):
    state = sapiens_state((4, 3), deconvs, convs, channels)
    head = dense_head_of(state)
    own = {f"decode_head.{name}": value.shape for name, value in head.state_dict().items()}
    assert own == {name: value.shape for name, value in state.items() if name.startswith("decode_head.")}
    with torch.no_grad():
        assert head(torch.zeros(1, 64, 4, 3)).shape == (1, channels, 4 * 2**deconvs, 3 * 2**deconvs)


def test_a_network_takes_every_tensor_and_leaves_auxiliary_heads():
    state = sapiens_state((4, 3), 3, 3, 3) | {"auxiliary_head.conv.weight": torch.zeros(1)}
    net = sapiens_network(state, (64, 48), padding=2)
    assert not net.training and torch.equal(
        net.state_dict()["backbone.pos_embed"], state["backbone.pos_embed"]
    )


@pytest.mark.parametrize("name", ["backbone.layers.0.attn.qkv.weight", "backbone.pos_embed"])
def test_weights_of_any_precision_but_no_integers(name):
    state = sapiens_state((4, 3), 2, 0, 1)
    halves = sapiens_network({key: value.half() for key, value in state.items()}, (64, 48), padding=0)
    torch.testing.assert_close(halves.state_dict()[name], state[name].half().float(), rtol=0, atol=0)
    state[name] = state[name].to(torch.int8)
    for size in ((64, 48), (96, 64)):  # as it is, and with positions to resize
        with pytest.raises(SagecacheError, match=f"{name}: is int8, and the network's own is floating"):
            sapiens_network(state, size, padding=0)


def test_deconvolutions_of_another_kernel_are_refused():
    state = sapiens_state((4, 3), 1, 0, 1)
    state["decode_head.deconv_layers.0.weight"] = torch.zeros(64, 8, 3, 3)
    with pytest.raises(SagecacheError, match=r"deconvolutions of \(3, 3\)"):
        dense_head_of(state)


@pytest.mark.parametrize("name", ["conv_seg", "deconv_layers.0", "conv_layers.3"])
def test_weights_that_are_no_convolutions_are_named(name):
    state = sapiens_state((4, 3), 2, 2, 1) | {f"decode_head.{name}.weight": torch.tensor(1.0)}
    with pytest.raises(SagecacheError, match=rf"decode_head.{name}.weight: its shape is \(\), expected 4"):
        dense_head_of(state)
