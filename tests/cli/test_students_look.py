"""Students of files, run as the files describe themselves: a peak stands where the network put it."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from dots import write_dots_project
from public_networks import WIDTH, vit_state
from typed import sagecache

from sagecache.cli.students_look import look_at_student
from sagecache.cli.teachers_look import Person
from sagecache.errors import SagecacheError
from sagecache.models.identify import identify

GRID = (4, 3)


def pose_state(joints=5):
    """A ViT, and one 1x1 layer that gives maps."""
    draw = torch.Generator().manual_seed(3)
    head = torch.randn(joints, WIDTH, 1, 1, generator=draw)
    return vit_state(GRID) | {"head.final_layer.weight": head, "head.final_layer.bias": torch.zeros(joints)}


@pytest.fixture
def save(tmp_path):
    def save(state):
        torch.save(state, tmp_path / "net.pth")
        return tmp_path / "net.pth"

    return save


@pytest.fixture
def person():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    return Person(pixels, (-0.5, -0.5, 48.0, 64.0), 1.0)


def look(path, person, tmp_path):
    settings = identify(path).settings
    return look_at_student(settings, path, person, tmp_path / "look.png", "cpu")


def test_a_pose_network_shows_its_keypoints(save, person, tmp_path):
    told, finite = look(save(pose_state()), person, tmp_path)
    assert finite and told["looked at"] == "a crop of 48x64" and told["keypoints"].startswith("5, ")
    assert cv2.imread(str(tmp_path / "look.png")).shape[1] > 2 * 48


def test_a_backbone_shows_its_features(save, person, tmp_path):
    told, finite = look(save(vit_state(GRID)), person, tmp_path)
    assert finite and told["features"] == f"{WIDTH} channels of 3x4"
    assert cv2.imread(str(tmp_path / "look.png")) is not None


def test_a_gpu_that_is_not_there_is_told(save, person, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path = save(pose_state())
    with pytest.raises(SagecacheError, match="device 'cuda' is asked for, and torch sees none"):
        look_at_student(identify(path).settings, path, person, tmp_path / "look.png", "cuda")


def test_numbers_that_are_none_are_told(save, person, tmp_path):
    state = pose_state()
    state["head.final_layer.weight"].fill_(3e38)  # a number, and the largest: twice it is none
    told, finite = look(save(state), person, tmp_path)
    assert not finite and "finite" in told["broken"]


def test_teachers_check_runs_students_too(save, tmp_path):
    folder = write_dots_project(tmp_path / "mine")

    def check(state, *words, code=0):
        words = (str(save(state)), "--output", str(tmp_path / "look.png"), "--json", *words)
        return json.loads(sagecache(folder, "teachers", "check", *words, code=code).stdout)

    said = check(pose_state())
    assert said["usable"] and said["says"]["picture"] == str(tmp_path / "look.png")
    assert check(vit_state(GRID), "--size", "96x128")["says"]["features"] == f"{WIDTH} channels of 6x8"
    hrnet = {"backbone.stage2.weight": torch.zeros(1), "head.final_layer.weight": torch.zeros(17, 1, 1, 1)}
    said = check(hrnet, code=1)  # its names were compared with nothing
    assert not said["usable"] and "model.py" in said["says"]["use"]


def test_settings_that_do_not_fit_are_one_error(save, person, tmp_path):
    path = save(pose_state())
    settings = dict(identify(path).settings)
    settings["head"] = settings["head"] | dict(out_channels=17)
    with pytest.raises(SagecacheError, match="net.pth"):
        look_at_student(settings, path, person, tmp_path / "look.png", "cpu")
