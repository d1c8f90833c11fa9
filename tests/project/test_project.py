"""Reading a project's pages: names, overrides, places, and what a recipe still needs, in order."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from dots import write_dots_project

from sagecache.errors import SagecacheError
from sagecache.project import Project, embedded_project
from sagecache.project.project import EXPORTED
from sagecache.project.runs import FinishedRun, mark_finished
from sagecache.skeleton.definition import COCO17
from sagecache.store import StoreReader


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_dots_project(tmp_path / "mine")


@pytest.fixture
def project(folder) -> Project:
    return Project.open(folder)


def append(folder: Path, page: str, line: str) -> None:
    with open(folder / f"{page}.py", "a") as file:
        file.write(line + "\n")


# -- finding and reading -------------------------------------------------------------------------------


def test_without_a_name_it_is_the_variable_s_project_else_the_demo(folder, monkeypatch):
    monkeypatch.delenv("SAGECACHE_PROJECT", raising=False)
    assert Project.open().embedded and Project.open().folder == embedded_project()
    monkeypatch.setenv("SAGECACHE_PROJECT", str(folder))
    assert not Project.open().embedded and Project.open().folder == folder
    assert Project.open(embedded_project()).folder == embedded_project()


def test_a_folder_without_pages_is_no_project(tmp_path, folder):
    with pytest.raises(SagecacheError, match="no data.py.*sagecache init"):
        Project.open(tmp_path / "nothing")
    (folder / "model.py").unlink()
    with pytest.raises(SagecacheError, match="model.py: no such page"):
        Project.open(folder)
    (folder / "model.py").write_text("modle = dict()\n")
    with pytest.raises(SagecacheError, match="no 'model' in it"):
        Project.open(folder)


def test_a_page_with_a_fault_of_its_own_is_told_by_file_and_fault(folder):
    append(folder, "data", "crop = dict(padding=1 / 0)")
    with pytest.raises(SagecacheError, match=r"data.py: can't be read: ZeroDivisionError: division by zero"):
        Project.open(folder)
    append(folder, "data", "crop = dict(")
    with pytest.raises(SagecacheError, match=r"data.py: can't be read: SyntaxError: .*\(data.py, line \d+\)"):
        Project.open(folder)


def test_an_unknown_key_names_the_page_and_the_nearest(folder):
    append(folder, "data", "crop = dict(paddin=1.5)")
    with pytest.raises(SagecacheError, match=r"data.py: unknown key 'crop.paddin'. Did you mean 'padding'"):
        Project.open(folder)


def test_an_unknown_split_or_recipe_names_the_nearest(project):
    with pytest.raises(SagecacheError, match="no split 'labled'. did you mean 'labeled'"):
        project.split("labled")
    with pytest.raises(SagecacheError, match="no recipe 'stage-0'. did you mean 'stage0'"):
        project.recipe("stage-0")


def test_recipes_are_the_pages_but_data_and_model_and_hidden_ones(folder, project):
    (folder / "_shared.py").write_text("train_cfg = dict(max_iters=1)\n")
    (folder / "stage0.backup.py").write_text("train_cgf = 1\n")  # no Python name
    (folder / "pose.py").write_text(f"{EXPORTED}\n\ndefault_scope = 'mmpose'\n")  # beside pose.pth
    assert project.recipe_names() == ["stage0", "stage1-full"]
    assert project.recipe("stage1_full") == project.recipe("stage1-full")


@pytest.mark.parametrize("name", Project.open(embedded_project()).recipe_names())
def test_every_page_of_the_demo_can_be_read(name):
    recipe, model = Project.open(embedded_project()).recipe(name)
    assert recipe.kind == ("prior" if name == "ddp-prior" else "pose")
    assert model["head"]["out_channels"] == COCO17.num_keypoints


# -- overrides -----------------------------------------------------------------------------------------


def test_an_override_changes_one_leaf_of_recipe_model_or_list_and_nothing_else(folder, project):
    append(folder, "stage0", "param_scheduler = [dict(type='A', end=3), dict(type='B', end=9)]")
    plain, model = project.recipe("stage0")
    changed, other = project.recipe(
        "stage0",
        {
            "train_cfg.max_iters": 7,
            "param_scheduler.1.end": 5,
            "model.head.decoder.sigma": 2.0,
            "semi.terms.new.weight": 0.5,
        },
    )
    assert (plain.train_cfg.max_iters, changed.train_cfg.max_iters) == (4, 7)
    assert changed.train_cfg.val_interval == plain.train_cfg.val_interval == 4
    assert changed.param_scheduler == [dict(type="A", end=3), dict(type="B", end=5)]
    assert plain.param_scheduler[1]["end"] == 9
    assert (model["head"]["decoder"]["sigma"], other["head"]["decoder"]["sigma"]) == (4 / 3, 2.0)
    assert changed.semi.terms == dict(new=dict(weight=0.5)) and plain.semi.terms == {}
    assert project.recipe("stage0") == (plain, model), "the pages themselves stay as they are"


@pytest.mark.parametrize(
    "key, value, told",
    [
        (
            "train_cgf.max_iters",
            3,
            "--cfg-options: unknown key 'train_cgf.max_iters'. did you mean 'train_cfg'",
        ),
        ("train_cfg.max_iter", 3, "unknown key 'train_cfg.max_iter'. Did you mean 'max_iters'"),
        ("train_cfg.max_iters", "many", "'train_cfg.max_iters' should be int, got 'many'"),
        ("mode.head", 1, "did you mean 'model'"),
    ],
)
def test_an_override_of_nothing_is_an_error(project, key, value, told):
    with pytest.raises(SagecacheError, match=told):
        project.recipe("stage0", {key: value})


def test_a_section_that_is_off_can_be_asked_for_again(project):
    recipe, _ = project.recipe("stage1-full", {"semi.mixing": None, "semi.mixing.hide": 2})
    assert recipe.semi.mixing == dict(hide=2)


@pytest.mark.parametrize(
    "key", ["train_cfg.max_iters.deep", "seed.x", "param_scheduler.7.end", "param_scheduler.x"]
)
def test_an_override_below_a_leaf_or_beside_a_list_is_an_error_too(folder, project, key):
    append(folder, "stage0", "seed = 1\nparam_scheduler = [dict(type='A')]")
    with pytest.raises(SagecacheError, match=f"--cfg-options: can't set '{key}'"):
        project.recipe("stage0", {key: 1})


# -- places --------------------------------------------------------------------------------------------


def test_paths_start_at_the_folder_wherever_the_command_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = Project.open("mine")
    monkeypatch.chdir("/")
    assert (
        project.cache_root == folder / "cache"
        and project.work_dir("stage1-full") == folder / "work_dirs/stage1_full"
    )
    assert project.stats_file.parent == project.prior_file.parent == folder / "cache"
    assert project.geometry_store("val") == folder / "cache" / "val" / "geo"
    assert project.shard_folder == folder / "cache" / "shards"
    assert project.path("/data/x") == Path("/data/x")
    assert project.path("~/x") == Path(os.path.expanduser("~/x"))


def test_teachers_are_looked_for_from_the_folder_too(folder, tmp_path, monkeypatch):
    append(
        folder, "data", 'teacher = dict(type="torchscript", files=dict(depth="nets/d.pt", normal="/n.pt"))'
    )
    append(folder, "data", 'detector = dict(type="mine", path="nets/found.pt", score=0.5)')
    monkeypatch.chdir(tmp_path)
    data = Project.open("mine").data
    assert data.teacher["files"] == dict(depth=str(folder / "nets/d.pt"), normal="/n.pt")
    assert data.detector == dict(type="mine", path=str(folder / "nets/found.pt"), score=0.5)


def test_statistics_are_of_the_splits_that_the_page_names(folder):
    append(folder, "data", 'stats_splits = ("labeled", "val")')
    assert ("stats", "labeled, val") in needs(Project.open(folder), "stage1-full")


def test_precomputed_are_the_splits_that_recipes_name_and_the_page_has(folder):
    assert Project.open(folder).precomputed_splits() == ["labeled", "unlabeled"]
    append(folder, "stage1_full", 'data = dict(labeled=("test", "val"), unlabeled="elsewhere")')
    assert Project.open(folder).precomputed_splits() == ["test", "val"]


def test_the_demo_writes_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("SAGECACHE_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Project.open().cache_root == tmp_path / "cache" / "demo"


def test_a_run_stands_by_its_best_checkpoint_and_the_project_by_its_newest_run(project):
    assert project.checkpoint() is None and project.checkpoint("stage0") is None
    places = ["stage0/best_a_iter_1.pth", "stage0/iter_9.pth", "stage1_full/iter_2.pth"]
    for age, place in enumerate(places):
        path = project.folder / "work_dirs" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        os.utime(path, (100 + age, 100 + age))
        expected = places[2] if age == 2 else places[0]
        assert project.checkpoint() == project.folder / "work_dirs" / expected
    assert project.checkpoint("stage0").name == "best_a_iter_1.pth"


def test_a_killed_run_does_not_count_as_trained_and_is_to_be_resumed(project):
    needs = lambda: {n.what: n for n in project.requirements(project.recipe("stage1-full")[0])}  # noqa: E731
    work_dir = project.work_dir("stage0")
    assert needs()["stage0"].command.endswith("train stage0")
    work_dir.mkdir(parents=True)
    (work_dir / "iter_1.pth").write_text("")
    assert not needs()["stage0"].present() and needs()["stage0"].command.endswith("train stage0 --resume")
    mark_finished(work_dir, FinishedRun(2, "iter_1.pth"))
    assert needs()["stage0"].present()


# -- instances -----------------------------------------------------------------------------------------


def test_instances_are_the_file_s_persons_in_order(project, folder):
    content = json.loads((folder / "data/labeled/annotations.json").read_text())
    instances = project.instances("labeled")
    assert [one.annotation_id for one in instances] == [one["id"] for one in content["annotations"]]
    for one, record in zip(instances, content["annotations"], strict=True):
        assert one.key == (record["image_id"], record["id"] % 10) and one.path.is_file()
        assert one.bbox == tuple(record["bbox"])
        np.testing.assert_array_equal(one.keypoints.ravel(), record["keypoints"])


def test_detections_are_cut_by_score_and_number(folder):
    text = (folder / "data.py").read_text()
    place = 'unlabeled=dict(boxes="boxes.json", min_score=0.5, max_per_image=1, '
    (folder / "data.py").write_text(text.replace("unlabeled=dict(", place))
    boxes = [
        dict(image_id=201, category_id=1, bbox=[0, 0, 10 + i, 20], score=score)
        for i, score in enumerate([0.4, 0.6, 0.9])
    ]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    project = Project.open(folder)
    assert project.detections("unlabeled") == folder / "boxes.json"
    assert project.detections("labeled") == folder / "cache" / "labeled" / "detections.json"
    (one,) = project.instances("unlabeled")
    assert (one.key, one.score, one.bbox[2]) == ((201, 2), 0.9, 12)
    assert len(project.instances("unlabeled", "annotations")) == 6
    (folder / "others.json").write_text(json.dumps(boxes[:2]))
    (one,) = project.instances("unlabeled", detections=folder / "others.json")
    assert one.score == 0.6


def test_another_skeleton_comes_from_a_dataset_info_page(folder):
    append(folder, "data", 'dataset_info = "three.py"')
    with pytest.raises(SagecacheError, match="three.py: no such page"):
        _ = Project.open(folder).skeleton
    (folder / "three.py").write_text("info = dict()\n")
    with pytest.raises(SagecacheError, match="no 'dataset_info' in it"):
        _ = Project.open(folder).skeleton
    page = """
dataset_info = dict(
    dataset_name="three", joint_weights=[1.0] * 3, sigmas=[0.05] * 3,
    keypoint_info={i: dict(name=n, id=i, swap=s) for i, (n, s) in
                   enumerate([("nose", ""), ("left_hand", "right_hand"), ("right_hand", "left_hand")])},
    skeleton_info={0: dict(link=("nose", "left_hand"), id=0), 1: dict(link=("nose", "right_hand"), id=1)})
"""
    (folder / "three.py").write_text(page)
    skeleton = Project.open(folder).skeleton
    assert skeleton.names == ("nose", "left_hand", "right_hand")
    assert list(skeleton.flip_indices) == [0, 2, 1]


# -- what is missing -----------------------------------------------------------------------------------


def needs(project: Project, name: str) -> list[tuple[str, str]]:
    requirements = project.requirements(project.recipe(name)[0])
    return [(need.kind, need.what) for need in requirements if not need.present()]


def test_requirements_come_in_an_order_in_which_they_can_be_made(tmp_path, monkeypatch):
    monkeypatch.delenv("SAGECACHE_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    found = needs(Project.open(), "stage1-full")
    assert set(found) == {
        ("split", "labeled"), ("split", "val"), ("split", "unlabeled"), ("boxes", "unlabeled"),
        ("geo", "labeled"), ("geo", "unlabeled"), ("stats", "labeled"),
        ("recipe", "ddp-prior"), ("recipe", "stage0"),
    }  # fmt: skip
    place = {need: i for i, need in enumerate(found)}
    for first, then in [
        (("split", "unlabeled"), ("boxes", "unlabeled")),
        (("boxes", "unlabeled"), ("geo", "unlabeled")),
        (("split", "labeled"), ("geo", "labeled")),
        (("split", "labeled"), ("stats", "labeled")),
        (("split", "labeled"), ("recipe", "stage0")),
    ]:
        assert place[first] < place[then]


def test_a_requirement_looks_again_and_its_command_names_the_project(project, folder):
    assert needs(project, "stage0") == []
    requirements = project.requirements(project.recipe("stage1-full")[0])
    missing = {need.kind: need for need in requirements if not need.present()}
    assert missing["stats"].command == f"sagecache --project {folder} precompute stats"
    project.stats_file.parent.mkdir()
    project.stats_file.write_text("{}")
    assert missing["stats"].present()
    (folder / "work_dirs" / "stage0").mkdir(parents=True)
    (folder / "work_dirs" / "stage0" / "iter_4.pth").write_text("")
    mark_finished(folder / "work_dirs" / "stage0", FinishedRun(4, "iter_4.pth"))
    assert needs(project, "stage1-full") == []


def test_a_split_alone_needs_its_files_and_boxes_and_its_targets_only_where_asked(folder):
    text = (folder / "data.py").read_text()
    (folder / "data.py").write_text(text.replace("unlabeled=dict(", 'unlabeled=dict(boxes="detect", '))
    project = Project.open(folder)
    kinds = [need.kind for need in project.split_requirements("unlabeled")]
    assert kinds == ["split", "boxes"]
    assert [need.kind for need in project.split_requirements("unlabeled", geometry=True)] == [*kinds, "geo"]
    assert [need.kind for need in project.split_requirements("val")] == ["split"]
    assert project.split_requirements("unlabeled")[1].command.endswith("precompute detect --split unlabeled")
    (folder / "data.py").write_text(text.replace("unlabeled=dict(", 'unlabeled=dict(boxes="b.json", '))
    assert Project.open(folder).split_requirements("unlabeled")[1].command.endswith("data check")


def test_commands_name_the_project_as_a_shell_reads_it(tmp_path):
    folder = write_dots_project(tmp_path / "my dots")
    project = Project.open(folder)
    assert project.command("Run: sagecache train stage0 --resume") == (
        f"Run: sagecache --project {shlex.quote(str(folder))} train stage0 --resume"
    )
    told = project.command("Run 'sagecache precompute geo' or sagecache data check.")
    assert told.count(f"--project '{folder}' ") == 2
    for text in (told, "sagecache init DIR", "Update sagecache, or train anew."):
        assert project.command(text) == text
    assert Project.open(None).command("sagecache eval") == "sagecache eval"


def test_stores_may_lie_elsewhere_and_be_joined_by_others(folder):
    with (folder / "data.py").open("a") as page:
        page.write('store_root = "targets"\nmore_targets = dict(val=["other/geo", "/far/geo"])\n')
    project = Project.open(folder)
    assert project.targets("val").root == folder / "targets" / "val" / "geo"
    assert [reader.root for reader in project.joined_targets("val").readers] == [
        folder / "targets" / "val" / "geo",
        folder / "other" / "geo",
        Path("/far/geo"),
    ]
    other = next(name for name in project.data.splits if name != "val")
    assert isinstance(project.joined_targets(other), StoreReader)
