"""Digests of what a training reads, on a project of dots."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from dots import write_dots_project
from dots_network import save_checkpoint

from sagecache.errors import SagecacheError
from sagecache.mm.inputs import file_digest, inputs_of, weights_digest
from sagecache.project import Project


@pytest.fixture
def project(tmp_path) -> Project:
    return Project.open(write_dots_project(tmp_path / "mine"))


def test_the_splits_that_are_read_and_the_start_are_in_it(project):
    stage0, stage1 = project.recipe("stage0")[0], project.recipe("stage1-full")[0]
    assert inputs_of(project, stage0).keys() == {"annotations", "start"}
    assert inputs_of(project, stage0)["annotations"].keys() == {"labeled", "val"}
    with pytest.raises(SagecacheError, match="'stage0' is not trained yet"):
        inputs_of(project, stage1)
    save_checkpoint(project, project.work_dir("stage0") / "iter_4.pth", ema_teacher=(0.0, 1.0))
    found = inputs_of(project, stage1)
    assert found["annotations"].keys() == {"labeled", "val", "unlabeled"}
    assert found["start"] == weights_digest(project.work_dir("stage0") / "iter_4.pth")


def test_weights_are_told_apart_and_files_that_hold_the_same_are_not(project, tmp_path):
    first = save_checkpoint(project, tmp_path / "a.pth", ema_teacher=(0.0, 1.0))
    again = torch.load(first, weights_only=True) | {"message": "written on another day"}
    torch.save(again, tmp_path / "b.pth")
    other = save_checkpoint(project, tmp_path / "c.pth", ema_teacher=(0.0, 2.0))
    assert weights_digest(first) == weights_digest(tmp_path / "b.pth") != weights_digest(other)
    assert file_digest(first) != file_digest(tmp_path / "b.pth")


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text("{}")
    before = file_digest(path)
    path.write_text("[]")
    os.utime(path, ns=(1, 1))
    assert file_digest(path) != before


def test_stores_are_in_it_where_they_are_read(project, monkeypatch):
    """Targets of another teacher are another input, also where several stores are joined."""
    save_checkpoint(project, project.work_dir("stage0") / "iter_4.pth")
    recipe, _ = project.recipe("stage1-full", {"semi.terms.geometry.weight": 1.0})
    store = SimpleNamespace(fingerprint_sha256="a")
    monkeypatch.setattr(Project, "joined_targets", lambda self, split: store)
    assert inputs_of(project, recipe)["stores"] == {"unlabeled": ["a"]}
    store.readers = [SimpleNamespace(fingerprint_sha256=one) for one in "bc"]
    assert inputs_of(project, recipe)["stores"] == {"unlabeled": ["b", "c"]}
