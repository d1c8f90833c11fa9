"""sagecache predict: results that pycocotools reads, boxes that a split takes, folders that are gone."""

from __future__ import annotations

import json
import re

import dots_network  # noqa: F401  (its network, by name)
import pytest
import torch
from dots import write_dots_project
from pycocotools.coco import COCO
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


def test_a_folder_that_is_not_there_is_told_first(folder, tmp_path):
    with pytest.raises(SagecacheError, match="no such folder"):
        sagecache(folder, "predict", "--split", "val", "--out", tmp_path / "gone" / "poses.json")
