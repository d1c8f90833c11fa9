"""Committed weights: complete, small, half precision on disk, and exact about what fits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.models.convnet import GeometryNet, PersonDetector, PoseNet
from sagecache.models.weights import (
    NAMES,
    check_finite,
    check_floats,
    fill,
    load_geometry_net,
    load_person_detector,
    load_weights,
    read_weights,
    weights_path,
)


def test_files_are_half_on_disk_float_in_memory_and_small():
    for name in NAMES:
        stored = {v.dtype for v in load_file(weights_path(name)).values() if v.is_floating_point()}
        assert stored == {torch.float16}
        state = load_weights(name)
        assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
        assert all(v.isfinite().all() for v in state.values())
    assert sum(weights_path(name).stat().st_size for name in NAMES) < 8e6


def test_networks_load_and_are_frozen_in_eval_mode():
    assert isinstance(load_geometry_net(), GeometryNet) and not load_geometry_net().training
    assert isinstance(load_person_detector(), PersonDetector)


def test_student_has_mmpose_keys_of_pose_net_and_one_convolution():
    state = load_weights("student")
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    fill(PoseNet(), backbone)
    assert {k for k in state if not k.startswith("backbone.")} == {
        "head.final_layer.weight",
        "head.final_layer.bias",
    }
    assert state["head.final_layer.weight"].shape == (17, PoseNet().out_channels, 1, 1)


def test_unknown_name_lists_the_known():
    with pytest.raises(SagecacheError, match="did you mean 'geometry'"):
        load_weights("geometri")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("weight"), "missing weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update(bias=torch.zeros(5)), "bias is"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, told):
    net = nn.Linear(2, 3)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    change(state)
    with pytest.raises(SagecacheError, match=told):
        fill(net, state)


def test_unreadable_file_names_itself(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(SagecacheError, match="broken.safetensors"):
        read_weights(path)
    save_file({"a": torch.ones(2, dtype=torch.float16)}, path)
    assert read_weights(path)["a"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floats_are_refused_by_name(dtype):
    """Integers mean nothing without their scales; a count is one in the network too."""
    net = nn.BatchNorm2d(2)
    state = net.state_dict() | {"running_var": torch.ones(2, dtype=dtype)}
    name = str(dtype).removeprefix("torch.")
    told = f"^w.pth, running_var: is {name}, and the network's own is floating. Take"
    with pytest.raises(SagecacheError, match=told):
        fill(net, state, Path("w.pth"))
    with pytest.raises(SagecacheError, match=told):
        check_floats(state, net.state_dict(), Path("w.pth"))
    check_floats(state | {"running_var": torch.ones(2).half()}, net.state_dict())


def test_one_byte_floats_are_looked_at_too():
    check_finite({"w": torch.ones(2, dtype=torch.float8_e4m3fn)})
    with pytest.raises(SagecacheError, match="w: its values are not all finite"):
        check_finite({"w": torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_refused_by_name(value, dtype):
    state = {"count": torch.tensor(3), "empty": torch.ones(0), "weight": torch.ones(3, 2, dtype=dtype)}
    check_finite(state | {"most": torch.tensor(torch.finfo(dtype).max, dtype=dtype)})
    state["weight"][1, 1] = value
    with pytest.raises(SagecacheError, match="^w.pth, weight: its values are not all finite") as caught:
        check_finite(state, Path("w.pth"))
    assert caught.value.fix
    with pytest.raises(SagecacheError, match="bias: its values are not all finite"):
        fill(nn.Linear(2, 3), nn.Linear(2, 3).state_dict() | {"bias": torch.full((3,), value)})
