"""Streams of a training: how many of each, from which images, in whose share."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from dots_network import bright_project

from sagecache.mm import loaders
from sagecache.project import Project


@pytest.fixture
def project(tmp_path) -> Project:
    return bright_project(tmp_path / "dots")


def test_instances_left_out_are_told_apart_and_the_command_is_named(project):
    targets = SimpleNamespace(attributes=dict(command="sagecache precompute geo --split unlabeled"))
    views = SimpleNamespace(skipped=3, not_computed=2, targets=targets)
    command = f"sagecache --project {project.folder} precompute geo --split unlabeled"
    assert loaders._left_out(project, "unlabeled", views) == (
        "3 unlabeled instances without targets left out: 1 failed or show nobody, "
        f"2 not computed yet (run: {command})"
    )
    views.skipped, views.not_computed = 1, 0
    assert loaders._left_out(project, "unlabeled", views) == (
        "1 unlabeled instance without targets left out: 1 failed or show nobody"
    )


def test_a_step_holds_as_many_of_each_stream_as_the_recipe_says(project):
    recipe, model = project.recipe("stage1-full")
    loader = loaders.train_loader(project, recipe, model, seed=0)
    for batch in itertools.islice(loader, 3):
        assert batch["labeled"]["image"].shape == (2, 3, 128, 96)
        assert batch["unlabeled"]["strong"].shape == (3, 1, 3, 128, 96)
        assert set(batch["labeled"]["image_id"].tolist()) <= {101, 102, 103}
        assert set(batch["unlabeled"]["image_id"].tolist()) <= {201, 202, 203, 204}
    # six unlabeled persons, three a step; five labeled ones, two a step
    assert len(loader) == 3


def test_without_a_share_of_unlabeled_images_there_is_no_such_stream(project):
    recipe, model = project.recipe("stage1-full", {"batch.unlabeled": 0})
    (batch,) = itertools.islice(loaders.train_loader(project, recipe, model, seed=0), 1)
    assert set(batch) == {"labeled"}


def test_labels_come_with_their_own_boxes(project):
    """Detected persons have no keypoints to learn from."""
    page = project.folder / "data.py"
    page.write_text(page.read_text() + "\nsplits['labeled']['boxes'] = 'detect'\n")
    project = Project.open(project.folder)
    recipe, model = project.recipe("stage0")
    (batch,) = itertools.islice(loaders.train_loader(project, recipe, model, seed=0), 1)
    assert batch["labeled"]["bbox"][:, 2:].tolist() == [[120.0, 146.0]] * 2


def test_the_seed_decides_the_batches(project):
    recipe, model = project.recipe("stage0")

    def images(seed):
        return next(iter(loaders.train_loader(project, recipe, model, seed)))["labeled"]["image"]

    assert torch.equal(images(1), images(1)) and not torch.equal(images(1), images(2))


def test_each_process_of_a_validation_has_its_share_before_the_group_is_joined(
    project, monkeypatch, tmp_path
):
    """On GPUs mmengine joins only within the Runner."""
    recipe, seen = project.recipe("stage0")[0], []
    for rank in ("0", "1"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        seen.append(list(loaders.validation_cfg(project, recipe, tmp_path)["val_dataloader"].sampler))
    assert len(seen[0]) == len(seen[1]) == -(-len(project.instances("val")) // 2)
    assert set(seen[0]) | set(seen[1]) == set(range(len(project.instances("val"))))
