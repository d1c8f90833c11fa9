"""Exports run where they are meant to run: onnxruntime, torch.jit, transformers, plain mmpose."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.mm.checkpoints import load_network
from sagecache.mm.evaluate import predict
from sagecache.mm.export import PoseFunction, export
from sagecache.mm.plain_config import mmpose_config
from sagecache.mm.registry import build_student
from sagecache.project import Project, embedded_project
from sagecache.structures import Instance

STATISTICS = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True"
VIT = f"""
codec = dict(type="UDPHeatmap", input_size=(48, 64), heatmap_size=(12, 16), sigma=1)
model = dict(
    type="TopdownPoseEstimator",
    data_preprocessor=dict(type="PoseDataPreprocessor", {STATISTICS}),
    backbone=dict(
        type="VisionTransformer",
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128),
        img_size=(64, 48),
        patch_cfg=dict(padding=2),
    ),
    head=dict(
        type="HeatmapHead",
        in_channels=32,
        out_channels=17,
        deconv_out_channels=(256, 256),
        deconv_kernel_sizes=(4, 4),
        loss=dict(type="KeypointMSELoss", use_target_weight=True),
        decoder=codec,
    ),
    test_cfg=dict(flip_test=True, flip_mode="heatmap", shift_heatmap=False),
)
"""
RESNET = f"""
codec = dict(type="UDPHeatmap", input_size=(64, 64), heatmap_size=(16, 16), sigma=1)
model = dict(
    type="TopdownPoseEstimator",
    data_preprocessor=dict(type="PoseDataPreprocessor", {STATISTICS}),
    backbone=dict(type="ResNet", depth=18),
    head=dict(
        type="HeatmapHead",
        in_channels=512,
        out_channels=17,
        deconv_out_channels=(16, 16, 16),
        deconv_kernel_sizes=(4, 4, 4),
        loss=dict(type="KeypointMSELoss", use_target_weight=True),
        decoder=codec,
    ),
    test_cfg=dict(flip_test=True, flip_mode="heatmap", shift_heatmap=False),
)
"""
SIMCC = f"""
codec = dict(
    type="SimCCLabel",
    input_size=(48, 64),
    sigma=(2.0, 2.3),
    simcc_split_ratio=2.0,
    normalize=False,
    use_dark=False,
)
model = dict(
    type="TopdownPoseEstimator",
    data_preprocessor=dict(type="PoseDataPreprocessor", {STATISTICS}),
    backbone=dict(type="ResNet", depth=18),
    head=dict(
        type="SimCCHead",
        in_channels=512,
        out_channels=17,
        input_size=codec["input_size"],
        in_featuremap_size=(2, 2),
        simcc_split_ratio=2.0,
        deconv_out_channels=None,
        loss=dict(type="KLDiscretLoss", use_target_weight=True),
        decoder=codec,
    ),
    test_cfg=dict(flip_test=True),
)
"""


def project_of(folder, page):
    folder.mkdir()
    for one in embedded_project().glob("*.py"):
        shutil.copyfile(one, folder / one.name)
    (folder / "model.py").write_text(page)
    return Project.open(folder)


@pytest.fixture
def trained(tmp_path):
    """A project of a page, and a checkpoint with weights and batch norms that are not the first ones."""

    def make(page, name="mine"):
        project = project_of(tmp_path / name, page)
        torch.manual_seed(0)
        student = build_student(project.model)
        for part in student.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(part.running_mean, std=0.1)
                torch.nn.init.uniform_(part.running_var, 0.5, 2)
        path = tmp_path / f"{name}.pth"
        torch.save({"state_dict": student.state_dict()}, path)
        return project, path, student.eval()

    return make


def pictures(count=3):
    return torch.rand(count, 3, 64, 48, generator=torch.Generator().manual_seed(5)) * 255


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("page", [VIT, SIMCC], ids=["vit", "simcc"])
@torch.no_grad()
def test_torchscript(trained, tmp_path, page):
    project, checkpoint, student = trained(page)
    (told,) = export(project, checkpoint, tmp_path / "net.pt", "ema_teacher")
    assert "off by" in told
    written, want = torch.jit.load(tmp_path / "net.pt")(pictures()), PoseFunction(student)(pictures())
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (written, want)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("page", [VIT, SIMCC], ids=["vit", "simcc"])
@torch.no_grad()
def test_onnx(trained, tmp_path, page):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    project, checkpoint, student = trained(page)
    export(project, checkpoint, tmp_path / "net.onnx", "ema_teacher")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    want = PoseFunction(student)(pictures())
    for one, other in zip(
        session.run(None, {"images": pictures().numpy()}),
        want if isinstance(want, tuple) else (want,),
        strict=True,
    ):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4 * float(other.abs().max()))
    assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []


@torch.no_grad()
def test_hugging_face_goes_there_and_back(trained, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    project, checkpoint, student = trained(VIT)
    (told,) = export(project, checkpoint, tmp_path / "vitpose", "ema_teacher")
    assert "run by transformers" in told
    loaded = transformers.VitPoseForPoseEstimation.from_pretrained(
        tmp_path / "vitpose", local_files_only=True
    )
    network = loaded.eval()
    assert network.config.id2label[0] == "nose" and network.config.num_labels == 17
    processor = transformers.VitPoseImageProcessor.from_pretrained(tmp_path / "vitpose")
    mean, std = (torch.tensor(getattr(processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
    want = PoseFunction(student)(pictures())
    torch.testing.assert_close(
        network(pixel_values=(pictures() / 255 - mean) / std).heatmaps, want, atol=1e-4, rtol=1e-4
    )
    again = torch.load(checkpoint)["state_dict"]  # and a training can start from it
    other = build_student(project.model)
    load_network(other, tmp_path / "vitpose")
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, again[name], msg=name)


PLAIN = """
import sys
import numpy as np
import plain_shims
config, checkpoint, picture, out, *corners = sys.argv[1:]
from mmpose.apis import inference_topdown, init_model
model = init_model(config, checkpoint, device="cpu")
box = np.array([[float(one) for one in corners]])
(sample,) = inference_topdown(model, picture, box, bbox_format="xyxy")
np.savez(out, keypoints=sample.pred_instances.keypoints, scores=sample.pred_instances.keypoint_scores)
assert not any(name.startswith("sagecache") for name in sys.modules), "sagecache was imported"
"""


@pytest.mark.parametrize(
    "box", [(70.0, 70.0, 40.0, 40.0), (-30.0, -20.0, 240.0, 260.0)], ids=["inside", "beyond the edges"]
)
def test_plain_mmpose_predicts_the_same_keypoints(trained, tmp_path, box):
    """In a process that never imports sagecache; mmpose on today's torch needs repairs of its own there."""
    project, checkpoint, _ = trained(RESNET)
    rules = replace(project.data.evaluation, sampling="mmpose")
    project.data = replace(project.data, evaluation=rules)
    told = export(project, checkpoint, tmp_path / "plain.pth", "ema_teacher")
    assert "plain.py: its config" in told[1]
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), cv2.GaussianBlur(image, (0, 0), 3))
    instance = Instance(1, 0, tmp_path / "x.png", box)
    (ours,) = predict(project, checkpoint, [instance])
    shutil.copyfile(Path(__file__).parents[1] / "plain_shims.py", tmp_path / "plain_shims.py")
    (tmp_path / "run.py").write_text(PLAIN)
    corners = [str(one) for one in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *"run.py plain.py plain.pth x.png out.npz".split(), *corners],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    want = np.array(ours["keypoints"]).reshape(17, 3)
    np.testing.assert_allclose(found["keypoints"][0], want[:, :2], atol=0.02)
    np.testing.assert_allclose(found["scores"][0], want[:, 2], atol=1e-3)


def test_the_demo_has_no_plain_config_and_says_so(tmp_path):
    project = Project.open(embedded_project())
    checkpoint = tmp_path / "w.pth"
    torch.save({"state_dict": build_student(project.model).state_dict()}, checkpoint)
    told = export(project, checkpoint, tmp_path / "plain.safetensors", "ema_teacher")
    assert "mmpose has no PoseNet" in told[1] and not (tmp_path / "plain.py").exists()


def test_networks_that_vitpose_is_not(trained, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    project, checkpoint, _ = trained(RESNET)
    with pytest.raises(SagecacheError, match="no such network: the backbone is no ViT"):
        export(project, checkpoint, tmp_path / "net", "ema_teacher", "huggingface")
    project, checkpoint, _ = trained(VIT.replace("(256, 256)", "(8, 8)"), "odd")
    with pytest.raises(SagecacheError, match="its head is neither the classic one"):
        export(project, checkpoint, tmp_path / "net", "ema_teacher")
    assert not (tmp_path / "net").exists()
    project, checkpoint, _ = trained(
        VIT.replace("feedforward_channels=128", "feedforward_channels=100"), "wide"
    )
    with pytest.raises(SagecacheError, match="no feed-forward of 100 channels"):
        export(project, checkpoint, tmp_path / "net", "ema_teacher")
    assert not (tmp_path / "net").exists()


def test_onnx_of_a_large_network_has_its_weights_beside_it(trained, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 10_000)  # bytes; torch's is 1.5 GiB
    project, checkpoint, student = trained(VIT)
    left = tmp_path / ".net.onnx.export-999999999-abc"  # of a process that was killed
    left.mkdir()
    (left / "net.onnx.data").write_bytes(b"half")
    (told,) = export(project, checkpoint, tmp_path / "net.onnx", "ema_teacher")
    assert sorted(one.name for one in tmp_path.iterdir() if "net.onnx" in one.name) == [
        "net.onnx",
        "net.onnx.data",
    ]
    assert "its weights: net.onnx.data" in told
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 64, 48) * 255
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = PoseFunction(student.eval())(images)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-3)
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(SagecacheError, match=r"net.onnx.data: is already there.*--force"):
        export(project, checkpoint, tmp_path / "net.onnx", "ema_teacher")
    monkeypatch.undo()
    export(project, checkpoint, tmp_path / "net.onnx", "ema_teacher", force=True)
    assert not (tmp_path / "net.onnx.data").exists()  # this one needs no second file


def test_files_of_an_export_have_the_mode_of_new_files(trained, tmp_path):
    project, checkpoint, _ = trained(VIT)
    (tmp_path / "new").touch()
    for name in ("one.safetensors", "two.pth"):
        export(project, checkpoint, tmp_path / name, "ema_teacher")
        assert (tmp_path / name).stat().st_mode == (tmp_path / "new").stat().st_mode


def test_an_export_takes_nobody_s_place(trained, tmp_path):
    """A forgotten suffix names the project's own folder, and model.pth the project's own page."""
    project, checkpoint, _ = trained(VIT)
    before = {path: path.read_bytes() for path in project.folder.rglob("*.py")}
    with pytest.raises(SagecacheError, match="is a folder that no export has written.*such as pose.pth"):
        export(project, checkpoint, project.folder, "ema_teacher", force=True)
    with pytest.raises(SagecacheError, match="model.py: is where its config goes, and no export has"):
        export(project, checkpoint, project.folder / "model.pth", "ema_teacher", force=True)
    assert {path: path.read_bytes() for path in project.folder.rglob("*.py")} == before
    assert not (project.folder / "model.pth").exists()


def test_an_earlier_export_is_replaced_when_asked_for(trained, tmp_path):
    project, checkpoint, _ = trained(VIT)
    for output in (tmp_path / "out" / "pose.pth", tmp_path / "out" / "folder"):
        if not output.suffix:
            pytest.importorskip("transformers", reason="transformers is not installed")
        output.parent.mkdir(exist_ok=True)
        export(project, checkpoint, output, "ema_teacher")
        with pytest.raises(SagecacheError, match="is already there.*--force"):
            export(project, checkpoint, output, "ema_teacher")
        export(project, checkpoint, output, "ema_teacher", force=True)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["folder", "pose.pth", "pose.py"]


def test_for_mmpose_a_foreign_layout_is_written_under_mmpose_s_names(trained, tmp_path):
    """A Hugging Face checkpoint, exported, has the names and shapes of its config."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    project, checkpoint, student = trained(VIT)
    export(project, checkpoint, tmp_path / "hf", "ema_teacher")
    export(project, tmp_path / "hf" / "model.safetensors", tmp_path / "plain.pth", "ema_teacher")
    written = torch.load(tmp_path / "plain.pth", weights_only=True)["state_dict"]
    assert {name: value.shape for name, value in written.items()} == {
        name: value.shape for name, value in student.state_dict().items()
    }


def test_the_plain_config_keeps_the_norms_epsilon(trained):
    project, _, _ = trained(
        VIT.replace(
            'type="VisionTransformer",', 'type="VisionTransformer", norm_cfg=dict(type="LN", eps=1e-2),'
        )
    )
    namespace: dict = {}
    exec(mmpose_config(project), namespace)
    assert namespace["model"]["backbone"]["norm_cfg"] == dict(type="LN", eps=1e-2)


def test_a_suffix_of_no_export_is_told(trained, tmp_path):
    project, checkpoint, _ = trained(VIT)
    with pytest.raises(
        SagecacheError, match=r"no export has the suffix '.foo'.*\.pth, \.safetensors, \.onnx"
    ):
        export(project, checkpoint, tmp_path / "pose.foo", "ema_teacher")


def test_an_export_never_takes_the_checkpoint_s_place_nor_a_stranger_s_folder(trained, tmp_path):
    project, checkpoint, _ = trained(VIT)
    before = checkpoint.read_bytes()
    with pytest.raises(SagecacheError, match="is the checkpoint itself"):
        export(project, checkpoint, checkpoint, "ema_teacher", force=True)
    assert checkpoint.read_bytes() == before
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "notes.txt"):
        (folder / name).write_text("mine")
    with pytest.raises(SagecacheError, match="is a folder that no export has written"):
        export(project, checkpoint, folder, "ema_teacher", force=True)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(SagecacheError, match="is where its config goes"):
        export(project, checkpoint, tmp_path / "pose.py", "ema_teacher", "mmpose")
    (tmp_path / ".tmp-pose.pth").write_text("mine")
    export(project, checkpoint, tmp_path / "pose.pth", "ema_teacher")
    assert (tmp_path / ".tmp-pose.pth").read_text() == "mine" and not list(tmp_path.glob(".export-*"))
