from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.mm.checkpoints import export_network, load_network, network_state


@pytest.fixture
def ours(tmp_path):
    path = tmp_path / "iter_1.pth"
    state = {
        "student.weight": torch.full((2, 3), 1.0),
        "student.bias": torch.zeros(2),
        "ema_teacher.weight": torch.full((2, 3), 2.0),
        "ema_teacher.bias": torch.zeros(2),
    }
    torch.save({"state_dict": state, "meta": {"iter": 1}}, path)
    return path


@pytest.mark.parametrize("network, value", [("student", 1.0), ("ema_teacher", 2.0)])
def test_each_network_of_our_checkpoint(ours, network, value):
    model = nn.Linear(3, 2)
    load_network(model, ours, network)
    assert (model.weight == value).all()


def test_half_precision_safetensors_load_as_float32(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.ones(2, 3).half(), "bias": torch.ones(2).half()}, path)
    model = nn.Linear(3, 2)
    load_network(model, path)
    assert model.weight.dtype == torch.float32 and (model.weight == 1).all()


def test_export_round_trips_as_plain_mmpose(ours, tmp_path):
    out = tmp_path / "plain.pth"
    export_network(ours, out, "ema_teacher")
    assert network_state(out, "student").keys() == {"weight", "bias"}
    model = nn.Linear(3, 2)
    load_network(model, out)
    assert (model.weight == 2).all()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_does_not_fit_is_listed(ours):
    with pytest.raises(SagecacheError, match=r"has misshapen 1 keys \(weight \(2, 3\) instead of \(2, 4\)"):
        load_network(nn.Linear(4, 2), ours)
    with pytest.raises(SagecacheError, match=r"has unknown 1 keys \(bias"):
        load_network(nn.Linear(3, 2, bias=False), ours)
    with pytest.raises(SagecacheError, match=r"lacks 2 keys"):
        load_network(nn.Sequential(nn.Linear(3, 2)), ours)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(SagecacheError, match="no such checkpoint"):
        network_state(tmp_path / "none.pth", "student")
    torn = tmp_path / "torn.pth"
    torn.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(SagecacheError, match="torn.pth: can't be read"):
        network_state(torn, "student")
