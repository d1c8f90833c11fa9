"""sagecache teachers check and ls: what a file is, what it says of a picture, and when it fails."""

from __future__ import annotations

import json
import zipfile

import cv2
import numpy as np
import pytest
import torch
from dots import write_dots_project
from public_networks import depth_anything, dpt, sapiens_state, save_folder, yolos
from torch import Tensor, nn
from typed import sagecache

from sagecache.errors import SagecacheError
from sagecache.models import identify
from sagecache.project import Project
from sagecache.teachers import sapiens
from sagecache.teachers.registry import build_teacher

SIZE = ("--size", "48x64")
scripts = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "mine")


@pytest.fixture
def depth_file(tmp_path):
    torch.save({"state_dict": sapiens_state((4, 3), 4, 2, 1)}, tmp_path / "sapiens_depth.pth")
    return tmp_path / "sapiens_depth.pth"


def test_a_teacher_is_named_measured_and_run(folder, depth_file, tmp_path):
    picture = tmp_path / "look.png"
    done = sagecache(
        folder, "teachers", "check", str(depth_file), "--size", "48x64", "--output", str(picture), "--json"
    )
    said = json.loads(done.stdout)
    assert said["usable"] and said["gaps"] == [] and said["output"] == "depth"
    assert "CC BY-NC" in said["licence"] and "a crop of 48x64" in said["memory"][1]
    assert said["says"]["looked at"] == "a crop of 48x64"
    height, width = cv2.imread(str(picture)).shape[:2]
    assert width > 20 and height > 10
    text = sagecache(
        folder, "teachers", "check", str(depth_file), "--size", "48x64", "--output", str(picture)
    ).stdout
    assert f"all {len(sapiens_state((4, 3), 4, 2, 1))} match" in text and "type='sapiens'" in text


def test_a_picture_of_ones_own(folder, depth_file, tmp_path):
    cv2.imwrite(str(tmp_path / "me.png"), np.zeros((30, 20, 3), np.uint8))
    words = ["--size", "48x64", "--image", str(tmp_path / "me.png"), "--output", str(tmp_path / "look.png")]
    assert "a crop of 48x64" in sagecache(folder, "teachers", "check", str(depth_file), *words).stdout


def test_gaps_make_it_fail(folder, tmp_path):
    state = sapiens_state((4, 3), 4, 2, 1)
    del state["backbone.layers.1.ln2.weight"]
    torch.save(state, tmp_path / "gap.pth")
    done = sagecache(folder, "teachers", "check", str(tmp_path / "gap.pth"), code=1)
    assert "missing backbone.layers.1.ln2.weight" in done.stdout


def test_what_nobody_knows_fails(folder, tmp_path):
    torch.save({"encoder.a": torch.zeros(3)}, tmp_path / "other.pth")
    done = sagecache(folder, "teachers", "check", str(tmp_path / "other.pth"), code=1)
    assert "its names begin with encoder" in done.stdout and "use" in done.stdout


def test_sizes_that_are_none(folder, depth_file):
    with pytest.raises(SagecacheError, match="--size is '768'"):
        sagecache(folder, "teachers", "check", str(depth_file), "--size", "768")


def test_the_projects_networks_are_listed(folder, depth_file):
    page = folder / "data.py"
    rows = json.loads(sagecache(folder, "teachers", "ls", "--json").stdout)
    assert [(row["network"], row["file"]) for row in rows] == [
        ("teacher", "in the package"),
        ("detector", "in the package"),
    ]
    lines = f'\nteacher = dict(type="sapiens", files=dict(depth="{depth_file}", normal="gone.pth"))\n'
    page.write_text(page.read_text() + lines)
    rows = json.loads(sagecache(folder, "teachers", "ls", "--json").stdout)
    assert [row["GB"] for row in rows] == ["0.00", "missing", ""]
    assert "no commercial use" in rows[0]["licence"]


def test_the_folder_around_a_network_is_not_its_licence(tmp_path):
    folder = write_dots_project(tmp_path / "nk_sapiens")
    lines = """
teacher = dict(type="huggingface", files=dict(normal="checkpoints/sapiens2_0.4b_normal"))
detector = dict(type="huggingface", path="checkpoints/rtdetr_v2_r50vd")
"""
    (folder / "data.py").write_text((folder / "data.py").read_text() + lines)
    normal, boxes = json.loads(sagecache(folder, "teachers", "ls", "--json").stdout)
    assert normal["licence"].startswith("Sapiens2's own") and boxes["licence"] == ""


# -- TorchScript ---------------------------------------------------------------------------------------


class Channels(nn.Module):
    """As many copies of the red channel as are asked for; it has a weight, so it can be counted."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x[:, :1]).expand(-1, self.count, -1, -1)


class Both(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x[:, :1]


class Nowhere(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] / 0 * 0


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(7, 5, -1)


class Boxes(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes = torch.tensor([[[8.0, 8.0, 24.0, 40.0], [30.0, 30.0, 40.0, 60.0]]])
        return boxes, torch.tensor([[0.9, 0.4]])


@pytest.fixture
def check(folder, tmp_path):
    """Save a script, check it: what --json says, or with code 2 what was raised."""

    def check(module, *words, code=0, name="net.pt2"):
        torch.jit.script(module).save(str(tmp_path / name))
        words = (str(tmp_path / name), *SIZE, *words, "--output", str(tmp_path / "look.png"))
        said = json.loads(sagecache(folder, "teachers", "check", *words, "--json", code=code).stdout)
        text = sagecache(folder, "teachers", "check", *words, code=code).stdout
        return said, " ".join(text.split())

    return check


def fake_archive(path):
    """Has the names of a TorchScript archive, and nothing in them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("constants.pkl", "data.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"net/{name}", "junk")
    return path


def test_an_archive_of_junk_is_one_error(folder, tmp_path):
    junk = fake_archive(tmp_path / "junk.pt2")
    with pytest.raises(SagecacheError, match="junk.pt2: not a readable TorchScript file") as raised:
        sagecache(folder, "teachers", "check", str(junk))
    assert "\n" not in str(raised.value)


@scripts
@pytest.mark.parametrize(("count", "output", "row"), [(1, "depth", "depth"), (3, "normal", "normals")])
def test_a_script_is_guessed_by_its_channels_and_run(check, tmp_path, count, output, row):
    said, text = check(Channels(count), name="sapiens_x.pt2")
    assert said["usable"] and (said["role"], said["output"]) == ("teacher", output)
    assert said["settings"] == dict(type="torchscript", files={output: str(tmp_path / "sapiens_x.pt2")})
    assert said["says"]["looked at"] == "a crop of 48x64" and row in said["says"]
    assert said["says"]["gives"] == f"(1, {count}, 64, 48)" and said["parameters"] == 1
    assert "CC BY-NC" in said["licence"] and cv2.imread(str(tmp_path / "look.png")) is not None
    assert "type='torchscript'" in text and "a crop of 48x64" in text and "by its channels" in text


@scripts
def test_a_script_with_several_maps(check):
    said, _ = check(Both())
    assert said["usable"] and said["settings"]["outputs"] == ["normal", "depth"]
    assert {"depth", "normals"} <= set(said["says"])


@scripts
def test_a_script_that_may_be_anything_needs_as(check):
    said, text = check(Channels(2), code=1)
    assert not said["usable"] and "--as" in said["says"]["use"] and "(1, 2, 64, 48)" in text
    said, text = check(Channels(2), "--as", "mask")
    assert said["usable"] and said["says"]["mask"].endswith("% of the crop") and "mask='network'" not in text


@scripts
def test_what_does_not_run_is_not_usable(check):
    said, text = check(Nowhere(), code=1)
    assert not said["usable"] and "not every number of depth is finite" in text
    with pytest.raises(SagecacheError, match="net.pt2: the network failed on a batch .*--size"):
        check(Fails())
    with pytest.raises(SagecacheError, match="net.pt2: the network failed on a batch"):
        check(Fails(), "--as", "depth")
    with pytest.raises(SagecacheError, match="output 'normal' is"):
        check(Channels(1), "--as", "normal")


@scripts
def test_a_scripted_detector_draws_its_boxes(check, tmp_path):
    said, text = check(Boxes(), "--as", "detector")
    assert said["usable"] and said["role"] == "detector"
    assert [round(one["score"], 2) for one in said["boxes"]] == [0.9, 0.4]
    assert "2 boxes, scores 0.90 to 0.40" in text and "an image of 320x200" in text
    assert cv2.imread(str(tmp_path / "look.png")) is not None
    said, _ = check(Boxes(), code=1)  # two answers, and neither is a map
    assert "--as" in said["says"]["use"]


def test_as_of_a_file_that_says_what_it_is(folder, depth_file):
    with pytest.raises(SagecacheError, match="not a network for normal"):
        sagecache(folder, "teachers", "check", str(depth_file), "--as", "normal")


# -- Hugging Face --------------------------------------------------------------------------------------


def without(folder, name):
    """A folder whose weights lack one tensor and have one too many."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["stranger"] = state.pop(next(key for key in sorted(state) if key.endswith(name)))
    save_file(state, folder / "model.safetensors", metadata=dict(format="pt"))


def test_a_detector_of_hugging_face_is_compared_and_run(folder, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    net, words = tmp_path / "boxes", ("--output", str(tmp_path / "look.png"))
    yolos(transformers).save_pretrained(net)
    transformers.YolosImageProcessorPil(size=dict(shortest_edge=64, longest_edge=96)).save_pretrained(net)
    said = json.loads(sagecache(folder, "teachers", "check", str(net), *words, "--json").stdout)
    assert said["usable"] and said["gaps"] == [] and said["boxes"]
    assert all(0 <= one["score"] <= 1 and len(one["bbox"]) == 4 for one in said["boxes"])
    assert said["says"]["persons"].startswith(f"{len(said['boxes'])} box")
    assert cv2.imread(str(tmp_path / "look.png")) is not None
    text = sagecache(folder, "teachers", "check", str(net), *words).stdout
    assert f"all {said['tensors']} match" in text and "persons" in text
    without(net, "layernorm_before.bias")
    said = json.loads(sagecache(folder, "teachers", "check", str(net), *words, "--json", code=1).stdout)
    assert not said["usable"] and "boxes" not in said
    assert sorted(one.split()[0] for one in said["gaps"]) == ["missing", "unexpected"]


def test_a_teacher_of_hugging_face_is_compared(folder, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    net = save_folder(depth_anything(transformers), tmp_path / "depth")
    words = ("--size", "56x112", "--output", str(tmp_path / "look.png"), "--json")
    said = json.loads(sagecache(folder, "teachers", "check", str(net), *words).stdout)
    assert said["usable"] and said["gaps"] == [] and "disparity" in said["says"]["depth"]
    without(net, "norm1.bias")
    said = json.loads(sagecache(folder, "teachers", "check", str(net), *words, code=1).stdout)
    assert not said["usable"] and "says" not in said
    assert any(one.startswith("missing ") and one.endswith("norm1.bias") for one in said["gaps"])


def test_sizes_that_a_network_needs_are_taken_and_told(folder, tmp_path):
    """DPT takes squares alone; Depth-Anything multiples of 14, whose quarters may have another aspect."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    look = ("--output", str(tmp_path / "look.png"), "--json")
    net = save_folder(
        dpt(transformers), folder / "weights" / "dpt", image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    said = json.loads(sagecache(folder, "teachers", "check", str(net), *look).stdout)
    assert said["usable"]
    settings = dict(type="huggingface", files=dict(depth="weights/dpt"))
    assert said["settings"] == settings | dict(input_size=[64, 64], map_size=[192, 192])
    assert "a crop of 64x64 0.00 GiB more, without gradients" in said["memory"]
    page = folder / "data.py"  # as it is told, so it works there
    said_so = ", ".join(f"{key}={value!r}" for key, value in said["settings"].items())
    page.write_text(f"{page.read_text()}\nteacher = dict({said_so})\n")
    assert build_teacher(Project.open(folder).data.teacher).spec.input_size == (64, 64)
    net = save_folder(depth_anything(transformers), tmp_path / "anything")
    said = json.loads(sagecache(folder, "teachers", "check", str(net), "--size", "98x126", *look).stdout)
    assert said["usable"] and said["settings"]["files"]["depth"] == str(net)


def test_a_student_tells_its_memory_and_what_is_supposed_of_it(folder, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48], hidden_size=64, num_hidden_layers=2, num_attention_heads=4, out_indices=[2]
    )
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=False)
    net = transformers.VitPoseForPoseEstimation(config)
    net.save_pretrained(tmp_path / "net")
    look = ("--output", str(tmp_path / "look.png"), "--json")
    said = json.loads(sagecache(folder, "teachers", "check", str(tmp_path / "net"), *look).stdout)
    assert said["what"].endswith("2 blocks of 64, 4 heads")
    assert said["settings"]["backbone"]["arch"]["num_heads"] == 4
    weights, crop = said["memory"]
    assert crop == "a crop of 48x64 0.00 GiB more, without gradients" and "float32" in weights
    file = str(tmp_path / "net" / "model.safetensors")  # without config.json nothing tells of heads
    said = json.loads(sagecache(folder, "teachers", "check", file, *look).stdout)
    assert said["what"].endswith("2 blocks of 64, 1 head supposed")


def test_a_weight_file_is_read_once(folder, depth_file, tmp_path, monkeypatch):
    reads, read = [], identify.read_tensors
    for module in (identify, sapiens):
        monkeypatch.setattr(module, "read_tensors", lambda path: reads.append(path) or read(path))
    words = (str(depth_file), *SIZE, "--output", str(tmp_path / "look.png"))
    sagecache(folder, "teachers", "check", *words)
    assert len(reads) == 1
