"""Files of others: what stands beside weights is ignored, code is refused by name, nothing of a file runs."""

import argparse
import json
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from safetensors.torch import save_file
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.models.weight_files import architectures, read_config, read_tensors, told_of_pickle

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def nothing_permitted():
    """mmpose's shims permit torch a few of mmengine's names, once some test has imported them."""
    permitted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(permitted)


def same(state):
    assert state.keys() == WEIGHTS.keys()
    assert all(torch.equal(state[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module", None])
def test_weights_are_found_where_frameworks_put_them(tmp_path, wrap):
    torch.save({wrap: WEIGHTS, "epoch": 3} if wrap else WEIGHTS, tmp_path / "w.pth")
    same(read_tensors(tmp_path / "w.pth"))


def test_what_training_leaves_beside_the_weights_is_ignored(tmp_path, nothing_permitted):
    history = HistoryBuffer()
    history.update(3.0)
    beside = dict(
        message_hub=dict(loss=history),
        best=np.float64(0.7),
        array=np.arange(3),
        arguments=argparse.Namespace(lr=0.1),
    )
    torch.save({"state_dict": WEIGHTS, "meta": beside}, tmp_path / "w.pth")
    same(read_tensors(tmp_path / "w.pth"))


def test_code_is_refused_by_name_and_does_not_run(tmp_path):
    torch.save({"state_dict": WEIGHTS, "meta": Planted(tmp_path / "made")}, tmp_path / "bad.pth")
    with pytest.raises(SagecacheError, match=r"bad.pth: its pickle asks for \w+.mkdir"):
        read_tensors(tmp_path / "bad.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": Planted(tmp_path / "made")}))
    with pytest.raises(SagecacheError, match="old.pth: is a pickle that torch.save did not write: it may"):
        read_tensors(tmp_path / "old.pth")
    content = {"a": Planted(tmp_path / "made")}
    torch.save(content, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(SagecacheError, match=r"legacy.pth: its pickle asks for \w+.mkdir: more than weights"):
        read_tensors(tmp_path / "legacy.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("archive", [True, False])
def test_no_line_says_that_a_pickle_could_be_run(tmp_path, recwarn, archive):
    """torch advises weights_only=False; a pickle of another protocol would also warn."""
    torch.save(WEIGHTS, tmp_path / "w.pth", pickle_protocol=4, _use_new_zipfile_serialization=archive)
    with pytest.raises(SagecacheError, match="w.pth: its pickle is not plain weights") as caught:
        read_tensors(tmp_path / "w.pth")
    assert "weights_only" not in str(caught.value) and not recwarn.list
    torch.save(WEIGHTS, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    same(read_tensors(tmp_path / "legacy.pth"))


def test_torch_s_advice_is_put_into_our_words():
    advice = "Re-running `torch.load` with `weights_only` set to `False` will likely succeed.\n\n"
    asked = advice + "Trying to load unsupported GLOBAL posix.mkdir whose module posix is blocked."
    assert told_of_pickle(ValueError(asked)).startswith("its pickle asks for posix.mkdir: more")
    assert "weights_only" not in told_of_pickle(ValueError(advice))
    assert told_of_pickle(ValueError("cut")) is None


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning", "ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "is sparse"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantised"),
        (lambda: torch.empty(3, device="meta"), "has no values in the file"),
        (lambda: torch.zeros(1).expand(200_000, 200_000), "160000000000 bytes, of which the file holds 4"),
        (
            lambda: torch.zeros(5_000_000).as_strided((4_000_000, 3), (1, 1)),
            "48000000 bytes, of which the file holds 20000000",
        ),
    ],
    ids=["coo", "csr", "nested", "quantised", "meta", "expanded", "overlapping"],
)
def test_tensors_that_are_no_plain_numbers_are_named(tmp_path, make, told):
    torch.save(WEIGHTS | {"odd": make()}, tmp_path / "w.pth")
    with pytest.raises(SagecacheError, match=f"w.pth, odd: .*{told}") as caught:
        read_tensors(tmp_path / "w.pth")
    assert caught.value.fix


def test_a_small_expanded_buffer_is_a_tensor(tmp_path):
    torch.save(WEIGHTS | {"anchors": torch.ones(1, 8).expand(4, 8)}, tmp_path / "w.pth")
    assert read_tensors(tmp_path / "w.pth")["anchors"].shape == (4, 8)


def test_views_of_one_storage_are_tensors(tmp_path):
    whole = torch.arange(12.0)
    state = {"row": whole[3:6], "turned": whole.view(3, 4).T, "all": whole, "none": whole[:0]}
    torch.save(state, tmp_path / "w.pth")
    found = read_tensors(tmp_path / "w.pth")
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_permitted_name_is_a_stand_in(tmp_path, nothing_permitted):
    """mmengine pickles getattr; the real one would give a pickle any function there is."""

    class Climb:
        def __reduce__(self):
            return getattr, ("text", "no_such_attribute")

    torch.save({"state_dict": WEIGHTS, "meta": Climb()}, tmp_path / "w.pth")
    same(read_tensors(tmp_path / "w.pth"))


def test_a_folder_of_hugging_face_in_one_file_in_several_and_pickled(tmp_path):
    for name in ("one", "many", "pickled"):
        (tmp_path / name).mkdir()
    save_file(WEIGHTS, tmp_path / "one" / "model.safetensors")
    parts = {"a.weight": "model-00001-of-00002.safetensors", "a.bias": "model-00002-of-00002.safetensors"}
    for name, file in parts.items():
        save_file({name: WEIGHTS[name]}, tmp_path / "many" / file)
    (tmp_path / "many" / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=parts)))
    torch.save(WEIGHTS, tmp_path / "pickled" / "pytorch_model.bin")
    for name in ("one", "many", "pickled"):
        same(read_tensors(tmp_path / name))


def test_an_index_can_not_lead_out_of_its_folder(tmp_path):
    save_file(WEIGHTS, tmp_path / "outside.safetensors")
    (tmp_path / "in").mkdir()
    index = dict(weight_map={"a.weight": "../outside.safetensors"})
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SagecacheError, match="no 'weight_map' of file names"):
        read_tensors(tmp_path / "in")


def test_wrong_files_are_one_clear_line(tmp_path):
    torch.save(WEIGHTS, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:300])
    save_file(WEIGHTS, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:40])
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    torch.save({"a.weight": torch.ones(2), 1: torch.ones(2)}, tmp_path / "number.pth")
    (tmp_path / "page.pth").write_text("\n<HTML>404</HTML>")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (tmp_path / "nothing.pth").touch()
    (tmp_path / "log.pth").write_text("epoch 3, loss .4\n")
    (tmp_path / "junk.pth").write_bytes(bytes(range(200)))
    (tmp_path / "none").mkdir()
    for name, told in {
        "cut.pth": "can't be read",
        "cut.safetensors": "can't be read",
        "list.pth": "holds a list",
        "empty.pth": "holds no tensors",
        "number.pth": "names a tensor 1, which is no string",
        "page.pth": "is a web page",
        "pointer.safetensors": "is Git LFS's pointer",
        "nothing.pth": "is empty",
        "log.pth": "is no checkpoint that torch.save or safetensors wrote",
        "junk.pth": "is no checkpoint that torch.save or safetensors wrote",
        "none": "holds none of model.safetensors",
        "gone.pth": "no such checkpoint",
    }.items():
        with pytest.raises(SagecacheError, match=f"{name}: {told}") as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value) and caught.value.fix


def test_weights_that_begin_as_a_page_would_are_weights(tmp_path):
    """A safetensors file begins with its header's length, which may be 60, '<'."""
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(60)
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert (tmp_path / "w.safetensors").read_bytes()[:1] == b"<"
    assert read_tensors(tmp_path / "w.safetensors") == {"w": torch.zeros(1)}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_file_is_named_as_one(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "net.pt"))
    with pytest.raises(SagecacheError, match="is a TorchScript file.*torchscript"):
        read_tensors(tmp_path / "net.pt")


def test_a_config_must_be_an_object(tmp_path):
    with pytest.raises(SagecacheError, match="config.json: no such file"):
        read_config(tmp_path)
    for text, told in (("{", "is no JSON"), ("[1]", "is no JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SagecacheError, match=told):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vitpose"}')
    assert read_config(tmp_path)["model_type"] == "vitpose"


@pytest.mark.parametrize("named", [5, "DPTForDepthEstimation", [["DPT"]], {"a": 1}, [None]])
def test_architectures_are_a_list_of_names(tmp_path, named):
    (tmp_path / "config.json").write_text(json.dumps(dict(architectures=named)))
    with pytest.raises(SagecacheError, match="config.json: 'architectures' is .*, no list of names"):
        architectures(tmp_path)
    for good, want in ((["DPT"], ("DPT",)), ([], ()), (None, ())):
        (tmp_path / "config.json").write_text(json.dumps(dict(architectures=good)))
        assert architectures(tmp_path) == want
