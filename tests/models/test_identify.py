"""Weight files are told apart by names and shapes; what is missing or left over is named."""

import json
from pathlib import Path

import pytest
import torch
from public_networks import WIDTH, depth_anything, sapiens_state, vit_state, yolos
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.models.identify import SAPIENS, identify, licence_of
from sagecache.models.public_weights import to_hugging_face
from sagecache.models.vit import VisionTransformer

GRID = (4, 3)


def save(tmp_path, state, name="w.pth"):
    torch.save({"state_dict": state}, tmp_path / name)
    return tmp_path / name


def pose_state(grid=GRID, joints=17):
    """mmpose's ViTPose: two deconvolutions with batch norms, a 1x1 layer."""
    state = vit_state(grid)
    width = WIDTH
    for index in (0, 3):
        state[f"head.deconv_layers.{index}.weight"] = torch.zeros(width, 8, 4, 4)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"head.deconv_layers.{index + 1}.{part}"] = torch.zeros(8)
        state[f"head.deconv_layers.{index + 1}.num_batches_tracked"] = torch.tensor(0)
        width = 8
    return state | {
        "head.final_layer.weight": torch.zeros(joints, 8, 1, 1),
        "head.final_layer.bias": torch.zeros(joints),
    }


@pytest.mark.parametrize(
    ("shape", "output", "told"),
    [((4, 2, 1), "depth", "depth"), ((3, 3, 3), "normal", "normals"), ((4, 2, 28), "mask", "28 classes")],
)
def test_sapiens_dense_networks(tmp_path, shape, output, told):
    state = sapiens_state(GRID, *shape)
    found = identify(save(tmp_path, state))
    assert (found.role, found.output, found.gaps) == ("teacher", output, ())
    assert told in found.what and "CC BY-NC" in found.licence
    assert found.tensors == len(state) and found.parameters == sum(value.numel() for value in state.values())
    assert found.settings == dict(type="sapiens", files={output: str(tmp_path / "w.pth")})


def test_a_pose_network_says_how_a_page_names_it(tmp_path):
    found = identify(save(tmp_path, pose_state()))
    assert (found.role, found.gaps) == ("student", ())
    assert found.settings["backbone"]["img_size"] == (64, 48)
    assert found.settings["backbone"]["arch"]["embed_dims"] == WIDTH
    head = found.settings["head"]
    assert (head["in_channels"], head["out_channels"], head["deconv_out_channels"]) == (WIDTH, 17, (8, 8))


def test_names_that_are_missing_or_too_many_are_listed(tmp_path):
    state = pose_state()
    del state["backbone.layers.1.attn.proj.bias"]
    state["neck.conv.weight"] = torch.zeros(1)
    assert identify(save(tmp_path, state)).gaps == (
        "missing backbone.layers.1.attn.proj.bias",
        "unexpected neck.conv.weight",
    )


@pytest.mark.parametrize(("name", "told"), [("sapiens_0.6b_x.pth", "sapiens_0.6b"), ("vit.pth", "vitpose_h")])
def test_networks_of_one_size_are_told_apart_by_the_file(tmp_path, name, told):
    with torch.device("meta"):
        shapes = VisionTransformer("sapiens_0.6b", (64, 48)).state_dict()
    zeros = torch.zeros(max(value.numel() for value in shapes.values()))  # all are views of one storage
    state = {f"backbone.{key}": zeros[: value.numel()].view(value.shape) for key, value in shapes.items()}
    found = identify(save(tmp_path, state, name))
    assert found.role == "start" and told in found.what and found.gaps == ()


def test_hugging_face_folders(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    depth_anything(transformers).save_pretrained(tmp_path / "depth")
    found = identify(tmp_path / "depth")
    assert (found.role, found.output) == ("teacher", "depth")
    assert found.settings == dict(type="huggingface", files=dict(depth=str(tmp_path / "depth")))
    yolos(transformers).save_pretrained(tmp_path / "boxes")
    assert identify(tmp_path / "boxes").settings == dict(type="huggingface", path=str(tmp_path / "boxes"))


def test_a_folder_that_lacks_its_config_is_told(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    depth_anything(transformers).save_pretrained(tmp_path / "depth")
    (tmp_path / "depth" / "config.json").unlink()
    with pytest.raises(SagecacheError, match="depth: holds weights and no config.json.* Download it too"):
        identify(tmp_path / "depth")


def test_a_vitpose_of_hugging_face_is_a_student(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(dict(architectures=["VitPoseForPoseEstimation"])))
    state = to_hugging_face(pose_state())
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    found = identify(tmp_path)
    assert (found.role, found.gaps) == ("student", ()) and "Hugging Face" in found.done[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_files(tmp_path):
    torch.jit.script(nn.Conv2d(3, 1, 1)).save(str(tmp_path / "net.pt2"))
    script = identify(tmp_path / "net.pt2")
    assert script.role == "program" and "TorchScript" in script.what and script.settings is None
    ours = {f"{part}.backbone.a": torch.zeros(1) for part in ("student", "ema_teacher")}
    assert identify(save(tmp_path, ours)).role == "training"
    hrnet = {"backbone.stage2.weight": torch.zeros(1), "head.final_layer.weight": torch.zeros(17, 1, 1, 1)}
    assert identify(save(tmp_path, hrnet)).role == "student"
    unknown = identify(save(tmp_path, {"encoder.a": torch.zeros(1)}))
    assert unknown.role is None and "encoder" in unknown.what
    with pytest.raises(SagecacheError, match="no such checkpoint"):
        identify(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("backbone.patch_embed.projection.weight", ()),
        ("backbone.layers.0.ffn.layers.0.0.weight", (0, WIDTH)),
        ("backbone.pos_embed", (12,)),
        ("backbone.pos_embed", (1, 0, WIDTH)),
        ("decode_head.conv_seg.weight", ()),
        ("decode_head.conv_layers.0.weight", (8,)),
        ("head.final_layer.weight", (17,)),
    ],
)
def test_a_shape_that_no_network_has_is_named(tmp_path, name, shape):
    state = pose_state() if name.startswith("head") else sapiens_state(GRID, 4, 2, 1)
    with pytest.raises(SagecacheError, match=f"w.pth, {name}: its shape is") as caught:
        identify(save(tmp_path, state | {name: torch.zeros(shape)}))
    assert str(tuple(shape)) in caught.value.message


def test_a_far_number_of_a_block_asks_for_no_memory(tmp_path):
    for number in ("99999999", "9" * 5000):
        state = vit_state(GRID) | {f"backbone.layers.{number}.x": torch.zeros(1)}
        with pytest.raises(
            SagecacheError, match="w.pth, backbone.layers: there is a block 9+ and no block 2"
        ):
            identify(save(tmp_path, state))
    far = pose_state() | {f"head.deconv_layers.{'9' * 5000}.weight": torch.zeros(8, 8, 4, 4)}
    assert "unexpected head.deconv_layers.999" in identify(save(tmp_path, far)).gaps[0]


def test_positions_of_another_width_do_not_fit(tmp_path):
    state = pose_state() | {"backbone.pos_embed": torch.zeros(1, 12, 7)}
    assert identify(save(tmp_path, state)).gaps == (
        f"backbone.pos_embed is (1, 12, 7), not (1, 12, {WIDTH})",
    )


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("sapiens_2b_x.pth", SAPIENS),
        ("Sapiens-lite_1b.pt2", SAPIENS),
        ("sapiens2_1b_normal.safetensors", "Sapiens2's own"),
        ("configs/nk_sapiens/rtdetr_v2", None),
        ("sapiens_v1/depth_anything.pth", None),
    ],
)
def test_a_licence_goes_by_the_files_own_name(path, told):
    known = licence_of(Path(path))
    assert known is None if told is None else known.startswith(told)


def test_a_sapiens2_backbone_has_its_own_licence(tmp_path):
    assert "Sapiens2" in identify(save(tmp_path, vit_state(GRID), "sapiens2_0.4b.pth")).licence
