"""A student's weight file run once on one person: where its keypoints are, or that its backbone answers.

The network is built as the file describes itself, not as a project's model.py does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagecache.cli.teachers_look import Person, crop_memory, write_sheet

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def look_at_student(
    settings: Mapping[str, Any], path: Path, person: Person, picture: Path, device: str
) -> tuple[dict[str, str], bool]:
    """Run a ViT, with its head where settings has one; (what it says, whether all of it is finite).

    settings: backbone and head as `models.identify` tells them. Raises SagecacheError for a file that doesn't
    fit them, and for a device that torch lacks.
    """
    import torch

    from sagecache.models.convnet import PIXEL_MEAN, PIXEL_STD
    from sagecache.models.footprint import run_watched
    from sagecache.teachers.base import usable_device

    place = usable_device(device)
    height, width = settings["backbone"]["img_size"]
    crop, _ = person.crop((width, height))
    network = (_pose if "head" in settings else _backbone)(settings, path).to(place).eval()
    pixels = torch.from_numpy(crop).to(place).permute(2, 0, 1)[None].float()
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    answer, widest = run_watched(network, (pixels - mean) / std)
    answer = answer[0] if isinstance(answer, tuple) else answer
    told = {"looked at": f"a crop of {width}x{height}", "memory": crop_memory((width, height), widest)}
    told |= (_show_keypoints if "head" in settings else _show_features)(crop, answer, picture)
    finite = bool(answer.isfinite().all())
    return told if finite else told | {"broken": "not every number of its answer is finite"}, finite


def _pose(settings: Mapping[str, Any], path: Path):
    """images (B, 3, H, W) -> heatmaps (B, K, h, w)."""
    from torch import nn

    from sagecache.mm.checkpoints import load_network
    from sagecache.mm.registry import build_student
    from sagecache.models.convnet import PIXEL_MEAN, PIXEL_STD

    height, width = settings["backbone"]["img_size"]
    patches = 2 ** len(settings["head"]["deconv_out_channels"])  # map pixels of a patch of 16
    size = (width // 16 * patches, height // 16 * patches)
    codec = dict(type="UDPHeatmap", input_size=(width, height), heatmap_size=size, sigma=2.0)
    student = build_student(
        dict(
            type="TopdownPoseEstimator",
            data_preprocessor=dict(
                type="PoseDataPreprocessor", mean=PIXEL_MEAN, std=PIXEL_STD, bgr_to_rgb=True
            ),
            backbone=dict(settings["backbone"]),
            head=dict(settings["head"]) | dict(loss=dict(type="KeypointMSELoss"), decoder=codec),
        ),
        initialise=False,
    )
    load_network(student, path)
    return nn.Sequential(student.backbone, student.head)


def _backbone(settings: Mapping[str, Any], path: Path):
    """images (B, 3, H, W) -> a tuple of features (B, C, h, w), as mmpose's backbones."""
    from sagecache.mm.checkpoints import load_backbone
    from sagecache.mm.vit import VisionTransformer

    options = {key: value for key, value in settings["backbone"].items() if key != "type"}
    network = VisionTransformer(**options)
    load_backbone(network, path)
    return network


def _show_keypoints(crop: np.ndarray, heatmaps: Tensor, picture: Path) -> dict[str, str]:
    import cv2
    import numpy as np

    from sagecache.visualization.draw import BOX
    from sagecache.visualization.sheet import Tile, grid

    maps = heatmaps[0].float().cpu().numpy()
    count, height, width = maps.shape
    peaks, shown = maps.reshape(count, -1).argmax(1), crop.copy()
    corner = np.array(crop.shape[1::-1]) - 1.0  # UDP: the corners' pixel centres coincide
    for x, y in np.stack([peaks % width, peaks // width], 1) * corner / [width - 1, height - 1]:
        radius = max(2, crop.shape[1] // 100)
        cv2.circle(shown, (round(x), round(y)), radius, BOX, -1, cv2.LINE_AA)
    write_sheet(picture, grid([Tile(crop, "crop"), Tile(shown, "keypoints")], 2))
    best = maps.reshape(count, -1).max(1)
    return {"keypoints": f"{count}, highest values of their maps from {best.min():.2f} to {best.max():.2f}"}


def _show_features(crop: np.ndarray, features: Tensor, picture: Path) -> dict[str, str]:
    import cv2
    import numpy as np

    from sagecache.visualization.draw import colour_depth
    from sagecache.visualization.sheet import Tile, grid

    length = features[0].float().norm(dim=0).cpu().numpy()
    shown, _ = colour_depth(length, np.isfinite(length))
    large = cv2.resize(shown, crop.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    write_sheet(picture, grid([Tile(crop, "crop"), Tile(large, "length of its features")], 2))
    _, channels, height, width = features.shape
    return {"features": f"{channels} channels of {width}x{height}"}
