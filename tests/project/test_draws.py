"""Draws: which labels each has, where they lie, and how commands name them."""

from __future__ import annotations

import json
import os

import pytest
from dots import write_dots_project

from sagecache.data.splits import draw_images
from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.project.draws import Draw, write_label_lists


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "mine")


def rendered(folder, **seeds):
    """The dots project with a rendered labeled split, and others of these seeds."""
    page = folder / "data.py"
    splits = dict(labeled=7, **seeds)
    lines = [
        f"splits['{name}'] = dict(images='data/{name}/images', annotations='data/{name}/annotations.json', "
        f"render=dict(look='target', count=24, seed={seed}))"
        for name, seed in splits.items()
    ]
    page.write_text(page.read_text() + "\n".join(lines) + "\n")
    return Project.open(folder)


def test_a_draw_is_named_in_folders_and_on_the_command_line():
    assert [Draw.parse(text).text for text in ("0", "3", "3:100", "0:50")] == ["", "3", "3:100", "0:50"]
    assert [Draw(3).name, Draw(3, 100).name, Draw().name] == ["draw3", "draw3_100", ""]
    for text in ("three", "3:", ":5", "-1", "3:100:2"):
        with pytest.raises(SagecacheError, match="is no draw"):
            Draw.parse(text)
    with pytest.raises(SagecacheError, match="number of labeled images is 0"):
        Draw.parse("1:0")


def test_a_rendered_split_gets_pictures_and_folders_of_its_own_and_the_rest_is_shared(folder):
    whole = rendered(folder, unlabeled=8)
    drawn = whole.redrawn(2)
    split = drawn.split("labeled")
    assert (split.render.seed, split.render.count) == (2007, 24)
    cache, root = folder / "cache", folder / "cache" / "draw2"
    assert drawn.path(split.annotations) == root / "data/labeled/annotations.json"
    assert drawn.path(split.images) == root / "data/labeled/images"
    assert (drawn.stats_file, drawn.prior_file) == (
        root / "skeleton_stats.json", root / "ddp_prior.safetensors"
    )  # fmt: skip
    assert drawn.geometry_store("labeled") == root / "labeled/geo"
    assert drawn.detections("labeled") == root / "labeled/detections.json"
    assert drawn.split("unlabeled") == whole.split("unlabeled")
    assert drawn.geometry_store("unlabeled") == cache / "unlabeled/geo"
    assert drawn.work_dir("stage1-full") == folder / "work_dirs/draw2/stage1_full"
    assert whole.redrawn(2, 6).split("labeled").render.count == 6
    assert whole.redrawn(0) is whole and whole.split("labeled").render.seed == 7  # untouched


def test_each_draw_has_a_seed_of_its_own_which_an_override_beats(folder):
    whole = Project.open(folder)
    (folder / "stage0.py").write_text((folder / "stage0.py").read_text() + "seed = 5\n")
    seeds = [whole.redrawn(draw).recipe("stage0")[0].seed for draw in (0, 1, 4)]
    assert seeds == [5, 6, 9]
    assert whole.redrawn(4).recipe("stage0", {"seed": 1})[0].seed == 1


def test_labels_of_one_s_own_are_drawn_from_the_annotations(folder):
    whole = Project.open(folder)
    assert whole.redrawn(1).split("labeled") == whole.split("labeled")  # nothing says how many
    assert whole.redrawn(1).stats_file == whole.stats_file
    content = json.loads((folder / "data/labeled/annotations.json").read_text())
    for number in (0, 1, 2):
        drawn = whole.redrawn(number, 2)
        write_label_lists(drawn, whole)
        ids = [image["id"] for image in json.loads(
            (folder / f"cache/draw{number}_2/labeled.json").read_text())["images"]]  # fmt: skip
        assert ids == draw_images(content, 2, number)
        assert {one.image_id for one in drawn.instances("labeled")} == set(ids)
        assert drawn.geometry_store("labeled") == folder / f"cache/draw{number}_2/labeled/geo"
    with pytest.raises(SagecacheError, match="can't draw 9 of 3 labeled images"):
        write_label_lists(whole.redrawn(1, 9), whole)


def test_a_list_of_labels_is_written_anew_only_when_the_annotations_change(folder):
    whole = Project.open(folder)
    drawn, source = whole.redrawn(1, 1), folder / "data/labeled/annotations.json"
    target = drawn.path(drawn.split("labeled").annotations)
    write_label_lists(drawn, whole)
    os.utime(target, (1, 1))
    write_label_lists(drawn, whole)
    assert target.stat().st_mtime == 1
    content = json.loads(source.read_text())
    chosen = json.loads(target.read_text())["images"][0]["id"]
    content["images"] = [image for image in content["images"] if image["id"] != chosen]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != chosen]
    source.write_text(json.dumps(content))
    write_label_lists(drawn, whole)
    assert json.loads(target.read_text())["images"][0]["id"] != chosen


def test_a_draw_never_renders_the_pictures_of_val_or_test(folder):
    whole = rendered(folder, test=3007)
    whole.redrawn(2)
    with pytest.raises(SagecacheError, match="render the pictures of 'test'"):
        whole.redrawn(3)


def test_what_is_missing_is_told_with_commands_of_that_draw(folder):
    drawn = rendered(folder).redrawn(3)
    commands = [need.command for need in drawn.requirements(drawn.recipe("stage1-full")[0])]
    run = f"sagecache --project {folder} --draw 3"
    assert commands[0] == f"{run} data synth --split labeled"
    assert commands[-2:] == [f"{run} precompute stats", f"{run} train stage0"]
    assert Project.demo().redrawn(3, 9).command("sagecache train x") == "sagecache --draw 3:9 train x"
    assert Project.demo().command("sagecache train x") == "sagecache train x"
