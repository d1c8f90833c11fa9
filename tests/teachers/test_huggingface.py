"""Hugging Face folders as teachers: their own processors' pixels, kinds of depth, axes, refusals."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from public_networks import depth_anything, dpt, sapiens2, save_folder, yolos, zoedepth
from safetensors.torch import load_file, save_file
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.store.fingerprint import diff
from sagecache.teachers import huggingface
from sagecache.teachers.huggingface import load_folder, reader_of, told_of
from sagecache.teachers.registry import build_teacher

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NORMAL = dict(image_mean=MEAN, image_std=STD, do_normalize=True)


def crops(width, height, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def by_the_own_processor(processor, images):
    """What transformers' own preprocessing makes of a crop, without its resizing."""
    made = processor(images=[Image.fromarray(one) for one in images], do_resize=False, return_tensors="pt")
    return made["pixel_values"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_depth_anything(tmp_path, kind):
    network = depth_anything(transformers, kind)
    folder = save_folder(network, tmp_path / "net", **NORMAL)
    size = dict(input_size=(42, 56), map_size=(42, 56))
    teacher = build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), **size))
    processor = transformers.DPTImageProcessorPil(image_mean=MEAN, image_std=STD)
    want = network(pixel_values=by_the_own_processor(processor, crops(42, 56))).predicted_depth
    torch.testing.assert_close(teacher(crops(42, 56))["depth"][:, 0], want, atol=1e-5, rtol=1e-4)
    found = teacher.spec.depth_kind, teacher.spec.unit
    assert found == (("metric", "m") if kind == "metric" else ("disparity", "relative"))


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "kind"), [(dpt, ("disparity", "relative")), (zoedepth, ("metric", "m"))], ids=["dpt", "zoedepth"]
)
def test_other_networks_of_depth(tmp_path, make, kind):
    network = make(transformers)
    half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    folder = save_folder(network, tmp_path / "net", **half)
    size = dict(input_size=(64, 64), map_size=(64, 64))
    teacher = build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), **size))
    pixels = torch.from_numpy(crops(64, 64)).permute(0, 3, 1, 2) / 127.5 - 1
    want = network(pixel_values=pixels).predicted_depth
    torch.testing.assert_close(teacher(crops(64, 64))["depth"][:, 0], want, atol=1e-4, rtol=1e-3)
    assert (teacher.spec.depth_kind, teacher.spec.unit) == kind


def test_a_dpt_on_dinov2_does_not_say_what_its_depth_is(tmp_path):
    """The published ones give metres; those on other backbones disparities."""
    config = dict(
        architectures=["DPTForDepthEstimation"], model_type="dpt", backbone_config=dict(model_type="dinov2")
    )
    folder = save_folder(dpt(transformers), tmp_path / "net", **NORMAL)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SagecacheError, match="what kind of depth a 'dpt on DINOv2' gives.*depth_kind"):
        build_teacher(dict(type="huggingface", files=dict(depth=str(folder))))


@torch.no_grad()
def test_sapiens2_normals_points_and_segments(tmp_path):
    tasks = dict(normal="NormalEstimation", depth="PointmapEstimation", mask="SemanticSegmentation")
    networks = {
        name: sapiens2(transformers, task, 28 if name == "mask" else 3) for name, task in tasks.items()
    }
    files = {name: str(save_folder(net, tmp_path / name, **NORMAL)) for name, net in networks.items()}
    size = dict(input_size=(48, 64), map_size=(12, 16))
    teacher = build_teacher(dict(type="huggingface", files=files, mask="network", **size))
    maps = teacher(crops(48, 64))
    scale = torch.tensor(STD).view(3, 1, 1)
    pixels = (
        torch.from_numpy(crops(48, 64)).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)
    ) / scale
    normal = networks["normal"](pixel_values=pixels).normals * torch.tensor([1.0, -1, -1]).view(3, 1, 1)
    torch.testing.assert_close(maps["normal"], nn.functional.normalize(normal, dim=1), atol=1e-5, rtol=1e-3)
    points = networks["depth"](pixel_values=pixels)
    metres = points.pointmaps[:, 2:] / points.scales.view(-1, 1, 1, 1)
    torch.testing.assert_close(maps["depth"], metres, atol=1e-4, rtol=1e-3)
    body = 1 - networks["mask"](pixel_values=pixels).logits.softmax(1)[:, :1]
    torch.testing.assert_close(maps["mask"], body, atol=1e-5, rtol=1e-3)
    assert (teacher.spec.depth_kind, teacher.spec.unit) == ("metric", "m")


def hill(width=48, height=64):
    """A hill that rises to the viewer: z (h, w) in metres, away; its normals (3, h, w), x right, y down."""
    y, x = torch.meshgrid(torch.linspace(-1.33, 1.33, height), torch.linspace(-1, 1, width), indexing="ij")
    z = 2 + 0.4 * (x**2 + y**2)
    slope_y, slope_x = torch.gradient(z, spacing=(y[:, 0], x[0]))
    normal = torch.stack([slope_x, slope_y, -torch.ones_like(z)])
    return x, y, z, normal / normal.norm(dim=0)


class Answers(nn.Module):
    """In the place of a network: it says the same of every crop."""

    def __init__(self, **answer):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        count = len(pixel_values)
        answer = {name: value.expand(count, *value.shape) for name, value in self.answer.items()}
        return SimpleNamespace(**answer)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("depth_anything", "disparity"),
        ("dpt", "disparity"),
        ("depth_anything_metric", "metric"),
        ("zoedepth", "metric"),
        ("sapiens2", "metric"),
    ],
)
def test_a_known_scene_in_the_words_of_each_network(tmp_path, monkeypatch, name, kind):
    """Its depth in metres, or up to a gain where only nearness is told, and normals in the same axes."""
    makers = dict(depth_anything=depth_anything, dpt=dpt, zoedepth=zoedepth)
    makers |= dict(depth_anything_metric=lambda lib: depth_anything(lib, "metric"))
    makers |= dict(sapiens2=lambda lib: sapiens2(lib, "PointmapEstimation"))
    folders = dict(depth=makers[name](transformers), normal=sapiens2(transformers, "NormalEstimation"))
    files = {output: str(save_folder(net, tmp_path / output, **NORMAL)) for output, net in folders.items()}
    x, y, z, normal = hill()
    if name == "sapiens2":
        depth = Answers(pointmaps=3 * torch.stack([x, y, z]), scales=torch.tensor([3.0]))
    else:
        depth = Answers(predicted_depth=z if kind == "metric" else 7 / z + 0.5)
    says = dict(depth=depth, normal=Answers(normals=normal * torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)))
    monkeypatch.setattr(huggingface, "load_network", lambda folder: says[folder.name])
    size = dict(input_size=(48, 64), map_size=(48, 64))
    teacher = build_teacher(dict(type="huggingface", files=files, **size))
    maps = teacher(crops(48, 64))
    torch.testing.assert_close(maps["normal"][1], normal, atol=1e-5, rtol=0)
    if kind == "metric":
        assert (teacher.spec.depth_kind, teacher.spec.unit) == ("metric", "m")
        torch.testing.assert_close(maps["depth"][1, 0], z, atol=1e-5, rtol=0)
    else:
        assert teacher.spec.depth_kind == "affine"
        found, true = maps["depth"][1, 0].flatten(), z.flatten()
        gain, offset = np.polyfit(found.numpy(), true.numpy(), 1)
        error = (gain * found + offset - true).abs().max() / (true.max() - true.min())
        assert gain > 0 and error < 0.02


@torch.no_grad()
def test_a_class_called_person_is_the_mask(tmp_path):
    """ADE20K's networks have persons among furniture, and no background."""
    network = sapiens2(transformers, "SemanticSegmentation", 5)
    network.config.id2label = {0: "wall", 1: "bed", 2: "Person", 3: "lamp", 4: "rug"}
    files = dict(
        depth=str(save_folder(sapiens2(transformers, "PointmapEstimation"), tmp_path / "d", **NORMAL))
    )
    files["mask"] = str(save_folder(network, tmp_path / "m", **NORMAL))
    size = dict(input_size=(48, 64), map_size=(12, 16))
    maps = build_teacher(dict(type="huggingface", files=files, mask="network", **size))(crops(48, 64))
    scale = torch.tensor(STD).view(3, 1, 1)
    pixels = (
        torch.from_numpy(crops(48, 64)).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)
    ) / scale
    person = network(pixel_values=pixels).logits.softmax(1)[:, 2:3]
    torch.testing.assert_close(maps["mask"], person, atol=1e-5, rtol=1e-3)


def test_the_fingerprint_follows_weights_and_preprocessing_and_no_path(tmp_path):
    def printed(name, seed=0, **said):
        folder = save_folder(depth_anything(transformers, seed=seed), tmp_path / name, **(NORMAL | said))
        size = dict(input_size=(42, 56), map_size=(42, 56))
        return build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), **size)).fingerprint()

    one = printed("one")
    assert printed("moved") == one
    assert "weights" in str(diff(one, printed("other", seed=1)))
    assert "mean" in str(diff(one, printed("said", image_mean=[0.5] * 3)))


def test_a_gpu_that_is_not_there_is_told(tmp_path, monkeypatch):
    folder = save_folder(depth_anything(transformers), tmp_path / "net", **NORMAL)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    size = dict(input_size=(42, 56), map_size=(42, 56), device="cuda")
    teacher = build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), **size))
    for load in (lambda: teacher(crops(42, 56)), lambda: teacher.load("depth", folder)):
        with pytest.raises(SagecacheError, match="device 'cuda' is asked for, and torch sees none"):
            load()


def folder_with(tmp_path, config, weights=True):
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if weights:
        (folder / "model.safetensors").write_bytes(b"cut")
    return str(folder)


@pytest.mark.parametrize(
    ("config", "output", "told"),
    [
        (
            dict(model_type="depth_pro", architectures=["DepthProForDepthEstimation"]),
            "depth",
            "inverse depths",
        ),
        (dict(model_type="dpt", architectures=["NoSuchNetwork"]), "depth", "names NoSuchNetwork"),
        (dict(model_type="dpt"), "depth", "names no architecture"),
        (dict(model_type="dpt", architectures=["pipeline"]), "depth", "names pipeline, no network"),
        (dict(model_type="vitpose", architectures=["VitPoseForPoseEstimation"]), "normal", "gives no normal"),
        (
            dict(model_type="dpt", architectures=["DPTForDepthEstimation"]),
            "depth",
            "transformers can't load it",
        ),
    ],
)
def test_folders_that_can_not_serve_are_told(tmp_path, config, output, told):
    folder = folder_with(tmp_path, config)
    known = dict(depth_kind="affine", unit="relative", input_size=(48, 64), map_size=(12, 16))
    known |= dict(mean=(127.5,) * 3, std=(127.5,) * 3)
    teacher = build_teacher(dict(type="huggingface", files={output: folder}, **known))
    with pytest.raises(SagecacheError, match=told) as caught:
        teacher(crops(48, 64))
    assert str(caught.value.file) == folder


def test_settings_that_nobody_knows_are_asked_for(tmp_path):
    with pytest.raises(SagecacheError, match="needs 'files'"):
        build_teacher(dict(type="huggingface"))
    with pytest.raises(SagecacheError, match="config.json: no such file"):
        build_teacher(dict(type="huggingface", files=dict(depth=str(tmp_path))))
    folder = folder_with(tmp_path, dict(model_type="new_depth", architectures=["DPTForDepthEstimation"]))
    with pytest.raises(SagecacheError, match="what kind of depth a 'new_depth' gives.*depth_kind"):
        build_teacher(dict(type="huggingface", files=dict(depth=folder)))


@pytest.fixture
def logged(monkeypatch):
    """What transformers logs; its own handler writes to a stderr of its own."""
    lines, handler = [], logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda page: page.update(fusion_hidden_size=16),
            r"mismatched keys head.conv1.bias is \(4,\), not \(8,\), head",
        ),
        (
            lambda page: page["backbone_config"].update(num_hidden_layers=6),
            r"missing keys backbone\S+layer.4",
        ),
    ],
    ids=["wider", "deeper"],
)
def test_weights_that_leave_gaps_are_refused_in_one_line(tmp_path, logged, change, told):
    """transformers would fill them with random numbers, and say so in a table."""
    folder = save_folder(depth_anything(transformers), tmp_path / "net", **NORMAL)
    page = json.loads((folder / "config.json").read_text())
    change(page)
    (folder / "config.json").write_text(json.dumps(page))
    size = dict(input_size=(42, 56), map_size=(42, 56))
    verbosity = transformers.utils.logging.get_verbosity()
    with pytest.raises(SagecacheError, match=f"net: its weights don't fit DepthAny[a-zA-Z]*: {told}"):
        build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), **size))(crops(42, 56))
    assert logged == []
    assert transformers.utils.logging.get_verbosity() == verbosity


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.complex64])
def test_quantised_weights_are_not_turned_into_floats(tmp_path, dtype):
    folder = save_folder(depth_anything(transformers), tmp_path / "net", **NORMAL)
    state = load_file(folder / "model.safetensors")
    state["head.conv1.weight"] = state["head.conv1.weight"].to(dtype)
    save_file(state, folder / "model.safetensors", metadata=dict(format="pt"))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(SagecacheError, match=f"model.safetensors, head.conv1.weight: is {name}, which is no"):
        load_folder(folder, "depth")
    (folder / "model.safetensors").rename(folder / "model.other.safetensors")
    save_folder(depth_anything(transformers), folder, **NORMAL)
    load_folder(folder, "depth")  # a variant beside the weights is not loaded


def test_a_detector_in_the_place_of_a_depth_network_is_told_first(tmp_path):
    yolos(transformers).save_pretrained(tmp_path / "boxes")
    with pytest.raises(SagecacheError, match="boxes: a YolosForObjectDetection gives no depth"):
        build_teacher(dict(type="huggingface", files=dict(depth=str(tmp_path / "boxes"))))


def test_a_pickle_that_transformers_refuses_is_told_without_torch_s_advice(tmp_path):
    error = ValueError(
        "Weights only load failed. Re-running `torch.load` with `weights_only` set to `False` will likely "
        "succeed.\nTrying to load unsupported GLOBAL posix.mkdir whose module posix is blocked."
    )
    told = str(told_of(error, "transformers can't load it", tmp_path))
    assert "its pickle asks for posix.mkdir: more than weights" in told and "weights_only" not in told


HOSTILE = """
import json, sys
from sagecache.errors import SagecacheError
from sagecache.teachers.huggingface import load_folder
from sagecache.teachers.registry import build_detector
import numpy as np

def detect(folder):
    build_detector(dict(type="huggingface", path=folder))([np.zeros((64, 64, 3), np.uint8)])

for folder in sys.argv[1:]:
    try:
        detect(folder) if "boxes" in folder else load_folder(__import__("pathlib").Path(folder), "depth")
        print("served")
    except SagecacheError as error:
        print("told", error)
"""


def planted(folder, config, **preprocessor):
    """A folder with code beside its weights, which leaves a mark when it runs."""
    page = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(page | config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w')\n")
    return str(folder)


def test_code_of_a_folder_does_not_run_even_for_a_yes_on_stdin(tmp_path):
    for name in ("auto", "own", "inner"):
        depth_anything(transformers).save_pretrained(tmp_path / name)
    yolos(transformers).save_pretrained(tmp_path / "boxes")
    names = ("AutoConfig", "AutoModelForDepthEstimation", "AutoBackbone", "AutoImageProcessor")
    code = dict(auto_map={name: "evil.Evil" for name in names})
    inner = dict(backbone_config=dict(model_type="bert", _name_or_path=str(tmp_path / "inner"), **code))
    folders = [
        planted(
            tmp_path / "auto", dict(model_type="x", architectures=["AutoModelForDepthEstimation"], **code)
        ),
        planted(tmp_path / "own", dict(model_type="x", architectures=["EvilForDepthEstimation"], **code)),
        planted(tmp_path / "inner", inner),
        planted(tmp_path / "boxes", dict(model_type="bert"), **code),
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HOSTILE, *folders],
        input="y\n" * 20,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | dict(HF_HOME=str(tmp_path / "cache"), HF_HUB_OFFLINE="1"),
    )
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 0 and "Do you wish" not in done.stdout, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == len(folders)
    for line, folder in zip(told, folders, strict=True):
        assert line.startswith(f"told {folder}") and "brings code of its own" in line and "not run" in line


def test_code_that_is_not_needed_stays_beside(tmp_path):
    """Many a publisher's folder has an auto_map from before transformers had its network."""
    folder = save_folder(depth_anything(transformers), tmp_path / "net", **NORMAL)
    planted(folder, dict(auto_map={"AutoModelForDepthEstimation": "evil.Evil"}), **NORMAL)
    size = dict(input_size=(42, 56), map_size=(42, 56))
    build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), **size))(crops(42, 56))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("labels", [["person"], {"a": "person"}, {"-1": "person"}, "person"])
def test_classes_that_have_no_index_are_told(tmp_path, labels):
    config = dict(architectures=["Sapiens2ForSemanticSegmentation"], id2label=labels)
    with pytest.raises(SagecacheError, match="config.json: 'id2label' is no object of names by index"):
        reader_of(Path(folder_with(tmp_path, config)), "mask")


def test_a_person_beyond_the_classes_is_told(tmp_path):
    config = dict(architectures=["Sapiens2ForSemanticSegmentation"], id2label={"9": "person"})
    read = reader_of(Path(folder_with(tmp_path, config)), "mask")
    with pytest.raises(SagecacheError, match="its class 'person' is 9 of 3"):
        read(SimpleNamespace(logits=torch.zeros(1, 3, 2, 2)))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = depth_anything(transformers)
    network.head.conv1.weight.data[0, 0, 0, 0] = float("nan")
    folder = save_folder(network, tmp_path / "net", **NORMAL)
    with pytest.raises(SagecacheError, match="net, head.conv1.weight: its values are not all finite"):
        load_folder(folder, "depth")
