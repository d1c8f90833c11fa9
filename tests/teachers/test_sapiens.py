"""Sapiens' own checkpoints: names and sizes as published, numbers as by other code, axes on a known shape."""

import shutil

import numpy as np
import pytest
import torch
from public_networks import HEADS, LAYERS, WIDTH, sapiens_state
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.models.public_weights import to_hugging_face
from sagecache.store.fingerprint import diff
from sagecache.teachers.registry import build_teacher
from sagecache.teachers.sapiens import PADDING, SapiensSettings, SapiensTeacher

GRID = (4, 3)
SIZE = dict(input_size=(48, 64), map_size=(24, 32))


@pytest.fixture
def files(tmp_path):
    """output: checkpoint, saved as mmengine does."""
    shapes = dict(depth=(4, 2, 1), normal=(3, 3, 3), mask=(4, 2, 28))
    paths = {name: tmp_path / f"sapiens_{name}.pth" for name in shapes}
    for name, (deconvs, convs, channels) in shapes.items():
        torch.save({"state_dict": sapiens_state(GRID, deconvs, convs, channels), "meta": {}}, paths[name])
    return {name: str(path) for name, path in paths.items()}


def crops(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 48, 3), np.uint8)


def by_transformers_and_by_hand(state, images, padding):
    """The backbone by transformers, the head layer by layer with torch's functions."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.VitPoseBackboneConfig(
        image_size=(64, 48),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        layer_norm_eps=1e-6,
    )
    backbone = transformers.VitPoseBackbone(config).eval()
    backbone.embeddings.patch_embeddings.projection.padding = (padding, padding)
    named = to_hugging_face({name: value for name, value in state.items() if name.startswith("backbone.")})
    backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in named.items()})
    x = backbone(images).feature_maps[-1].transpose(1, 2).reshape(len(images), WIDTH, *GRID)

    def normed(x):
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
        x = (x - mean) / (var + 1e-5).sqrt()
        return x * x.sigmoid()

    for index in range(0, 30, 3):
        if (weight := state.get(f"decode_head.deconv_layers.{index}.weight")) is not None:
            x = normed(nn.functional.conv_transpose2d(x, weight, stride=2, padding=1))
    for index in range(0, 30, 3):
        name = f"decode_head.conv_layers.{index}"
        if f"{name}.weight" in state:
            x = normed(nn.functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    return nn.functional.conv2d(x, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])


@torch.no_grad()
@pytest.mark.parametrize("output", ["depth", "normal", "mask"])
def test_numbers_are_those_of_other_code(files, output):
    teacher = build_teacher(dict(type="sapiens", files=files, mask="network", **SIZE))
    network = teacher._modules[output]
    state = torch.load(files[output])["state_dict"]
    assert network.state_dict().keys() == state.keys()  # every tensor is used, none is missing
    images = torch.randn(2, 3, 64, 48)
    want = by_transformers_and_by_hand(state, images, PADDING[output])
    torch.testing.assert_close(network(images), want, atol=1e-5, rtol=1e-4)


def test_a_gpu_is_missed_when_a_network_is_loaded_and_not_before(files, monkeypatch):
    """A page for a GPU opens and compares fingerprints on any machine."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    teacher = build_teacher(dict(type="sapiens", files=files, mask="network", device="cuda", **SIZE))
    assert teacher.fingerprint()
    for load in (lambda: teacher(crops()), lambda: teacher.load("depth", files["depth"])):
        with pytest.raises(SagecacheError, match="device 'cuda' is asked for, and torch sees none"):
            load()


@torch.no_grad()
def test_maps_are_the_networks_answers_in_our_frame(files):
    teacher = build_teacher(dict(type="sapiens", files=files, mask="network", **SIZE))
    maps = teacher(crops())
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "depth": (3, 1, 32, 24),
        "normal": (3, 3, 32, 24),
        "mask": (3, 1, 32, 24),
    }
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    images = ((torch.from_numpy(crops()).float() - mean) / std).permute(0, 3, 1, 2)
    raw = {
        name: by_transformers_and_by_hand(torch.load(path)["state_dict"], images, PADDING[name])
        for name, path in files.items()
    }
    assert raw["depth"].shape[2:] == (64, 48) and raw["normal"].shape[2:] == (32, 24)
    normal = raw["normal"] * torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)
    torch.testing.assert_close(maps["normal"], nn.functional.normalize(normal, dim=1), atol=1e-4, rtol=1e-3)
    body = 1 - raw["mask"].softmax(1)[:, :1]
    # halving with antialiasing is a triangle two pixels wide: constant inside, so compare its mean
    assert maps["mask"].mean() == pytest.approx(body.mean().item(), abs=0.02)


def test_axes_on_a_slope_that_is_known():
    """A plane that looks right and to the viewer, as Sapiens says it: x right, y up, z to the viewer."""

    class Says(nn.Module):
        def __init__(self, *values):
            super().__init__()
            self.values = nn.Parameter(torch.tensor(values))

        def forward(self, images):
            return self.values.view(1, -1, 1, 1).expand(len(images), -1, 64, 48)

    settings = SapiensSettings(files=dict(depth="d", normal="n"), **SIZE)
    teacher = SapiensTeacher.__new__(SapiensTeacher)
    teacher.settings, teacher._paths = settings, {}
    teacher._modules = dict(depth=Says(0.25), normal=Says(0.6, 0.0, 0.8))
    teacher.spec = build_spec(settings)
    maps = teacher(crops(1))
    torch.testing.assert_close(maps["normal"][0, :, 5, 5], torch.tensor([0.6, -0.0, -0.8]))
    assert (maps["depth"] == 0.25).all() and teacher.spec.depth_kind == "affine"


def build_spec(settings):
    from sagecache.teachers.base import TeacherSpec

    return TeacherSpec(
        "sapiens",
        settings.input_size,
        settings.map_size,
        ("depth", "normal", "mask"),
        "affine",
        "relative",
        "everything",
    )


def test_positions_are_resized_for_other_crops(files):
    other = build_teacher(
        dict(type="sapiens", files=files, mask="network", input_size=(96, 128), map_size=(24, 32))
    )
    maps = other(np.zeros((1, 128, 96, 3), np.uint8))
    assert maps["depth"].shape == (1, 1, 32, 24) and maps["depth"].isfinite().all()


def test_the_fingerprint_follows_the_weights(files, tmp_path):
    one = build_teacher(dict(type="sapiens", files=dict(depth=files["depth"]), **SIZE)).fingerprint()
    moved = shutil.copyfile(files["depth"], tmp_path / "elsewhere.pth")
    assert build_teacher(dict(type="sapiens", files=dict(depth=str(moved)), **SIZE)).fingerprint() == one
    other = build_teacher(dict(type="sapiens", files=dict(depth=files["mask"]), **SIZE)).fingerprint()
    assert "weights" in str(diff(one, other))


def test_other_files_are_one_clear_line(files, tmp_path):
    with pytest.raises(SagecacheError, match="needs 'files'"):
        build_teacher(dict(type="sapiens"))
    with pytest.raises(SagecacheError, match="gone.pth: no such checkpoint"):
        build_teacher(dict(type="sapiens", files=dict(depth="gone.pth")))
    with pytest.raises(SagecacheError, match="mask is 'everything' but the files give depth, normal, mask"):
        build_teacher(dict(type="sapiens", files=files, **SIZE))
    state = torch.load(files["depth"])["state_dict"]
    for name, change, told in (
        ("pose", {k: v for k, v in state.items() if "decode" not in k}, "it has no dense head"),
        (
            "short",
            {k: v for k, v in state.items() if "layers.1.attn.proj" not in k},
            "missing backbone.layers.1.attn.proj",
        ),
        ("other", {"conv.weight": torch.zeros(2, 2)}, "no vision transformer of Sapiens' layout"),
        ("odd", state | {"backbone.pos_embed": torch.zeros(1, 11, WIDTH)}, "11 position embeddings"),
    ):
        torch.save(change, tmp_path / f"{name}.pth")
        teacher = build_teacher(dict(type="sapiens", files=dict(depth=str(tmp_path / f"{name}.pth")), **SIZE))
        with pytest.raises(SagecacheError, match=f"{name}.pth: .*{told}"):
            teacher(crops(1))
