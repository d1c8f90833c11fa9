"""sagecache teachers: who the frozen networks are. Their errors are measured in tests/end_to_end."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from dots import write_dots_project
from typed import sagecache

from sagecache.errors import SagecacheError
from sagecache.models.weights import weights_path


def render_val(folder, words: str) -> str:
    """Make val a rendered split with these words in data.py; returns the page's text."""
    page = folder / "data.py"
    page.write_text(page.read_text().replace("val=dict(", f"val=dict({words}, "))
    return page.read_text()


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "mine")


def test_the_teacher_is_known_by_its_weights_and_settings(folder):
    teacher = json.loads(sagecache(folder, "teachers", "--json").stdout)["teacher"]
    assert teacher["name"] == "demo-geometry" and set(teacher["outputs"]) == {"depth", "normal", "mask"}
    digest = hashlib.sha256(weights_path("geometry").read_bytes()).hexdigest()
    assert digest in json.dumps(teacher["fingerprint"])
    assert teacher["fingerprint"]["preprocessing"]["flip_test"] is False
    text = sagecache(folder, "teachers").stdout
    assert "frozen networks" in text and "demo-geometry" in text


def test_an_unknown_teacher_names_the_known(folder):
    page = folder / "data.py"
    page.write_text(page.read_text().replace('teacher = dict(type="demo"', 'teacher = dict(type="dmo"'))
    with pytest.raises(SagecacheError, match="dmo.*demo"):
        sagecache(folder, "teachers")


def test_errors_need_a_split_whose_geometry_is_known(folder):
    with pytest.raises(SagecacheError, match="'val' has no ground-truth geometry"):
        sagecache(folder, "teachers", "--split", "val")
    render_val(folder, 'render=dict(look="target", count=1, seed=0, geometry=False)')
    with pytest.raises(SagecacheError, match="'val' has no ground-truth geometry"):
        sagecache(folder, "teachers", "--split", "val")


def test_detected_boxes_say_not_whose_they_are(folder):
    render_val(folder, 'boxes="detect", render=dict(look="target", count=1, seed=0)')
    with pytest.raises(SagecacheError, match="boxes of split 'val' are detected.*annotated boxes"):
        sagecache(folder, "teachers", "--split", "val")


def test_a_store_of_other_settings_is_not_measured(folder):
    page = folder / "data.py"
    text = render_val(folder, 'render=dict(look="target", count=2, seed=0, size=(128, 128))')
    shutil.rmtree(folder / "data" / "val")
    sagecache(folder, "data", "synth", "--split", "val", "--workers", "1")
    sagecache(folder, "precompute", "geo", "--split", "val")
    words = ("teachers", "--split", "val", "--json")
    page.write_text(text + "crop = dict(padding=1.5)\n")
    with pytest.raises(SagecacheError, match="crop.padding: 1.25 -> 1.5.*precompute geo --split val --force"):
        sagecache(folder, *words)
    assert not (folder / "cache" / "val" / "detections.json").exists()  # refused before the detector ran
    page.write_text(text)
    assert json.loads(sagecache(folder, *words).stdout)["instances"] == 2
