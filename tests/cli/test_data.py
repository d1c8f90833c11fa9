"""data check finds what was planted, with its exit code; data synth draws only what it should."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from dots import write_dots_project
from typed import sagecache

from sagecache.cli.main import cli
from sagecache.errors import SagecacheError


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "mine")


def check(folder, *words: str, code: int) -> tuple[int, set[tuple[str, str]]]:
    """Number of errors, and (level, split) of the findings."""
    answer = json.loads(sagecache(folder, "data", "check", "--json", *words, code=code).stdout)
    assert answer["errors"] == sum(one["level"] == "error" for one in answer["findings"])
    return answer["errors"], {(one["level"], one["split"]) for one in answer["findings"]}


def test_sound_splits_pass(folder):
    assert check(folder, code=0)[0] == 0
    assert "0 errors" in sagecache(folder, "data", "check").stdout


def test_a_missing_image_is_an_error_of_its_split_and_exit_1(folder):
    gone = folder / "data" / "val" / "images" / "000000000301.png"
    gone.unlink()
    errors, found = check(folder, code=1)
    assert errors == 1 and ("error", "val") in found
    assert check(folder, "--split", "labeled", "--split", "test", code=0)[0] == 0
    text = sagecache(folder, "data", "check", "--split", "val", code=1).stdout
    assert gone.name in text and "1 error, " in text


def test_the_boxes_that_a_split_was_given_are_counted(folder):
    page = folder / "data.py"
    page.write_text(page.read_text().replace("unlabeled=dict(", 'unlabeled=dict(boxes="boxes.json", '))
    rows = ((201, 10, 0.9), (201, 30, 0.5), (202, 10, 0.1))
    boxes = [dict(image_id=i, category_id=1, bbox=[x, 10, 90, 90], score=score) for i, x, score in rows]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    text = sagecache(folder, "data", "check").stdout
    assert "\nunlabeled: 3 detections, 2 of them used, on 1 image (min_score and" in text
    assert "labeled: " not in text.replace("unlabeled: ", "")
    (folder / "boxes.json").write_text("[")
    assert "detections, " not in sagecache(folder, "data", "check", code=1).stdout


def test_boxes_that_were_found_are_checked_and_else_the_command_is_named(folder):
    words = ("data", "check", "--split", "unlabeled", "--json")
    page = folder / "data.py"
    page.write_text(page.read_text().replace("unlabeled=dict(", 'unlabeled=dict(boxes="detect", '))
    labels = folder / "data" / "unlabeled" / "annotations.json"
    content = json.loads(labels.read_text())
    labels.write_text(json.dumps(dict(content, annotations=[])))
    (told,) = [
        one for one in json.loads(sagecache(folder, *words).stdout)["findings"] if one["code"] == "no_boxes"
    ]
    assert f"sagecache --project {folder} precompute detect --split unlabeled" in told["fix"]
    boxes = folder / "cache" / "unlabeled" / "detections.json"
    boxes.parent.mkdir(parents=True)
    boxes.write_text('[{"image_id": 999, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]')
    found = json.loads(sagecache(folder, *words, code=1).stdout)["findings"]
    assert [one["code"] for one in found if one["level"] == "error"] == ["unknown_image"]


def test_a_lost_annotation_file_is_named_by_its_whole_path(folder):
    labels = folder / "data" / "val" / "annotations.json"
    labels.unlink()
    answer = json.loads(sagecache(folder, "data", "check", "--split", "val", "--json", code=1).stdout)
    (told,) = answer["findings"]
    assert str(labels) in told["message"] and "data.py" in told["fix"]


def test_the_demo_is_checked_as_far_as_it_is_rendered(tmp_path, monkeypatch):
    """A check of seconds renders nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAGECACHE_PROJECT", raising=False)
    done = CliRunner().invoke(cli, ["data", "check"])
    assert done.exit_code == 0 and "not rendered yet, so not checked: labeled, unlabeled" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_image_spoilt_inside_shows_only_when_it_is_decoded(folder):
    path = folder / "data" / "val" / "images" / "000000000301.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    path.write_bytes(data)
    assert check(folder, "--split", "val", code=0)[0] == 0
    assert check(folder, "--split", "val", "--decode", code=1)[0] == 1


def test_two_names_for_one_file_are_no_leakage_and_two_files_with_one_picture_are(folder):
    page = folder / "data.py"
    again = 'again=dict(images="data/test/images", annotations="data/test/annotations.json"),'
    page.write_text(page.read_text().replace("splits = dict(", f"splits = dict(\n    {again}"))
    assert {level for level, _ in check(folder, code=0)[1]} == {"note"}
    source, copy = (folder / "data" / split / "images" for split in ("labeled", "val"))
    (copy / "000000000301.png").write_bytes((source / "000000000101.png").read_bytes())
    answer = json.loads(sagecache(folder, "data", "check", "--json", code=1).stdout)
    (told,) = [str(one) for one in answer["findings"] if one["level"] == "error"]
    assert "labeled" in told and "val" in told and "again" not in told


def add_split(folder, text: str) -> None:
    page = folder / "data.py"
    page.write_text(page.read_text().replace("splits = dict(", f"splits = dict(\n    {text}"))


def test_a_split_that_shares_its_annotations_has_its_own_boxes_checked(folder):
    (folder / "boxes.json").write_text("{}")
    page = folder / "data.py"
    own = 'unlabeled=dict(boxes="boxes.json", '
    page.write_text(page.read_text().replace("unlabeled=dict(", own))
    again = 'images="data/unlabeled/images", annotations="data/unlabeled/annotations.json"'
    add_split(folder, f"truth=dict({again}),")
    answer = json.loads(sagecache(folder, "data", "check", "--json", code=1).stdout)
    problems = [(one["code"], one["split"]) for one in answer["findings"] if one["level"] != "note"]
    assert problems == [("detections", "unlabeled")]


def test_val_that_is_trained_on_is_warned_of(folder):
    page = folder / "data.py"
    page.write_text(page.read_text().replace("data/val/", "data/labeled/"))
    answer = json.loads(sagecache(folder, "data", "check", "--json").stdout)
    problems = [(one["level"], one["code"], one["split"]) for one in answer["findings"]]
    assert [one for one in problems if one[0] != "note"] == [("warning", "leak_annotations", "labeled, val")]


def test_a_split_that_a_recipe_learns_from_needs_keypoints(folder):
    page = folder / "stage0.py"
    page.write_text(page.read_text() + 'data = dict(labeled=("infants",))\n')
    labels = folder / "data" / "unlabeled" / "annotations.json"
    labels.write_text(json.dumps(json.loads(labels.read_text()) | dict(annotations=[])))
    assert check(folder, code=0)[0] == 0  # the unlabeled images need none
    add_split(folder, f'infants=dict(images="data/unlabeled/images", annotations="{labels}"),')
    errors, found = check(folder, code=1)
    assert errors == 1 and ("error", "infants") in found


def test_an_unknown_split_names_the_nearest(folder):
    with pytest.raises(SagecacheError, match="did you mean 'val'"):
        sagecache(folder, "data", "check", "--split", "vall")


def test_synth_leaves_one_s_own_data_alone(folder):
    with pytest.raises(SagecacheError, match="no split with 'render'"):
        sagecache(folder, "data", "synth")
    with pytest.raises(SagecacheError, match="'val' is your own data"):
        sagecache(folder, "data", "synth", "--split", "val")


def test_synth_keeps_what_is_there_and_refuses_other_settings(folder):
    page = folder / "data.py"
    before = page.read_text()

    def ask(render: str) -> None:
        page.write_text(before.replace("val=dict(", f"val=dict(render=dict({render}, size=(64, 48)), "))

    ask('look="target", count=1, seed=0')
    with pytest.raises(SagecacheError, match="these annotations were not rendered"):
        sagecache(folder, "data", "synth")
    labels = folder / "data/val/annotations.json"
    labels.unlink()
    assert "already" not in sagecache(folder, "data", "synth", "--workers", "1").stderr
    made = labels.read_bytes()
    assert "val: already at" in sagecache(folder, "data", "synth").stderr
    ask('look="target", count=1, seed=5')
    with pytest.raises(SagecacheError, match="differs in seed"):
        sagecache(folder, "data", "synth")
    ask('look="targt", count=1, seed=0')
    with pytest.raises(SagecacheError, match="split val: unknown look 'targt'. did you mean 'target'"):
        sagecache(folder, "data", "synth")
    assert labels.read_bytes() == made
