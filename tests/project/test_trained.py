"""A run's recipe as it was trained, and the command that makes it again, parsed back."""

from __future__ import annotations

import os
import shlex

import pytest
from dots import write_dots_project

from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.project.overrides import parse_overrides
from sagecache.project.runs import STARTED, FinishedRun, mark_finished, note_start
from sagecache.project.trained import trained_run


@pytest.fixture
def project(tmp_path):
    return Project.open(write_dots_project(tmp_path / "dots"))


def leave_run(project, name: str, overrides=None, iterations=4, work_dir=None, note=True):
    work_dir = work_dir or project.work_dir(name)
    work_dir.mkdir(parents=True)
    recipe, model = project.recipe(name, overrides)
    if note:
        note_start(work_dir, recipe, model)
    (work_dir / f"best_iter_{iterations}.pth").write_bytes(b"")
    mark_finished(work_dir, FinishedRun(iterations, f"best_iter_{iterations}.pth"))
    return work_dir


def options_of(command: str) -> dict:
    """What a command line would set, by the parser of the command line."""
    words = shlex.split(command)
    pairs = zip(words, words[1:], strict=False)
    overrides = parse_overrides(value for key, value in pairs if key == "--cfg-options")
    return overrides | {
        key: value for key, value in zip(words, words[1:], strict=False) if key in ("--seed",)
    }


def test_the_run_has_the_recipe_it_was_trained_with_whatever_its_page_says_now(project):
    leave_run(project, "stage1-full", {"semi.terms.consistency.weight": 3.0, "seed": 5})
    run = trained_run(project, "stage1-full")
    assert run.recipe.terms["consistency"]["weight"] == 3.0 and run.recipe.seed == 5
    assert run.checkpoint.name == "best_iter_4.pth" and run.iterations == 4 and run.doubt == ""
    page = project.folder / "stage1_full.py"
    page.write_text(page.read_text().replace("0.7", "0.9"))
    assert trained_run(project, "stage1-full").recipe.semi.gate["threshold_confidence"] == 0.7


def test_the_command_makes_the_very_same_recipe_again(project):
    overrides = {"semi.gate.threshold_confidence": 0.25, "data.labeled": ["labeled", "val"], "seed": 3}
    overrides["load_from"] = "a file's name"
    leave_run(project, "stage1-full", overrides)
    run = trained_run(project, "stage1-full")
    words = options_of(run.command)
    assert run.command.startswith(f"sagecache --project {project.folder} train stage1-full ")
    assert words.pop("--seed") == "3"
    again, model = project.recipe("stage1-full", words | {"seed": 3})
    assert again == run.recipe and model == run.model
    assert "--max-iters" not in run.command and "--work-dir" not in run.command


def test_a_trial_and_another_folder_are_in_the_command(project, tmp_path):
    folder = leave_run(project, "stage0", iterations=2, work_dir=tmp_path / "my run")
    run = trained_run(project, "stage0", folder)
    assert run.command.endswith(f"train stage0 --max-iters 2 --work-dir '{folder}'")


def test_a_newer_run_that_has_only_its_log_is_the_newest(project):
    old = leave_run(project, "stage1-full")
    new = project.work_dir("stage0")
    log = new / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    note_start(new, *project.recipe("stage0"))
    log.write_text('{"step": 1}\n')
    for age, name in ((50, "stage0"), (-50, "stage1-full")):
        then = next(old.glob("*.pth")).stat().st_mtime + age
        os.utime(log, (then, then))
        assert trained_run(project).name == name
    assert trained_run(project, "stage0").checkpoint is None


def test_without_a_name_it_is_the_newest_run(project):
    leave_run(project, "stage0")
    assert trained_run(project).name == "stage0"
    leave_run(project, "stage1-full")
    assert trained_run(project).name == "stage1-full"
    drawn = project.redrawn(1)
    leave_run(drawn, "stage0")
    assert trained_run(drawn).work_dir == drawn.work_dir("stage0")  # of the draw's own runs
    assert trained_run(project).name == "stage1-full"


def test_a_run_that_noted_nothing_is_told_of(project):
    leave_run(project, "stage0", note=False)
    run = trained_run(project, "stage0")
    assert run.doubt == "trained with settings that it does not tell"
    assert run.recipe == project.recipe("stage0")[0]

    (run.work_dir / STARTED).write_text("[]")
    assert trained_run(project, "stage0") == run


def test_a_run_whose_page_is_gone_still_has_its_recipe(project):
    leave_run(project, "stage1-full")
    (project.folder / "stage1_full.py").unlink()
    run = trained_run(project)
    assert run.recipe.uses_unlabeled and run.command.endswith("train stage1-full")


def test_a_run_that_still_goes_on_has_no_end(project):
    folder = leave_run(project, "stage0")
    for path in folder.iterdir():
        path.unlink() if path.name != STARTED else None
    run = trained_run(project, "stage0")
    assert run.checkpoint is None and run.iterations is None


def test_what_was_never_trained_is_told_with_the_command(project, tmp_path):
    with pytest.raises(SagecacheError, match="nothing was trained yet.*train stage0"):
        trained_run(project)
    with pytest.raises(SagecacheError, match="nothing was trained yet.*train stage1-full"):
        trained_run(project, "stage1-full")
    with pytest.raises(SagecacheError, match="did you mean 'stage0'"):
        trained_run(project, "stage9")
