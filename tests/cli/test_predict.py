"""sagecache predict: results that pycocotools reads, boxes that a split takes, folders that are gone."""

from __future__ import annotations

import json
import re
import warnings

import cv2
import dots_network  # noqa: F401  (its network, by name)
import numpy as np
import pytest
import torch
from dots import write_dots_project
from pycocotools.coco import COCO
from torch import Tensor, nn
from typed import sagecache

from sagecache.data.coco import load_detections
from sagecache.errors import SagecacheError
from sagecache.mm.registry import build_student
from sagecache.project import Project


@pytest.fixture
def folder(tmp_path):
    folder = write_dots_project(tmp_path / "mine")
    path = folder / "work_dirs" / "stage0" / "iter_4.pth"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": build_student(Project.open(folder).model).state_dict()}, path)
    return folder


def test_keypoints_and_boxes_of_a_split(folder, tmp_path):
    words = ["--split", "val", "--out", tmp_path / "poses.json", "--boxes", tmp_path / "boxes.json"]
    said = json.loads(sagecache(folder, "predict", *words, "--confidence", "0", "--json").stdout)
    poses = json.loads((tmp_path / "poses.json").read_text())
    truth = folder / "data" / "val" / "annotations.json"
    assert said["persons"] == len(poses) == len(json.loads(truth.read_text())["annotations"])
    assert len(COCO(truth).loadRes(str(tmp_path / "poses.json")).anns) == len(poses)
    assert len(load_detections(tmp_path / "boxes.json")) == said["boxed"]
    text = sagecache(folder, "predict", *words, "--confidence", "0").stdout
    named = re.search('in data.py boxes="(.*)"', text)[1]
    assert (folder / named).resolve() == (tmp_path / "boxes.json").resolve()  # data.py's paths start there
    assert "above --confidence 1" in sagecache(folder, "predict", *words, "--confidence", "1").stderr


class Middle(nn.Module):
    """A sure box in the middle of each picture that is not of one grey, and an unsure one."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes = torch.tensor([[16.0, 16.0, 48.0, 48.0], [0.0, 0.0, 64.0, 64.0]]).expand(len(x), 2, 4)
        sure = (x.flatten(1).std(1) > 0.02).float()[:, None]
        return boxes, sure * torch.tensor([[0.9, 0.2]])


@pytest.fixture
def with_detector(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Middle()).save(str(folder / "middle.pt"))
    page = folder / "data.py"
    detector = 'detector = dict(type="torchscript", path="middle.pt", input_size=(64, 64))'
    page.write_text(page.read_text().replace('detector = dict(type="demo")', detector))
    return folder


def test_pictures_of_no_split_by_the_detector_of_data_py(with_detector, tmp_path):
    """A square picture, and the same three times as large: the pose lies at the same place."""
    pictures = tmp_path / "new"
    (pictures / "below").mkdir(parents=True)
    picture = cv2.imread(str(with_detector / "data" / "val" / "images" / "000000000301.png"))[:192, :192]
    cv2.imwrite(str(pictures / "below" / "small.png"), picture)
    cv2.imwrite(str(pictures / "Large.PNG"), cv2.resize(picture, None, fx=3, fy=3))
    words = ["--out", tmp_path / "poses.json", "--preview", tmp_path / "sheet.png", "--confidence", "0"]
    said = json.loads(sagecache(with_detector, "predict", "--images", pictures, *words, "--json").stdout)
    poses = {one["file_name"]: one for one in json.loads((tmp_path / "poses.json").read_text())}
    assert said["persons"] == 2 and said["images"] == str(pictures)
    small, large = poses["below/small.png"], poses["Large.PNG"]
    assert small["bbox"] == [47.5, 47.5, 96, 96] and large["bbox"] == [143.5, 143.5, 288, 288]
    assert small["image_id"] != large["image_id"]
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None and sheet.std() > 10
    alone = ["--images", pictures / "below" / "small.png"]
    assert json.loads(sagecache(with_detector, "predict", *alone, *words, "--json").stdout)["persons"] == 1


def test_pictures_without_a_person_give_no_pose_and_unreadable_ones_are_told(with_detector, tmp_path):
    pictures = tmp_path / "new"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "grey.png"), np.full((64, 48, 3), 128, np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    encoded = cv2.imencode(".jpg", noise)[1].tobytes()
    (pictures / "cut.jpg").write_bytes(encoded[: len(encoded) // 2])
    (pictures / "page.jpg").write_text("<html>404</html>")
    done = sagecache(with_detector, "predict", "--images", pictures, "--out", tmp_path / "poses.json")
    assert "cut.jpg" in done.stderr and "page.jpg" in done.stderr
    assert json.loads((tmp_path / "poses.json").read_text()) == []
    words = ["--images", pictures, "--split", "val", "--out", tmp_path / "poses.json"]
    assert "exclude each other" in sagecache(with_detector, "predict", *words, code=2).output


def test_a_result_takes_nobody_s_place(with_detector, tmp_path):
    labels = with_detector / "data" / "val" / "annotations.json"
    checkpoint = with_detector / "work_dirs" / "stage0" / "iter_4.pth"
    picture = with_detector / "data" / "val" / "images" / "000000000301.png"
    before = {path: path.read_bytes() for path in (labels, checkpoint, picture)}
    poses, again = tmp_path / "poses.json", tmp_path / "." / "poses.json"
    for words, told in (
        (["--split", "val", "--out", labels], "annotations.json: is read by this command"),
        (["--split", "test", "--out", labels], "annotations.json: is there, and is no earlier result"),
        (["--split", "val", "--out", checkpoint], "iter_4.pth: is read by this command"),
        (["--split", "val", "--out", poses, "--boxes", again], "--out and --boxes name the same file"),
        (["--split", "val", "--out", poses, "--preview", picture], "301.png: is read by this command"),
        (["--images", picture, "--out", poses, "--preview", picture], "301.png: is read by this command"),
    ):
        with pytest.raises(SagecacheError, match=told):
            sagecache(with_detector, "predict", *words)
    assert {path: path.read_bytes() for path in before} == before and not poses.exists()
    with pytest.raises(SagecacheError, match="annotations.json: is read by this command"):
        sagecache(with_detector, "eval", "--split", "val", "--out", labels)
    poses.touch()  # as mktemp makes it
    for _ in range(2):  # an earlier result is replaced
        sagecache(with_detector, "predict", "--split", "val", "--out", poses)


def test_a_folder_that_is_not_there_is_told_first(folder, tmp_path):
    with pytest.raises(SagecacheError, match="no such folder"):
        sagecache(folder, "predict", "--split", "val", "--out", tmp_path / "gone" / "poses.json")
