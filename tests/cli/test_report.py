"""sagecache report as typed: the file that it writes, what it says of it, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
import pytest
from browser import MISSING, find_browser, open_page
from dots import write_dots_project
from dots_network import bright_project, save_checkpoint, train
from page_check import read_page
from typed import sagecache

from sagecache.errors import SagecacheError
from sagecache.mm.run import TrainOptions
from sagecache.project import Project
from sagecache.project.run_log import read_run_log
from sagecache.project.runs import FinishedRun, mark_finished, note_start

KEEP = [0.5, float("nan"), 0.75]


def leave_run(folder, name: str, log: list[dict] | None, checkpoint: bool = True) -> None:
    """What a finished training leaves."""
    project = Project.open(folder)
    work_dir, (recipe, model) = project.work_dir(name), project.recipe(name)
    if checkpoint:
        path = work_dir / "best_keypoints_PCK@0.05_iter_3.pth"
        save_checkpoint(project, path, ema_teacher=(0.0, 1.0))
        mark_finished(work_dir, FinishedRun(4, path.name))
    if log is not None:
        file = work_dir / "20261121_220933" / "vis_data" / "scalars.json"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(one) + "\n" for one in log))
        note_start(work_dir, recipe, model)


def log_of(**more) -> list[dict]:
    lines = [dict(loss_kpt=4.0 - k, keep_mean=value, lr=0.1, iter=k + 1) for k, value in enumerate(KEEP)]
    lines[-1] |= more
    return [*lines, {"keypoints/PCK@0.05": 0.625, "keypoints/AP": float("nan"), "step": 3}]


@pytest.fixture(scope="module")
def project_folder(tmp_path_factory):
    folder = write_dots_project(tmp_path_factory.mktemp("dots"), hidden=8)
    sagecache(folder, "precompute", "stats")
    return folder


@pytest.fixture
def folder(project_folder, tmp_path):
    """A copy, so that each test leaves its own runs."""
    return shutil.copytree(project_folder, tmp_path / "mine")


def report(folder, *words: str) -> tuple[dict, str]:
    summary = json.loads(sagecache(folder, "report", *words, "--json").stdout)
    return summary, Path(summary["page"]).read_text(encoding="utf-8")


def test_the_page_of_a_run(folder):
    leave_run(folder, "stage1-full", log_of(**{"joints/threshold/nose": 0.375, "probe/precision": 0.5}))
    summary, html = report(folder)
    page = read_page(html)
    work_dir = folder / "work_dirs" / "stage1_full"
    assert summary["page"] == str(work_dir / "report.html") and summary["bytes"] == len(html.encode())
    assert (summary["recipe"], summary["steps"], summary["judged"]) == ("stage1-full", 4, 6)
    assert summary["PCK@0.05"] == 0.625 and summary["AP"] is None, "NaN is no figure"
    assert len(page.all("article")) == summary["shown"] > 0
    assert len(page.all("image")) == 3 * summary["shown"], "the person, a weak and a strong view"
    assert len(page.all("figure", **{"class": "chart"})) == summary["charts"] == 5
    for told in (
        "62.5",
        "2026-11-21 22:09",
        "consistency",
        f"sagecache --project {folder} train stage1-full",
    ):
        assert told in page.text
    assert len(page.all("td", **{"data-value": "0.375"})) == 1, "the threshold, of one joint"
    assert not (work_dir / ".report.html.tmp").exists()


@pytest.mark.skipif(find_browser() is None, reason=MISSING)
def test_a_browser_opens_it_without_a_word_on_the_console(folder, tmp_path):
    leave_run(folder, "stage1-full", log_of())
    summary, _ = report(folder)
    opened = open_page(Project.open(folder).work_dir("stage1-full") / "report.html", tmp_path)
    assert opened.console == [] and opened.dom.count("<article") == summary["shown"]


def test_a_training_that_really_ran_is_read_as_it_was(tmp_path):
    project = bright_project(tmp_path / "dots")
    train(project, "stage0", TrainOptions(seed=5, overrides={"seed": 5}), lambda *_: None)
    summary, html = report(project.folder)
    text = read_page(html).text
    assert summary["steps"] == 4 and 0 <= summary["PCK@0.05"] <= 1 and summary["AP"] is not None
    assert "val, step 4" in text and "labels (kpt)" in text and "train stage0 --seed 5" in text
    curves = read_run_log(project.work_dir("stage0")).curves
    assert curves["loss_kpt"].steps.tolist() == [1, 2, 3, 4] and curves["keypoints/AP"].steps.tolist() == [4]


def test_a_supervised_run_has_curves_and_no_pseudo_labels(folder):
    leave_run(folder, "stage0", log_of())
    summary, html = report(folder, "stage0")
    page = read_page(html)
    assert summary["judged"] == summary["shown"] == 0 and not page.all("article") and not page.all("table")
    assert "it learns from labels alone" in page.text and len(page.all("figure")) == summary["charts"] > 0


def test_a_run_that_logged_one_line_and_has_no_checkpoint_yet(folder):
    leave_run(folder, "stage1-full", log_of()[:1], checkpoint=False)
    summary, html = report(folder, "stage1-full")
    page = read_page(html)
    assert summary["checkpoint"] is None and summary["steps"] == 1 and summary["charts"] == 3
    assert "cut off" in page.text and "no checkpoint yet" in page.text and not page.all("article")


def test_a_checkpoint_without_a_log_still_has_its_gallery(folder):
    leave_run(folder, "stage1-full", None)
    summary, html = report(folder)
    assert summary["charts"] == 0 and summary["shown"] > 0
    assert "no scalars" in read_page(html).text and ">Curves<" not in html


def test_count_limits_who_is_judged_and_0_runs_no_network(folder):
    leave_run(folder, "stage1-full", log_of())
    assert report(folder, "--count", "2")[0]["judged"] == 2
    (folder / "work_dirs/stage1_full/best_keypoints_PCK@0.05_iter_3.pth").write_bytes(b"no network")
    summary, html = report(folder, "--count", "0")
    assert summary["judged"] == 0 and ">Pseudo-labels<" not in html


def test_a_split_without_persons_is_told_of(folder):
    leave_run(folder, "stage1-full", log_of())
    file = folder / "data" / "unlabeled" / "annotations.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(annotations=[], images=[])))
    summary, html = report(folder)
    assert summary["judged"] == 0 and "has no person to look at" in read_page(html).text


def test_odd_names_stay_text(folder):
    evil = "<script>alert(1)</script>"
    page = folder / "stage1_full.py"
    page.write_text(page.read_text() + f'\nload_from = "{evil}"\n')
    leave_run(folder, "stage1-full", log_of(**{f"loss_{evil}": 1.0}))
    html = report(folder, "--count", "2")[1]
    text = read_page(html).text
    assert evil not in html and text.count(evil) == 1, "where it started from"
    assert "<script>alert(1)<: script>" in text, "a loss, its slash in words"


def test_another_folder_and_another_file(folder, tmp_path):
    leave_run(folder, "stage1-full", log_of())
    moved = (folder / "work_dirs" / "stage1_full").rename(tmp_path / "kept run")
    output = tmp_path / "new" / "page.html"
    summary, html = report(folder, "stage1-full", "--work-dir", str(moved), "--output", str(output))
    assert summary["page"] == str(output) and summary["checkpoint"].startswith(str(moved))
    assert f"--work-dir '{moved}'" in read_page(html).text


def test_what_was_never_trained_is_one_line_with_the_command(folder, tmp_path):
    with pytest.raises(SagecacheError, match=f"nothing was trained yet.*--project {folder} train stage0"):
        sagecache(folder, "report")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SagecacheError, match="neither a checkpoint nor a log"):
        sagecache(folder, "report", "stage0", "--work-dir", tmp_path / "empty")
    with pytest.raises(SagecacheError, match="empty: the folder holds no run.*in .*work_dirs"):
        sagecache(folder, "report", "--work-dir", tmp_path / "empty")


def test_missing_statistics_are_named_with_their_command(folder):
    leave_run(folder, "stage1-full", log_of())
    (folder / "cache" / "skeleton_stats.json").unlink()
    with pytest.raises(SagecacheError, match="missing: stats of labeled.*precompute stats"):
        sagecache(folder, "report")
    assert report(folder, "--count", "0")[0]["charts"] > 0


def test_the_table_ends_with_the_file_and_open_shows_it(folder, monkeypatch):
    shown = []
    monkeypatch.setattr(click, "launch", shown.append)
    leave_run(folder, "stage0", log_of())
    text = sagecache(folder, "report", "--open").stdout
    page = folder / "work_dirs" / "stage0" / "report.html"
    assert text.splitlines()[-1] == str(page) and shown == [str(page)]
    assert re.search(r"PCK@0.05\s+62.5\s", text) and "PCK@0.1" not in text


def test_the_page_is_written_whole_or_not_at_all(folder, monkeypatch):
    leave_run(folder, "stage0", log_of())
    page = folder / "work_dirs" / "stage0" / "report.html"
    page.write_text("the former one")
    monkeypatch.setattr("sagecache.visualization.page.TEMPLATE", "none.j2")
    with pytest.raises(Exception, match="none.j2"):
        sagecache(folder, "report")
    assert page.read_text() == "the former one"
