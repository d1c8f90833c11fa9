"""sagecache demo on a project that is trained already: figures, the committed reference, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from dots import write_dots_project
from dots_network import save_checkpoint
from typed import sagecache

from sagecache.cli import demo
from sagecache.project import Project
from sagecache.project.runs import FinishedRun, mark_finished, note_start


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """stage0 is off by two heatmap pixels, stage1-full by none."""
    folder = write_dots_project(tmp_path_factory.mktemp("dots"))
    project = Project.open(folder)
    for name, shift in (("stage0", 2.0), ("stage1-full", 0.0)):
        save_checkpoint(project, project.work_dir(name) / "best_iter_4.pth", ema_teacher=(0.0, shift))
        steps = project.recipe(name)[0].train_cfg.max_iters
        note_start(project.work_dir(name), *project.recipe(name))
        mark_finished(project.work_dir(name), FinishedRun(steps, "best_iter_4.pth"))
    sagecache(folder, "precompute", "stats")
    return folder


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_it_measures_the_two_arms_and_draws_what_the_second_sees(folder):
    done = sagecache(folder, "demo")
    assert "test split, measured now" in done.stdout and "reference" not in done.stdout
    found = rows(done.stdout)
    assert found["arm"] == ["AP", "AP50", "PCK@0.05", "PCK@0.1"]
    assert found["stage1-full"] == ["100.0"] * 4
    assert float(found["stage0"][0]) < 70 and found["stage0"][3] == "100.0"
    assert [line.split(":")[:2] for line in done.stderr.splitlines() if "already trained" in line] == [
        ["stage0", f" already trained, {folder / 'work_dirs/stage0/best_iter_4.pth'}"],
        ["stage1-full", f" already trained, {folder / 'work_dirs/stage1_full/best_iter_4.pth'}"],
    ]
    pictures = done.stdout.split()[-3:]
    assert {Path(picture).name for picture in pictures} == {"unlabeled_201.png", "unlabeled_203.png"}
    assert all(cv2.imread(picture).size > 0 for picture in pictures)


def test_the_committed_reference_is_shown_beside_it(folder):
    """Another file's figures, with the command and the seeds that they come from."""
    figures = {name: 0.5 + 0.001 * i for i, name in enumerate(demo.SHOWN)}
    content = dict(seeds=3, command="make arms", arms={"stage0": figures, "oracle": figures})
    (folder / "reference.json").write_text(json.dumps(content))
    text = sagecache(folder, "demo").stdout
    reference = text[text.index("committed reference, mean of 3 seeds (make arms)") :]
    assert rows(reference)["oracle"] == ["50.0", "50.1", "50.2", "50.3"]
    assert rows(text[: text.index("committed")])["stage1-full"] == ["100.0"] * 4


def test_a_trial_is_not_taken_for_the_arm_and_a_killed_run_goes_on(folder, monkeypatch):
    project, trained = Project.open(folder), []
    mark = project.work_dir("stage0") / "finished.json"
    monkeypatch.setattr("sagecache.cli.actions.train", lambda *a, **options: trained.append((a[1], options)))
    before = mark.read_text()
    page, other = (project.recipe("stage0", words) for words in ({}, {"ema_decay": 0.5}))
    mark_finished(mark.parent, FinishedRun(2, "best_iter_4.pth"))  # a few iterations
    demo.run(project)
    mark_finished(mark.parent, FinishedRun(4, "best_iter_4.pth"))
    note_start(mark.parent, *other)  # other settings
    demo.run(project)
    note_start(mark.parent, *page)
    mark.unlink()
    demo.run(project)
    mark.write_text(before)
    assert trained == [("stage0", {"resume": resume}) for resume in (False, False, True)]


def test_figures_are_shown_in_percent_in_the_order_of_the_columns():
    figures = {"PCK@0.1": 0.4, "AP50": 0.2, "AP": 0.12345, "PCK@0.05": 1.0, "AR": 0.9}
    columns, table = demo._table({"one": figures})
    assert columns == ["arm", "AP", "AP50", "PCK@0.05", "PCK@0.1"]
    assert table == [["one", "12.3", "20.0", "100.0", "40.0"]]
