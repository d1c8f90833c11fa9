"""Small files in the formats that `data convert` reads, and pycocotools as the judge of what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZE = (160, 120)  # width, height of the pictures here


def write_image(path: Path, size: tuple[int, int] = SIZE, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((size[1], size[0], 3), shade, np.uint8))
    return path


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def perfect_ap(coco: dict) -> float:
    """AP of a detector that says exactly what the annotations say, by pycocotools."""
    truth = COCO()
    truth.dataset = json.loads(json.dumps(coco))
    truth.createIndex()
    said = [
        dict(image_id=one["image_id"], category_id=1, keypoints=list(map(float, one["keypoints"])), score=0.9)
        for one in coco["annotations"]
        if one["num_keypoints"]
    ]
    judge = COCOeval(truth, truth.loadRes(said), "keypoints")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[0])


def mini_rgbd_text(points: np.ndarray, base: int = 0) -> str:
    """points (25, 2) as a joint file."""
    return "".join(f"{x:.6f} {y:.6f} 900.0 {k + base}\n" for k, (x, y) in enumerate(points))


def write_mini_rgbd(
    root: Path, points: np.ndarray, sequences: Sequence[str] = ("01", "02"), base: int = 0, frames: int = 2
) -> Path:
    """Each frame has the same points (25, 2)."""
    for i, sequence in enumerate(sequences):
        for frame in range(frames):
            write_image(root / sequence / "rgb" / f"syn_{frame:05d}.png", shade=90 + 10 * i + frame)
            file = root / sequence / "joints_2Ddep" / f"syn_joints_2Ddep_{frame:05d}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(mini_rgbd_text(points, base))
    return root


def smil_points() -> np.ndarray:
    """(25, 2): every joint somewhere else, all inside SIZE."""
    k = np.arange(25)
    return np.stack([20.0 + 5 * k, 15.0 + 3.5 * k], axis=1)


def cvat_points(
    label: str, x: float, y: float, *, outside: int = 0, occluded: int = 0, group: int = 0
) -> str:
    grouped = f' group_id="{group}"' if group else ""
    return (
        f'<points label={quoteattr(label)} source="manual" outside="{outside}" occluded="{occluded}" '
        f'points="{x:.2f},{y:.2f}"{grouped}></points>'
    )


def cvat_xml(images: Sequence[str], meta: str = "") -> str:
    """images: the content of each <image>."""
    listed = "".join(
        f'<image id="{i}" name="{i}.jpg" width="{SIZE[0]}" height="{SIZE[1]}">{content}</image>'
        for i, content in enumerate(images)
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    return f"{head}<annotations><version>1.1</version>{meta}{listed}</annotations>"


def skeleton_xml(points: Sequence[str], group: int = 0) -> str:
    grouped = f' group_id="{group}"' if group else ""
    return f'<skeleton label="person" source="manual" z_order="0"{grouped}>{"".join(points)}</skeleton>'


def studio_point(label: str, x: float, y: float, **extra) -> dict:
    """x, y in pixels of SIZE, written as Label Studio does: in percent."""
    value = dict(x=100 * x / SIZE[0], y=100 * y / SIZE[1], width=0.5, keypointlabels=[label])
    sizes = dict(original_width=SIZE[0], original_height=SIZE[1], image_rotation=0)
    return sizes | dict(value=value, type="keypointlabels") | extra


def studio_box(x: float, y: float, w: float, h: float, **extra) -> dict:
    percent = dict(
        x=100 * x / SIZE[0], y=100 * y / SIZE[1], width=100 * w / SIZE[0], height=100 * h / SIZE[1]
    )
    value = percent | dict(rotation=0, rectanglelabels=["person"])
    sizes = dict(original_width=SIZE[0], original_height=SIZE[1], image_rotation=0)
    return sizes | dict(value=value, type="rectanglelabels") | extra


def studio_task(number: int, result: Sequence[dict], image: str | None = None, **extra) -> dict:
    image = image or f"/data/upload/3/0123abcd-{number}.jpg"
    annotation = dict(id=number * 10, result=list(result), was_cancelled=False, ground_truth=False)
    return dict(id=number, data=dict(image=image), annotations=[annotation]) | extra
