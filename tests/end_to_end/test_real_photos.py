"""The whole line on real photos: a small ViT of Sapiens' shape as student, another as TorchScript teacher.

The photos are no part of the repository; beside a checkout of the developers they lie in ../shared.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from typed import sagecache

from sagecache.models.vit import VisionTransformer
from sagecache.project import Project
from sagecache.store import StoreReader

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"
pytestmark = [
    pytest.mark.skipif(
        not PHOTOS.is_dir(), reason="no real photos beside this checkout (../shared/data/real)"
    ),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
SPLITS = dict(labeled=(196141, 197388), unlabeled=(40083,), val=(785,))
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128)
MODEL = f"""
codec = dict(type="UDPHeatmap", input_size=(48, 64), heatmap_size=(12, 16), sigma=1)
model = dict(
    type="TopdownPoseEstimator",
    data_preprocessor=dict(
        type="PoseDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(type="VisionTransformer", arch={ARCH}, img_size=(64, 48), patch_cfg=dict(padding=2)),
    head=dict(
        type="HeatmapHead", in_channels=32, out_channels=17, deconv_out_channels=(256, 256),
        deconv_kernel_sizes=(4, 4), loss=dict(type="KeypointMSELoss", use_target_weight=True), decoder=codec,
    ),
    train_cfg=dict(compute_acc=False),
    test_cfg=dict(flip_test=True, flip_mode="heatmap", shift_heatmap=False),
)
"""
DECAY = 'constructor="LayerDecayOptimWrapperConstructor", paramwise_cfg=dict(layer_decay_rate=0.8)'


class Bump(nn.Module):
    """A ViT that runs, and beside it what a body might be: a hill with its own normals (OpenCV's axes)."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.output, self.backbone = output, VisionTransformer(ARCH, (128, 96))

    def forward(self, images: Tensor) -> Tensor:
        nothing = 0 * self.backbone(images).mean((1, 2, 3))[:, None, None]
        y = torch.linspace(-1.33, 1.33, 128)[:, None].expand(128, 96)
        x = torch.linspace(-1, 1, 96).expand(128, 96)
        height = 0.3 * (x**2 + y**2) + nothing  # (B, 128, 96), grows away from the camera
        if self.output == "depth":
            return height[:, None]
        slope_x, slope_y = 0.6 * x + nothing, 0.6 * y + nothing
        return torch.stack([slope_x, slope_y, -torch.ones_like(slope_x)], 1)


def write_project(folder: Path) -> Path:
    folder.mkdir()
    truth = json.loads((PHOTOS / "annotations" / "person_keypoints.json").read_text())
    lines = ['cache_root = "cache"', 'work_root = "work_dirs"', "splits = dict("]
    for name, ids in SPLITS.items():
        part = dict(
            images=[one for one in truth["images"] if one["id"] in ids],
            annotations=[]
            if name == "unlabeled"
            else [one for one in truth["annotations"] if one["image_id"] in ids],
            categories=truth["categories"],
        )
        (folder / f"{name}.json").write_text(json.dumps(part))
        boxes = "detect" if name == "unlabeled" else "annotations"
        lines.append(
            f'    {name}=dict(images="{PHOTOS / "images"}", annotations="{name}.json", boxes="{boxes}"),'
        )
    files = {}
    for output in ("depth", "normal"):
        network = Bump(output).eval()
        files[output] = f"{output}.pt"
        torch.jit.trace(network, torch.zeros(2, 3, 128, 96)).save(str(folder / files[output]))
    lines += [
        ")",
        f'teacher = dict(type="torchscript", files={files}, input_size=(96, 128), map_size=(96, 128))',
    ]
    (folder / "data.py").write_text("\n".join([*lines, 'detector = dict(type="demo")']) + "\n")
    (folder / "model.py").write_text(MODEL)
    optimiser = f'optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.1), {DECAY})'
    common = ["train_cfg = dict(max_iters=3, val_interval=3, log_interval=1)", optimiser, "amp = True"]
    stage0 = [
        'data = dict(labeled="labeled", val="val")',
        "batch = dict(labeled=4)",
        "views = dict(strong=dict(flip=0.5))",
    ]
    stage1 = [
        'load_from = "stage0"',
        'data = dict(labeled="labeled", unlabeled="unlabeled", val="val", on_missing="skip")',
        "batch = dict(labeled=4, unlabeled=2)",
        "views = dict(weak=dict(), strong=dict(rotation=20, flip=0.5))",
        "semi = dict(pseudo_labels=dict(threshold=0.0), gate=dict(teacher_b='none'), terms=dict(",
        '    consistency=dict(weight=1.0, loss="mse", target="heatmap"),',
        "    cmgc_depth=dict(weight=0.1), cmgc_normal=dict(weight=0.1)))",
    ]
    (folder / "stage0.py").write_text("\n".join([*stage0, *common]) + "\n")
    (folder / "stage1_full.py").write_text("\n".join([*stage1, *common]) + "\n")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("real") / "project")
    sagecache(folder, "precompute", "detect", "--split", "unlabeled")
    sagecache(folder, "precompute", "all")
    sagecache(folder, "train", "stage0")
    sagecache(folder, "train", "stage1-full")
    return folder


def test_targets_of_every_person_are_there(project):
    opened = Project.open(project)
    for split in ("labeled", "unlabeled"):
        reader = StoreReader(project / "cache" / split / "geo")
        assert len(reader.ids) == len(opened.instances(split)) > 0
        one = reader.read(*reader.ids[0].tolist())
        assert np.ptp(one["depth"]) > 0


def test_training_learned_from_labels_teacher_and_geometry(project):
    (log,) = (project / "work_dirs" / "stage1_full").glob("*/vis_data/scalars.json")
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]
    assert len(rows) == 3
    for name in ("loss_kpt", "loss_consistency", "loss_cmgc_depth", "loss_cmgc_normal"):
        assert all(np.isfinite(row[name]) for row in rows), name


def test_it_is_scored_shown_and_exported(project, tmp_path):
    scored = json.loads(sagecache(project, "eval", "--json").stdout)
    assert scored["persons"] == 1 and 0 <= scored["AP"] <= 1
    sagecache(project, "inspect", "785", "--split", "val", "--out", tmp_path / "panel.png")
    assert (tmp_path / "panel.png").stat().st_size > 1000
    told = sagecache(project, "export", tmp_path / "plain.pth").stdout
    assert "plain mmpose checkpoint" in told and (tmp_path / "plain.py").is_file()
    assert "off by" in sagecache(project, "export", tmp_path / "net.pt").stdout


def test_poses_and_boxes_of_the_unlabeled_photo(project, tmp_path):
    words = ["--out", tmp_path / "poses.json", "--boxes", tmp_path / "boxes.json", "--confidence", "0"]
    sagecache(project, "predict", *words)
    poses, boxes = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("poses", "boxes"))
    assert 0 < len(boxes) <= len(poses) and {one["image_id"] for one in boxes} == {40083}


def test_ap_of_mmpose_s_published_test_inputs_is_pycocotools_(tmp_path):
    """mmpose's test of its CocoMetric on these annotations: truth x .98, y 1.02, scores .8."""
    labels = PHOTOS / "annotations" / "person_keypoints.json"
    truth = json.loads(labels.read_text())
    results = [
        dict(
            image_id=one["image_id"],
            category_id=1,
            keypoints=(np.reshape(one["keypoints"], (-1, 3)) * [0.98, 1.02, 0.8]).ravel().tolist(),
            score=0.8 * float(np.mean(one["keypoints"][2::3])),
        )
        for one in truth["annotations"]
    ]
    out = tmp_path / "results.json"
    out.write_text(json.dumps(results))
    project = write_project(tmp_path / "photos")
    page = project / "data.py"
    whole = f'splits["all"] = dict(images="{PHOTOS / "images"}", annotations="{labels}")'
    page.write_text(f"{page.read_text()}\n{whole}\nevaluation = dict(area='annotation')\n")
    words = ("eval", "--split", "all", "--predictions", str(out), "--json")
    ours = json.loads(sagecache(project, *words).stdout)
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(coco := COCO(labels), coco.loadRes(str(out)), "keypoints")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    figures = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
    assert [ours[name] for name in figures] == pytest.approx(judge.stats.tolist(), abs=1e-7)
    assert 0.1 < ours["AP"] < 0.99
