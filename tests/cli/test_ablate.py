"""sagecache ablate as typed, on a page of three arms; trainings run in this process."""

from __future__ import annotations

import json

import pytest
from dots_network import bright_project
from typed import sagecache

from sagecache.cli import ablate_jobs
from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.project.runs import finished_run

PAGE = """
control = "start"
arms = dict(
    start=dict(recipe="stage0", asks="a little"),
    quick=dict(recipe="stage0", asks="faster", overrides={"optim_wrapper.optimizer.lr": 0.05}),
)
groups = dict(speed=dict(asks="Is faster better?", arms=["start", "quick"]))
evidence = dict(drift=["start", "quick"], net_use=["start"])
"""


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """Names of the jobs that began. A job named in ``fail`` (the list's last element) fails."""
    names: list[str] = []

    def run_here(title, jobs, machine):
        failed = {}
        for job in jobs:
            names.append(job.name)
            try:
                job.function(*job.arguments, lambda *told: None)
            except SagecacheError as error:
                failed[job.name] = str(error)
        return failed

    monkeypatch.setattr(ablate_jobs, "run_jobs", run_here)
    return names


@pytest.fixture
def folder(tmp_path):
    folder = bright_project(tmp_path / "mine").folder
    (folder / "ablations").mkdir()
    (folder / "ablations/small.py").write_text(PAGE)
    return folder


def test_arms_are_trained_on_labels_of_their_own_compared_and_kept(folder, begun, tmp_path):
    words = ("ablate", "small", "--seeds", "2", "--labels", "2")
    table, plots = tmp_path / "page.md", tmp_path / "plots"
    done = sagecache(folder, *words, "--json", "--table", table, "--plots", plots)
    names = [f"{arm}, seed {draw}" for draw in (0, 1) for arm in ("start", "quick")]
    assert begun == names
    content = json.loads(done.stdout)
    assert list(content["arms"]) == ["start", "quick"] and content["missing"] == {}
    assert content["arms"]["quick"]["difference"]["PCK@0.05"]["by_seed"].keys() == {"0", "1"}
    assert content["command"] == f"sagecache --project {folder} ablate small --seeds 2 --labels 2"
    project = Project.open(folder)
    for draw in (0, 1):
        own = project.redrawn(draw, 2)
        assert finished_run(own.work_dir("stage0")).iterations == 4
        labels = json.loads(own.path(own.split("labeled").annotations).read_text())
        assert len(labels["images"]) == 2
    assert "| quick | faster |" in table.read_text()
    assert {path.name for path in plots.iterdir()} == {"drift.svg", "drift.png"}
    assert "no plot 'net_use'" in done.stderr and "has no 'probe/kept' in its log" in done.stderr

    begun.clear()
    again = sagecache(folder, *words)
    assert begun == [] and "ablation small" in again.stdout and "quick - start" in again.stdout


def test_amp_trains_the_arms_apart_from_those_without(folder, begun):
    content = json.loads(sagecache(folder, "ablate", "small", "--seeds", "1", "--amp", "--json").stdout)
    assert content["command"].endswith("ablate small --seeds 1 --amp") and content["missing"] == {}
    runs = [json.loads(path.read_text())["recipe"] for path in (folder / "work_dirs").rglob("recipe.json")]
    assert [recipe["amp"] for recipe in runs] == [True, True]
    assert not (folder / "work_dirs/stage0").exists()


def test_an_arm_that_fails_is_told_and_the_others_are_compared(folder, begun):
    page = folder / "ablations/small.py"
    page.write_text(PAGE.replace('.lr": 0.05', '.type": "SDG"'))
    done = sagecache(folder, "ablate", "small", "--seeds", "1", "--json", code=1)
    content = json.loads(done.stdout)
    assert list(content["arms"]) == ["start"] and list(content["missing"]) == ["quick, seed 0"]
    assert "optim_wrapper can't be built" in content["missing"]["quick, seed 0"]
    assert f"quick, seed 0, alone: sagecache --project {folder} train stage0 --work-dir" in done.stderr
    page.write_text(PAGE)
    begun.clear()
    assert json.loads(sagecache(folder, "ablate", "small", "--seeds", "1", "--json").stdout)["missing"] == {}
    assert begun == ["quick, seed 0"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("smal",), "no ablation 'smal'. did you mean 'small'"),
        (("small", "--arms", "start,quik"), "no arm 'quik'. did you mean 'quick'"),
        (("small", "--split", "tset"), "no split 'tset'"),
    ],
)
def test_a_slip_is_told_before_anything_begins(folder, begun, words, told):
    with pytest.raises(SagecacheError, match=told):
        sagecache(folder, "ablate", *words)
    assert begun == [] and not (folder / "work_dirs").exists()


def test_an_unknown_plot_or_a_draw_of_a_draw_is_refused(folder, begun):
    (folder / "ablations/small.py").write_text(PAGE.replace("net_use", "net_used"))
    with pytest.raises(SagecacheError, match="no plot 'net_used'. did you mean 'net_use'"):
        sagecache(folder, "ablate", "small")
    (folder / "ablations/small.py").write_text(PAGE)
    with pytest.raises(SagecacheError, match="an ablation draws itself"):
        sagecache(folder, "--draw", "1", "ablate", "small")
    assert begun == []


def test_a_page_without_a_place_for_the_table_is_told_before_a_training(folder, begun, tmp_path):
    table = tmp_path / "page.md"
    table.write_text("<!-- ablate small: begin -->\n")
    with pytest.raises(SagecacheError, match="page.md: '<!-- ablate small: end -->' stands there 0 times"):
        sagecache(folder, "ablate", "small", "--seeds", "1", "--table", table)
    assert not begun
