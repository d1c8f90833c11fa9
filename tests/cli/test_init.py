"""sagecache init as typed: files written, the next command named, bad options refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dots import write_split
from typed import sagecache

from sagecache.cli.init import PAGES
from sagecache.cli.main import cli
from sagecache.project import init as project_pages

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"


def init(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["init", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_it_lists_the_files_and_the_command_that_comes_next_works(tmp_path):
    write_split(tmp_path / "own", 2, 101)
    folder = tmp_path / "project"
    options = ("--images", tmp_path / "own/images", "--labeled", tmp_path / "own/annotations.json")
    answer = init(folder, *options)
    *files, last = answer.stdout.splitlines()
    assert "val is the labeled split" in answer.stderr
    assert "--pages nk_sapiens or sage_pose" in answer.stderr
    assert {Path(file).name for file in files} == {path.name for path in folder.glob("*")}
    assert last == f"next: sagecache --project {folder} data check"
    assert "0 errors" in sagecache(folder, "data", "check").stdout
    options = (*options, "--val", tmp_path / "own/annotations.json", "--force")
    assert "val is" not in init(folder, *options).stderr


@pytest.mark.parametrize("pages", PAGES)
def test_pages_of_each_kind_can_be_asked_for(tmp_path, pages):
    write_split(tmp_path / "own", 2, 101)
    options = ("--images", tmp_path / "own/images", "--labeled", tmp_path / "own/annotations.json")
    answer = init(tmp_path / "project", *options, "--pages", pages)
    assert ("put the checkpoints where" in answer.stderr) == (pages != "demo")
    assert "0 errors" in sagecache(tmp_path / "project", "data", "check").stdout
    (tmp_path / "project" / "mine.py").write_text("kind = 'prior'")
    again = init(tmp_path / "project", *options, "--pages", pages, "--force")
    assert "left as they were: mine.py\n" in again.stderr
    assert PAGES == project_pages.PAGES


@pytest.mark.parametrize(
    "options, told",
    [
        ([], "Missing option '--images'"),
        (["--images", "."], "Missing option '--labeled'"),
        (["--images", "none", "--labeled", "none.json"], "'none' does not exist"),
    ],
)
def test_what_it_needs_is_asked_for(tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    assert told in init("project", *options, code=2).output
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos of ../shared/data/real are not here")
def test_a_project_on_coco_photos(tmp_path):
    folder = tmp_path / "project"
    labels = PHOTOS / "annotations" / "person_keypoints.json"
    options = ("--images", PHOTOS / "images", "--labeled", labels, "--unlabeled-images", PHOTOS / "images")
    init(folder, *options, "--detections", PHOTOS / "detections.json")
    answer = json.loads(sagecache(folder, "data", "check", "--split", "labeled", "--json").stdout)
    assert answer["errors"] == 0
    listing = json.loads((folder / "unlabeled_images.json").read_text())["images"]
    expected = json.loads(labels.read_text())["images"]
    keys = ("id", "file_name", "width", "height")
    assert listing == sorted(({key: one[key] for key in keys} for one in expected), key=lambda one: one["id"])
