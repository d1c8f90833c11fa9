"""A project whose poses can be read off its pictures: each joint is a disc of a colour of its own.

Written in a moment, needs no renderer; dots_network.py has the network that reads the discs.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

SIZE = (320, 200)  # of a picture: room for two persons side by side
RADIUS = 6
ANGLES = np.linspace(0.03, np.pi / 2 - 0.03, 17)  # of a joint's colour, red towards green
COLOURS = np.stack([240 * np.cos(ANGLES), 240 * np.sin(ANGLES)], -1)  # (17, 2) red, green
MODEL = """
codec = dict(type="UDPHeatmap", input_size=(96, 128), heatmap_size=(24, 32), sigma=4 / 3, blur_kernel_size=5)
model = dict(
    type="TopdownPoseEstimator",
    data_preprocessor=dict(type="PoseDataPreprocessor", mean=[0.0] * 3, std=[1.0] * 3, bgr_to_rgb=True),
    backbone=dict(type="DotsBackbone"),
    head=dict(type="DotsHead", decoder=codec),
    test_cfg=dict(flip_test=True, flip_mode="heatmap", shift_heatmap=False),
)
"""
STAGE0 = """
train_cfg = dict(max_iters=4, val_interval=4, log_interval=1)
batch = dict(labeled=2, workers=0)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01))
"""
STAGE1 = """
_base_ = "stage0.py"
load_from = "stage0"
data = dict(unlabeled="unlabeled")
batch = dict(unlabeled=3)
semi = dict(
    pseudo_labels=dict(threshold=0.5),
    gate=dict(threshold_confidence=0.7, threshold_plausibility=0.0),
    terms=dict(consistency=dict(weight=1.0), cmgc_depth=dict(weight=0), diffusion=dict(weight=0)),
)
"""
SPLITS = {"labeled": 3, "unlabeled": 4, "val": 2, "test": 2}


def make_person(rng: np.random.Generator, left: float, hidden: int) -> np.ndarray:
    """(17, 3) joints on a jittered grid from (left, 30) on, no two discs touching; the first are hidden."""
    cells = rng.permutation(20)[:17]
    corners = np.array([left + 8, 38]) + 26 * np.stack([cells % 4, cells // 4], -1)
    joints = np.c_[corners + rng.integers(0, 11, (17, 2)), np.full(17, 2)]
    joints[:hidden] = 0
    return joints


def draw_body(image: np.ndarray, left: int) -> None:
    """A dim figure in the box from (left, 30) on, of which the demo's geometry teacher makes a mask."""

    def place(*point: int) -> tuple[int, int]:
        return left + point[0], 30 + point[1]

    shade = (85, 72, 0)  # far from as bright as a disc
    cv2.circle(image, place(60, 18), 17, shade, -1)
    cv2.ellipse(image, place(60, 65), (24, 34), 0, 0, 360, shade, -1)
    for start, end in (
        ((45, 45), (12, 70)),
        ((75, 45), (108, 70)),
        ((50, 95), (30, 140)),
        ((70, 95), (90, 140)),
    ):
        cv2.line(image, place(*start), place(*end), shade, 13)


def draw(people: list[np.ndarray]) -> np.ndarray:
    """RGB picture; blue climbs from left to right, so that a mirrored picture can be told."""
    image = np.zeros((*SIZE[::-1], 3), np.uint8)
    blue = np.linspace(0, 250, SIZE[0]).astype(np.uint8)
    for number, person in enumerate(people):
        draw_body(image, 10 + 155 * number)
        for x, y, visible in person.tolist():
            if visible:  # black around a disc, or resampling would mix its colour with the figure's
                cv2.circle(image, (x, y), RADIUS + 4, (0, 0, 0), -1)
        for (x, y, visible), (red, green) in zip(person.tolist(), COLOURS, strict=True):
            if visible:
                cv2.circle(image, (x, y), RADIUS, (round(red), round(green), 0), -1)
    image[..., 2] = blue
    return image


def write_split(folder: Path, count: int, first_id: int, hidden: int = 0) -> dict:
    """images/ and annotations.json: one person in every picture, two in every other one.

    hidden: joints that the second person of a picture lacks. Returns the COCO dict.
    """
    (folder / "images").mkdir(parents=True)
    content = dict(images=[], annotations=[], categories=[dict(id=1, name="person")])
    for image_id in range(first_id, first_id + count):
        rng = np.random.default_rng(image_id)
        people = [make_person(rng, 10 + 155 * k, hidden * k) for k in range(1 + image_id % 2)]
        name = f"{image_id:012d}.png"
        assert cv2.imwrite(str(folder / "images" / name), draw(people)[..., ::-1])
        content["images"].append(dict(id=image_id, file_name=name, width=SIZE[0], height=SIZE[1]))
        for k, joints in enumerate(people):
            content["annotations"].append(
                dict(
                    id=10 * image_id + k,
                    image_id=image_id,
                    category_id=1,
                    bbox=[10.0 + 155 * k, 30.0, 120.0, 146.0],
                    area=9000.0,
                    iscrowd=0,
                    num_keypoints=int((joints[:, 2] > 0).sum()),
                    keypoints=joints.ravel().tolist(),
                )
            )
    (folder / "annotations.json").write_text(json.dumps(content))
    return content


def write_dots_project(folder: Path, hidden: int = 0) -> Path:
    """Pages and four splits; image ids 101, … labeled, 201, … unlabeled, 301, … val, 401, … test."""
    lines = ['cache_root = "cache"', 'work_root = "work_dirs"', "shard_size = 4", "splits = dict("]
    for number, (name, count) in enumerate(SPLITS.items(), 1):
        write_split(folder / "data" / name, count, 100 * number + 1, hidden)
        lines.append(
            f'    {name}=dict(images="data/{name}/images", annotations="data/{name}/annotations.json"),'
        )
    lines += [")", 'teacher = dict(type="demo", flip_test=False)', 'detector = dict(type="demo")']
    pages = {"data": "\n".join(lines), "model": MODEL, "stage0": STAGE0, "stage1_full": STAGE1}
    for name, text in pages.items():
        (folder / f"{name}.py").write_text(text.strip() + "\n")
    return folder


def change_labels(folder: Path, split: str = "labeled") -> None:
    """Move the first joint of a split's first person by a pixel, as one who mends a label would."""
    path = folder / "data" / split / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["keypoints"][0] += 1
    path.write_text(json.dumps(content))


def true_joints(folder: Path, split: str) -> dict[int, np.ndarray]:
    """annotation id -> (17, 3), by json alone."""
    content = json.loads((folder / "data" / split / "annotations.json").read_text())
    return {one["id"]: np.reshape(one["keypoints"], (17, 3)) for one in content["annotations"]}
