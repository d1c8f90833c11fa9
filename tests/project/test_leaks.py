"""The guard before a training: which splits it compares, and when it stops or warns."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from dots import write_dots_project

from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.project.leaks import refuse_leaks


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "dots")


def share(folder, taken: str, given: str, count: int = 1) -> None:
    """List the first images of one split in another one too, by file name from its folder."""
    page = folder / "data.py"
    text = page.read_text().replace(f"data/{taken}/images", f"data/{given}/images")
    page.write_text(text)
    file = folder / "data" / taken / "annotations.json"
    content = json.loads(file.read_text())
    source = json.loads((folder / "data" / given / "annotations.json").read_text())
    content["images"] += source["images"][:count]
    file.write_text(json.dumps(content))


def check(folder, name: str = "stage1-full", overrides: dict | None = None) -> None:
    project = Project.open(folder)
    refuse_leaks(project, project.recipe(name, overrides)[0])


def test_a_sound_project_passes_in_silence(folder, caplog):
    for name in ("stage0", "stage1-full"):
        check(folder, name)
    assert caplog.text == ""


def test_val_among_unlabeled_images_is_refused_with_the_reason_and_the_command(folder):
    share(folder, "unlabeled", "val")
    with pytest.raises(SagecacheError) as caught:
        check(folder)
    error = caught.value
    assert error.file == folder / "data.py" and error.record.startswith("image 301 (")
    assert "1 image of 'val', which measures, is in 'unlabeled'" in error.message
    assert "transductively" in error.message
    command = f"sagecache --project {folder} data check --split val --split unlabeled"
    assert command in error.fix and "Remove them from 'unlabeled'" in error.fix


@pytest.mark.parametrize("taken", ["labeled", "unlabeled"])
def test_a_test_split_that_no_recipe_names_is_guarded_too(folder, taken):
    share(folder, taken, "test", 2)
    with pytest.raises(SagecacheError, match=f"2 images of 'test', which measures, are in '{taken}'"):
        check(folder)


def test_a_val_that_is_the_labeled_split_itself_is_meant_and_unlabeled_val_is_not(folder, caplog):
    page = folder / "data.py"
    original = page.read_text()
    page.write_text(original + "\nsplits['val'] = splits['labeled']\n")
    check(folder)
    assert "the figures would be those of images seen in training" in caplog.text
    page.write_text(original + "\nsplits['val'] = dict(splits['unlabeled'])\n")
    with pytest.raises(SagecacheError, match="of 'val', which measures, are in 'unlabeled'"):
        check(folder)


def test_without_unlabeled_images_it_is_a_warning(folder, caplog):
    """Also where the split is one and the same: to see that a network can learn images by heart."""
    share(folder, "labeled", "val")
    check(folder, "stage0")
    assert "is in 'labeled', which is trained on" in caplog.text
    caplog.clear()
    check(folder, "stage0", {"data.val": "labeled"})
    assert "3 images of 'labeled'" in caplog.text or "4 images of 'labeled'" in caplog.text
    with pytest.raises(SagecacheError, match="Remove them from 'labeled'"):
        check(folder, "stage1-full")


def test_a_recipe_that_measures_on_its_unlabeled_split_is_refused(folder):
    with pytest.raises(SagecacheError, match="Name another split than 'unlabeled'"):
        check(folder, "stage1-full", {"data.val": "unlabeled"})


def test_an_unread_unlabeled_split_and_shared_training_images_are_no_leak(folder, caplog):
    share(folder, "unlabeled", "val")
    check(folder, "stage1-full", {"batch.unlabeled": 0})
    assert caplog.text == ""


def test_labels_of_unlabeled_images_are_no_leak(folder, caplog):
    """The oracle's split: the same images, with their keypoints."""
    share(folder, "unlabeled", "labeled", 3)
    check(folder)
    assert caplog.text == ""


def test_recordings_stop_it_and_may_be_let_through(folder, caplog):
    for name in ("val", "unlabeled"):
        file = folder / "data" / name / "annotations.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            image["video_id"] = "crib 5"
        file.write_text(json.dumps(content))
    with pytest.raises(SagecacheError, match="frames of 1 recording are in 'unlabeled'") as caught:
        check(folder)
    assert caught.value.record == "'video_id crib 5'" and "guards.recordings='warn'" in caught.value.fix
    check(folder, overrides={"guards.recordings": "warn"})
    assert "'video_id crib 5': frames of 1 recording" in caplog.text


def test_a_split_without_its_file_is_left_out_and_named(folder, caplog):
    (folder / "data" / "test" / "annotations.json").unlink()
    check(folder)
    assert "split 'test' has no file yet" in caplog.text
    caplog.clear()
    project = Project.open(folder)
    splits = dict(project.data.splits)
    demo = Project.demo().split("val").render
    splits["test"] = replace(splits["test"], render=demo)  # the demo's are drawn on first use: other images
    project.data = replace(project.data, splits=splits)
    refuse_leaks(project, project.recipe("stage1-full")[0])
    assert caplog.text == ""
