"""sagecache teachers check and ls: what a file is, what it says of a picture, and when it fails."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from dots import write_dots_project
from public_networks import sapiens_state
from typed import sagecache

from sagecache.errors import SagecacheError


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
