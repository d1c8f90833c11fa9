import json
import os
from dataclasses import replace

import pytest

from sagecache.errors import SagecacheError
from sagecache.project.recipe import BatchSettings, GuardSettings, Recipe, TrainSettings
from sagecache.project.runs import (
    FinishedRun,
    changed_since_start,
    finished_run,
    mark_finished,
    newest_work_dir,
    note_start,
    noted_start,
    put_back,
    set_aside,
    shortfall,
    standing_checkpoint,
    unmark,
)


def save(path, second: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (second, second))
    return path


def test_a_run_is_finished_by_its_marker_not_by_its_checkpoints(tmp_path):
    save(tmp_path / "best_x_iter_2.pth", 2)
    assert finished_run(tmp_path) is None
    mark_finished(tmp_path, FinishedRun(2, "best_x_iter_2.pth"))
    assert finished_run(tmp_path) == FinishedRun(2, "best_x_iter_2.pth")
    unmark(tmp_path)
    unmark(tmp_path)
    assert finished_run(tmp_path) is None
    mark_finished(tmp_path, FinishedRun(4, "iter_4.pth"))
    assert finished_run(tmp_path) is None  # its file is gone


def test_what_was_set_aside_comes_back_unless_the_new_run_left_a_checkpoint(tmp_path):
    last = save(tmp_path / "iter_4.pth", 4)
    put_back(tmp_path, set_aside(tmp_path))
    assert last.is_file() and not (tmp_path / "previous-1").exists()
    folder = set_aside(tmp_path)
    for name in ("recipe.json", "20261122_120132/20261122_120132.log", "pseudo_labels/facing.zarr/zarr.json"):
        save(tmp_path / name, 5)  # of a run that failed
    put_back(tmp_path, folder)
    assert {path.name for path in tmp_path.iterdir()} == {"iter_4.pth", "previous-2"}
    assert len(list((tmp_path / "previous-2").iterdir())) == 3
    folder = set_aside(tmp_path)
    save(tmp_path / "iter_2.pth", 5)
    put_back(tmp_path, folder)
    assert (folder / "iter_4.pth").is_file() and not last.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"iterations": "x", "checkpoint": "iter_4.pth"}',
        '{"iterations": 4',
        "[4]",
        "{}",
        '{"iterations": 4, "checkpoint": 4}',
        "\udcff",
    ],
)
def test_a_damaged_marker_marks_nothing(tmp_path, text):
    last = save(tmp_path / "iter_4.pth", 4)
    mark_finished(tmp_path, FinishedRun(4, "iter_4.pth"))
    (tmp_path / "finished.json").write_bytes(text.encode(errors="surrogateescape"))
    assert finished_run(tmp_path) is None and standing_checkpoint(tmp_path) == last


def test_what_an_earlier_run_left_is_moved_and_nothing_is_lost(tmp_path):
    assert set_aside(tmp_path) is None and not list(tmp_path.iterdir())
    names = {"iter_4.pth", "best_x_iter_2.pth", "last_checkpoint", "finished.json", "recipe.json"}
    names |= {"pseudo_labels", "20261122_120132", "report.html", "predictions_iter_4.json", "scored_val.json"}
    for number in (1, 2):
        for name in names - {"finished.json", "pseudo_labels", "20261122_120132"}:
            save(tmp_path / name, number)
        save(tmp_path / "pseudo_labels/facing.zarr/zarr.json", number)
        save(tmp_path / "20261122_120132/vis_data/scalars.json", number)
        mark_finished(tmp_path, FinishedRun(4, "iter_4.pth"))
        (tmp_path / "notes.txt").write_text("the user's own")
        folder = tmp_path / f"previous-{number}"
        assert set_aside(tmp_path) == folder
        assert {path.name for path in folder.iterdir()} == names
        assert finished_run(folder) == FinishedRun(4, "iter_4.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "previous-1", "previous-2"}
    assert standing_checkpoint(tmp_path) is None


def test_the_marker_wins_over_older_leftovers_then_best_then_last(tmp_path):
    assert standing_checkpoint(tmp_path) is None
    last = save(tmp_path / "iter_9.pth", 9)
    assert standing_checkpoint(tmp_path) == last
    best = save(tmp_path / "best_x_iter_3.pth", 3)
    assert standing_checkpoint(tmp_path) == best
    mark_finished(tmp_path, FinishedRun(9, "iter_9.pth"))  # trained again without validation
    assert standing_checkpoint(tmp_path) == last


@pytest.mark.parametrize("name", ["best_x_iter_1.pth", "iter_1.pth"])
def test_the_newest_work_dir_has_the_youngest_checkpoint_of_either_kind(tmp_path, name):
    assert newest_work_dir(tmp_path) is None
    save(tmp_path / "a" / "best_y_iter_5.pth", 5)
    save(tmp_path / "b" / name, 7)
    assert newest_work_dir(tmp_path) == tmp_path / "b"


@pytest.fixture
def noted(tmp_path):
    """A finished run of four steps, and what it trained."""
    recipe = Recipe(train_cfg=TrainSettings(max_iters=4), seed=2)
    save(tmp_path / "iter_4.pth", 4)
    note_start(tmp_path, recipe, {"head": {"sizes": (2, 3)}}, {"start": None})
    mark_finished(tmp_path, FinishedRun(4, "iter_4.pth"))
    return recipe


def test_a_note_is_read_as_it_was_written(tmp_path, noted):
    started = noted_start(tmp_path)
    assert started.recipe == noted and started.model == {"head": {"sizes": [2, 3]}}
    assert started.inputs == {"start": None}
    assert shortfall(tmp_path, noted, {"head": {"sizes": (2, 3)}}) == ""


def test_a_key_that_came_after_the_run_has_its_default(tmp_path, noted):
    path, model = tmp_path / "recipe.json", {"head": {"sizes": (2, 3)}}
    content = json.loads(path.read_text())
    del content["recipe"]["amp"], content["recipe"]["guards"], content["inputs"]
    path.write_text(json.dumps(content))
    assert shortfall(tmp_path, noted, model) == changed_since_start(tmp_path, noted, model) == ""
    assert noted_start(tmp_path).inputs is None
    assert "amp: false -> true" in shortfall(tmp_path, replace(noted, amp=True), model)
    content["recipe"]["of_tomorrow"] = 1
    path.write_text(json.dumps(content))
    assert "by another version (unknown key 'recipe.of_tomorrow')" in shortfall(tmp_path, noted, model)


@pytest.mark.parametrize(
    ("change", "another_run", "can_go_on"),
    [
        (dict(batch=BatchSettings(workers=3)), False, True),
        (dict(guards=GuardSettings(patience=9)), False, True),
        (dict(train_cfg=TrainSettings(max_iters=4, log_interval=3, checkpoint_interval=2)), False, True),
        (dict(train_cfg=TrainSettings(max_iters=4, val_interval=2)), True, True),
        (dict(seed=3), True, True),
        (dict(ema_decay=0.5), True, False),
    ],
)
def test_how_a_run_was_watched_and_how_fast_it_read_make_it_no_other(
    tmp_path, noted, change, another_run, can_go_on
):
    model = {"head": {"sizes": (2, 3)}}
    assert bool(shortfall(tmp_path, replace(noted, **change), model)) == another_run
    assert (not changed_since_start(tmp_path, replace(noted, **change), model)) == can_go_on


def test_a_run_without_an_end_or_a_note_stands_for_nothing(tmp_path, noted):
    assert shortfall(tmp_path, noted, {}, max_iters=5) == "for 4 of its 5 iterations"
    (tmp_path / "recipe.json").write_text("{")
    assert shortfall(tmp_path, noted, {}) == "with settings that it does not tell"
    for damaged in ("{", "", "[]", "null"):
        (tmp_path / "recipe.json").write_text(damaged)
        with pytest.raises(SagecacheError, match="recipe.json: is damaged.*--resume"):
            changed_since_start(tmp_path, noted, {})
    (tmp_path / "recipe.json").unlink()
    assert changed_since_start(tmp_path, noted, {}) == ""  # of a run older than the note
    unmark(tmp_path)
    assert shortfall(tmp_path, noted, {}) == "not to its end"
