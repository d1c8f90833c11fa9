"""What is missing is told with the commands that make it; in the demo it is made."""

from __future__ import annotations

import pytest
from dots import write_dots_project

from sagecache.cli import actions
from sagecache.cli.actions import ensure
from sagecache.errors import SagecacheError
from sagecache.project import Project, Requirement
from sagecache.skeleton.definition import COCO17, Skeleton


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "mine")


def test_every_missing_thing_is_named_with_the_exact_commands_in_order(folder):
    text = (folder / "data.py").read_text()
    (folder / "data.py").write_text(text.replace("unlabeled=dict(", 'unlabeled=dict(boxes="detect", '))
    project = Project.open(folder)
    with pytest.raises(SagecacheError) as caught:
        ensure(project, project.requirements(project.recipe("stage1-full")[0]))
    assert caught.value.file == folder
    assert caught.value.message == "missing: boxes of unlabeled, stats of labeled, recipe of stage0"
    run = f"sagecache --project {folder}"
    assert caught.value.fix == (
        f"Run: {run} precompute detect --split unlabeled && {run} precompute stats && {run} train stage0"
    )


def test_a_command_that_makes_several_missing_things_is_named_once(folder):
    for split in ("labeled", "val", "unlabeled"):
        (folder / "data" / split / "annotations.json").unlink()
    project = Project.open(folder)
    with pytest.raises(SagecacheError, match="split of labeled, split of val, split of unlabeled") as caught:
        ensure(project, project.requirements(project.recipe("stage1-full")[0]))
    assert caught.value.fix.count("data check") == 1 and caught.value.fix.startswith("Run: sagecache ")


def test_nothing_is_said_or_made_when_all_is_there(folder, capsys):
    project = Project.open(folder)
    before = sorted(folder.rglob("*"))
    ensure(project, project.requirements(project.recipe("stage0")[0]))
    assert capsys.readouterr().err == "" and sorted(folder.rglob("*")) == before


def test_annotations_of_one_s_own_that_are_gone_are_not_made(folder):
    (folder / "data/val/annotations.json").unlink()
    project = Project.open(folder)
    with pytest.raises(SagecacheError, match=f"split of val.*sagecache --project {folder} data check"):
        ensure(project, project.split_requirements("val"))


def test_the_demo_makes_what_is_missing_in_order_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("SAGECACHE_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    made = []
    for name in ("synth", "detect", "geo", "train"):
        monkeypatch.setattr(actions, name, lambda project, what, name=name, **_: made.append((name, what)))
    monkeypatch.setattr(actions, "stats", lambda project: made.append(("stats", None)))
    project = Project.open()
    kinds = [
        ("split", "val"),
        ("boxes", "unlabeled"),
        ("geo", "labeled"),
        ("stats", "labeled"),
        ("recipe", "stage0"),
    ]
    needs = [Requirement(kind, what, f"make {kind}", lambda: False) for kind, what in kinds]
    needs.insert(1, Requirement("split", "test", "never", lambda: True))
    ensure(project, needs)
    assert made == [
        ("synth", "val"), ("detect", "unlabeled"), ("geo", "labeled"), ("stats", None), ("train", "stage0"),
    ]  # fmt: skip
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "split 'val' is not there yet: make split" and len(lines) == 5


def test_under_torchrun_nothing_is_made_on_the_way(monkeypatch, tmp_path):
    monkeypatch.delenv("SAGECACHE_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    project = Project.open()
    with pytest.raises(SagecacheError, match="split of labeled.*Run: sagecache data synth --split labeled"):
        ensure(project, project.requirements(project.recipe("stage0")[0]))
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_does_not_fit_the_skeleton_is_told_with_its_page_before_anything_is_made(folder):
    project = Project.open(folder)
    nameless = tuple(f"joint_{k}" for k in range(17))
    project.skeleton = Skeleton("dots", nameless, COCO17.edges, COCO17.flip_indices, COCO17.sigmas)
    asked = {"semi.swaps.front": 0.2, "semi.terms.sides.weight": 1.0}
    with pytest.raises(SagecacheError, match="'dots' names no shoulders") as caught:
        actions.train(project, "stage1-full", asked)
    assert caught.value.file == folder / "stage1_full.py"
    assert "semi.swaps=None semi.terms.sides.weight=0" in caught.value.fix
    off = asked | {"semi.swaps": None, "semi.terms.sides.weight": 0}
    with pytest.raises(SagecacheError, match="missing: stats"):  # that was all
        actions.train(project, "stage1-full", off)
