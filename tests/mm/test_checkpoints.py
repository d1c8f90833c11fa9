from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.mm.checkpoints import (
    Resumable,
    load_backbone,
    load_network,
    network_state,
    newest_readable,
    save_network,
)


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


def test_values_that_are_not_finite_are_refused_in_what_is_used(tmp_path, ours):
    state = torch.load(ours)["state_dict"]
    state["student.weight"][0, 1] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    load_network(nn.Linear(3, 2), tmp_path / "w.pth", "ema_teacher")
    with pytest.raises(SagecacheError, match="w.pth, weight: its values are not all finite"):
        load_network(nn.Linear(3, 2), tmp_path / "w.pth", "student")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_floats_are_refused(tmp_path, dtype):
    torch.save({"weight": torch.ones(2, 3, dtype=dtype), "bias": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(SagecacheError, match="w.pth, weight: is (int8|complex64), and the network's own is"):
        load_network(nn.Linear(3, 2), tmp_path / "w.pth")
    with pytest.raises(
        SagecacheError, match="w.pth, backbone.weight: is (int8|complex64), and the network's"
    ):
        load_backbone(nn.Linear(3, 2), tmp_path / "w.pth")
    state = nn.BatchNorm2d(2).state_dict()
    torch.save(state | {"num_batches_tracked": torch.tensor(7, dtype=torch.int32)}, tmp_path / "n.pth")
    net = nn.BatchNorm2d(2)
    load_network(net, tmp_path / "n.pth")
    assert net.num_batches_tracked == 7


def test_a_value_too_large_for_the_network_is_refused(tmp_path):
    torch.save({"weight": torch.full((2, 3), 1e9), "bias": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(SagecacheError, match="w.pth, weight: its values are not all finite"):
        load_network(nn.Linear(3, 2).half(), tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_saved_network_comes_back_from_what_the_suffix_says(tmp_path, suffix):
    first, again, out = nn.Linear(3, 2), nn.Linear(3, 2), tmp_path / f"plain{suffix}"
    save_network(first, out)
    assert network_state(out, "student").keys() == {"weight", "bias"}
    load_network(again, out)
    assert torch.equal(first.weight, again.weight)
    if suffix == ".safetensors":
        assert torch.equal(load_file(out)["bias"], first.bias)


def test_a_network_that_the_file_lacks_is_refused(tmp_path):
    path = tmp_path / "half.pth"
    torch.save({"state_dict": {"student.weight": torch.ones(2, 3)}}, path)
    with pytest.raises(SagecacheError, match="half.pth: holds no ema_teacher, only student"):
        network_state(path, "ema_teacher")


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


def test_files_that_are_no_checkpoints_are_one_line(ours, tmp_path):
    half, foreign, numbers = tmp_path / "w.safetensors", tmp_path / "list.pth", tmp_path / "numbers.pth"
    save_file({"weight": torch.ones(64, 64)}, half)
    half.write_bytes(half.read_bytes()[:100])
    torch.save([torch.ones(2)], foreign)
    torch.save({"weight": 3}, numbers)
    for path, told in (
        (half, "can't be read"),
        (foreign, "holds a list"),
        (numbers, "holds a dict, no tensors"),
    ):
        with pytest.raises(SagecacheError, match=f"{path.name}: {told}.*Give a .pth") as caught:
            load_network(nn.Linear(3, 2), path)
        assert "\n" not in str(caught.value)


def write_run(folder, *iterations: int) -> None:
    for number in iterations:
        torch.save(
            {"state_dict": {}, "meta": {"iter": number, "seed": 40 + number}}, folder / f"iter_{number}.pth"
        )
    (folder / "last_checkpoint").write_text(str(folder / f"iter_{iterations[-1]}.pth"))


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path):
    assert newest_readable(tmp_path) is None
    write_run(tmp_path, 9, 10)  # by number, not by letter
    assert newest_readable(tmp_path) == Resumable(tmp_path / "iter_10.pth", 10, 50)


def test_a_cut_checkpoint_stays_and_the_one_before_is_taken(tmp_path, caplog):
    write_run(tmp_path, 9, 10)
    cut(tmp_path / "iter_10.pth")
    assert newest_readable(tmp_path) == Resumable(tmp_path / "iter_9.pth", 9, 49)
    assert caplog.messages == [
        "iter_10.pth can't be read (a killed run leaves such): going on from iter_9.pth"
    ]
    assert (tmp_path / "iter_10.pth").is_file()
    cut(tmp_path / "iter_9.pth")
    with pytest.raises(SagecacheError, match="none of its checkpoints can be read.*leave --resume out"):
        newest_readable(tmp_path)


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, archive):
    write_run(tmp_path, 9, 10)
    content = {"state_dict": {}, "meta": {"seed": Planted(tmp_path / "ran")}}
    torch.save(content, tmp_path / "iter_10.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(SagecacheError, match="iter_10.pth: holds more than weights.*Move it away"):
        newest_readable(tmp_path)
    assert not (tmp_path / "ran").exists()
