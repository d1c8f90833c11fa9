"""A project written for somebody's own data opens again, and says where exactly those data lie."""

from __future__ import annotations

import ast
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from dots import write_split

from sagecache.errors import SagecacheError
from sagecache.mm.checkpoints import load_network
from sagecache.mm.registry import build_student
from sagecache.mm.terms import check_semi
from sagecache.models.weights import weights_path
from sagecache.project import Project, embedded_project
from sagecache.project.init import PAGES, UserData, write_project
from sagecache.project.project import read_page
from sagecache.skeleton import COCO17

ARM = """
dataset_info = dict(
    dataset_name="arm",
    keypoint_info={
        0: dict(name="shoulder", id=0, color=[0, 0, 0], type="upper", swap=""),
        1: dict(name="elbow", id=1, color=[0, 0, 0], type="upper", swap=""),
        2: dict(name="wrist", id=2, color=[0, 0, 0], type="upper", swap=""),
    },
    skeleton_info={0: dict(link=("shoulder", "elbow"), id=0, color=[0, 0, 0])},
    joint_weights=[1.0, 1.0, 1.0],
    sigmas=[0.1, 0.1, 0.1],
)
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder of labeled images, and one of other images in two folders."""
    write_split(tmp_path / "own" / "labeled", 3, 101)
    rng = np.random.default_rng(0)
    for place, size in (("b/0007.jpg", (40, 30)), ("a/12.PNG", (20, 50)), ("3.jpeg", (8, 8))):
        path = tmp_path / "own" / "more" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    (tmp_path / "own" / "more" / "notes.txt").write_text("no image")
    return tmp_path / "own"


def write(
    own: Path, folder: str = "project", force: bool = False, pages: str = "demo", **options
) -> tuple[Project, list[Path]]:
    labeled = own / "labeled"
    target = own.parent / folder
    data = UserData(labeled / "images", labeled / "annotations.json", **options)
    written = write_project(target, data, pages, force)
    return Project.open(target), written


@pytest.mark.parametrize("pages", PAGES)
def test_what_was_written_is_a_project_with_every_recipe(own, pages):
    project, written = write(own, unlabeled_images=own / "more", pages=pages)
    source = Project.open(embedded_project().parent / pages)
    assert project.recipe_names() == [name for name in source.recipe_names() if name != "oracle"]
    for name in project.recipe_names():
        assert project.recipe(name) == source.recipe(name)
    assert project.model == source.model and project.data.crop == source.data.crop
    for role in ("teacher", "detector"):
        wanted = read_page(source.folder / "data.py")[role]
        assert read_page(project.folder / "data.py")[role] == wanted
    assert sorted(written) == sorted(path for path in project.folder.iterdir()) and not project.embedded
    content = json.loads((own / "labeled" / "annotations.json").read_text())
    instances = project.instances("labeled")
    assert [one.annotation_id for one in instances] == [one["id"] for one in content["annotations"]]
    assert all(one.path.is_file() for one in instances)


def test_without_unlabeled_images_stage0_is_all_there_is_to_train(own):
    project, _ = write(own)
    assert project.recipe_names() == ["stage0"]
    project, _ = write(own, unlabeled_images=own / "more", force=True)
    assert "stage1-full" in project.recipe_names()


def test_the_rule_of_evaluation_is_coco_s_where_the_labels_state_areas(own):
    page, labels = (
        own / "labeled" / "annotations.json",
        json.loads((own / "labeled" / "annotations.json").read_text()),
    )
    for areas, rule in (([5.0, 6.0, 7.0], "annotation"), ([5.0, None, 7.0], "bbox53"), ([5, 0, 7], "bbox53")):
        for one, area in zip(labels["annotations"], areas, strict=False):
            one["area"] = area
        page.write_text(json.dumps(labels))
        project, _ = write(own, force=True, pages="nk_sapiens")
        assert project.data.evaluation.area == rule
        assert project.data.evaluation.pck_normaliser == "max_side"


def test_labels_with_persons_without_keypoints_are_good_labels(own):
    page = own / "labeled" / "annotations.json"
    labels = json.loads(page.read_text())
    del labels["annotations"][0]["keypoints"]
    labels["annotations"][1]["keypoints"] = None
    page.write_text(json.dumps(labels))
    project, _ = write(own)
    assert project.data.evaluation.area == "annotation"


def relabel_as_arms(annotations: Path) -> None:
    content = json.loads(annotations.read_text())
    for one in content["annotations"]:
        one["keypoints"] = one["keypoints"][:9]
    annotations.write_text(json.dumps(content))


def test_without_a_val_split_the_page_says_that_it_is_the_labeled_one(own):
    project, _ = write(own)
    assert project.split("val") == project.split("labeled")
    assert "give --val" in (project.folder / "data.py").read_text()
    shutil.copy(own / "labeled" / "annotations.json", own / "other.json")
    project, _ = write(own, "second", val=own / "other.json", test=own / "other.json")
    assert project.path(project.split("test").annotations).resolve() == own / "other.json"
    assert project.split("val") == project.split("test") != project.split("labeled")
    assert "give --val" not in (project.folder / "data.py").read_text()


def test_images_named_by_numbers_keep_them_as_ids(own):
    project, _ = write(own, unlabeled_images=own / "more")
    listing = json.loads(project.path(project.split("unlabeled").annotations).read_text())
    assert listing["images"] == [
        dict(id=3, file_name="3.jpeg", width=8, height=8),
        dict(id=7, file_name="b/0007.jpg", width=40, height=30),
        dict(id=12, file_name="a/12.PNG", width=20, height=50),
    ]
    assert project.split("unlabeled").boxes == "detect" and listing["annotations"] == []


def test_other_names_are_numbered_in_order(own):
    (own / "more" / "3.jpeg").rename(own / "more" / "baby.jpeg")
    project, _ = write(own, unlabeled_images=own / "more")
    listing = json.loads(project.path(project.split("unlabeled").annotations).read_text())
    assert [(one["id"], one["file_name"]) for one in listing["images"]] == [
        (1, "a/12.PNG"), (2, "b/0007.jpg"), (3, "baby.jpeg"),
    ]  # fmt: skip


def test_names_of_more_digits_than_an_id_holds_are_numbered_in_order(own):
    (own / "more" / "3.jpeg").rename(own / "more" / "20240131123045000201.jpeg")
    project, _ = write(own, unlabeled_images=own / "more")
    listing = json.loads(project.path(project.split("unlabeled").annotations).read_text())
    assert [one["id"] for one in listing["images"]] == [1, 2, 3]


def test_each_labeled_split_may_have_its_own_folder_of_images(own):
    shutil.copytree(own / "labeled", own / "val2017")
    val = own / "val2017" / "annotations.json"
    project, _ = write(own, val=val, val_images=own / "val2017" / "images", test=val)
    assert all("val2017" in str(one.path.resolve()) for one in project.instances("val"))
    assert all("val2017" not in str(one.path.resolve()) for one in project.instances("test"))
    with pytest.raises(SagecacheError, match="images: a folder of images without their annotations"):
        write(own, "second", test_images=own / "val2017" / "images")


def test_a_skeleton_of_other_names_is_refused_although_the_count_fits(own):
    path = own / "labeled" / "annotations.json"
    content = json.loads(path.read_text())
    content["categories"][0]["keypoints"] = [f"paw_{k}" for k in range(17)]
    path.write_text(json.dumps(content))
    with pytest.raises(
        SagecacheError, match=r"its keypoints \(paw_0, paw_1, .*'coco' \(nose.*: number 1 is 'paw_0', not 'n"
    ):
        write(own)
    content["categories"][0]["keypoints"] = [*COCO17.names[:5], *COCO17.names[6:]]
    path.write_text(json.dumps(content))
    with pytest.raises(SagecacheError, match="'coco' .*: 16, not 17"):
        write(own)


def test_numbers_that_repeat_in_other_folders_are_no_ids(own):
    shutil.copytree(own / "more" / "b", own / "more" / "c")
    project, _ = write(own, unlabeled_images=own / "more")
    listing = json.loads(project.path(project.split("unlabeled").annotations).read_text())
    assert [(one["id"], one["file_name"]) for one in listing["images"]] == [
        (1, "3.jpeg"), (2, "a/12.PNG"), (3, "b/0007.jpg"), (4, "c/0007.jpg"),
    ]  # fmt: skip
    boxes = own / "boxes.json"
    boxes.write_text(json.dumps([dict(image_id=7, category_id=1, bbox=[1, 2, 30, 20], score=0.9)]))
    with pytest.raises(SagecacheError, match="two files have the same number"):
        write(own, "second", unlabeled_images=own / "more", detections=boxes)


def test_detections_of_one_s_own_are_the_boxes(own):
    boxes = own / "boxes.json"
    boxes.write_text(json.dumps([dict(image_id=7, category_id=1, bbox=[1, 2, 30, 20], score=0.9)]))
    project, _ = write(own, unlabeled_images=own / "more", detections=boxes)
    (one,) = project.instances("unlabeled")
    assert one.path == own / "more" / "b" / "0007.jpg" or one.path.samefile(own / "more" / "b" / "0007.jpg")
    assert one.bbox == (1, 2, 30, 20)
    (own / "more" / "3.jpeg").rename(own / "more" / "baby.jpeg")
    with pytest.raises(SagecacheError, match="these file names are no numbers.*--unlabeled-annotations"):
        write(own, "second", unlabeled_images=own / "more", detections=boxes)


def test_project_and_data_can_move_together(own, tmp_path):
    project, _ = write(own, unlabeled_images=own / "more")
    page = ast.parse((project.folder / "data.py").read_text())
    texts = [
        node.value
        for node in ast.walk(page)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert not [text for text in texts if os.path.isabs(text)]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("own", "project"):
        shutil.move(tmp_path / name, moved / name)
    assert all(one.path.is_file() for one in Project.open(moved / "project").instances("labeled"))


def test_data_far_away_are_named_by_their_whole_path(own):
    project, _ = write(own, "a/b/c/d/project")
    assert project.split("labeled").images == own / "labeled" / "images"


def test_names_with_quotes_and_umlauts_survive(own):
    strange = own / 'Jörg\'s "best" \\ pictures'
    (own / "labeled").rename(strange)
    info = strange / "info.py"
    info.write_text(ARM)
    labels = strange / "annotations.json"
    relabel_as_arms(labels)
    write_project(own.parent / "project", UserData(strange / "images", labels, dataset_info=info))
    data = Project.open(own.parent / "project").data
    copied = own.parent / "project" / data.dataset_info
    assert copied.read_text() == info.read_text() and not copied.samefile(info)
    assert Project.open(own.parent / "project").recipe_names() == ["stage0"]
    again = UserData(strange / "images", labels, dataset_info=copied)
    assert copied in write_project(own.parent / "project", again, force=True)
    (strange / "other.py").write_text("x = 1\n")
    info.write_text("_base_ = 'other.py'\n" + ARM)
    with pytest.raises(SagecacheError, match="_base_ can't be copied"):
        write_project(own.parent / "second", UserData(strange / "images", labels, dataset_info=info))
    assert all(one.path.is_file() for one in Project.open(own.parent / "project").instances("labeled"))


@pytest.mark.parametrize("option", ["detections", "unlabeled_annotations"])
def test_what_belongs_to_unlabeled_images_is_never_dropped_without_them(own, option):
    (own / "some.json").write_text("[]")
    with pytest.raises(SagecacheError, match="some.json: .*--unlabeled-images"):
        write(own, **{option: own / "some.json"})
    assert not (own.parent / "project").exists()


def test_an_existing_project_is_kept_unless_forced(own):
    project, _ = write(own)
    page = project.folder / "data.py"
    page.write_text("# mine\n")
    with pytest.raises(SagecacheError, match="project here already.*--force"):
        write(own)
    assert page.read_text() == "# mine\n"
    assert write(own, force=True)[0].split("labeled")


def test_nothing_is_written_for_unusable_input(own):
    (own / "broken.json").write_text("{")
    boxes = dict(detections=own / "broken.json", unlabeled_images=own / "more")
    for options in (dict(val=own / "broken.json"), boxes):
        with pytest.raises(SagecacheError, match="broken.json"):
            write(own, **options)
    assert not (own.parent / "project").exists()


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda more: (more / "9.jpg").write_text("not a picture"), "1 image can't be opened: 9.jpg"),
        (lambda more: [shutil.rmtree(more), more.mkdir()], "no images below it.*jpg"),
    ],
)
def test_a_folder_of_images_that_cannot_be_listed_says_why(own, spoil, told):
    spoil(own / "more")
    with pytest.raises(SagecacheError, match=told):
        write(own, unlabeled_images=own / "more")


def test_all_images_that_cannot_be_opened_are_told_at_once(own):
    for number in range(20, 32):
        (own / "more" / f"{number}.jpg").write_text("not a picture")
    told = "more: 12 images can't be opened: 20.jpg .*; and 2 more"
    with pytest.raises(SagecacheError, match=told) as caught:
        write(own, unlabeled_images=own / "more")
    assert "29.jpg" in str(caught.value) and "30.jpg" not in str(caught.value)
    assert str(caught.value).count("more/") == 0 and "\n" not in str(caught.value)


def test_pages_fit_another_skeleton_and_a_head_that_does_not_is_refused(own):
    (own / "arm.py").write_text(ARM)
    with pytest.raises(SagecacheError, match="annotations.json: persons have 17 keypoints, .*'arm' has 3"):
        write(own, dataset_info=own / "arm.py")
    relabel_as_arms(own / "labeled" / "annotations.json")
    with pytest.raises(SagecacheError, match="persons have 3 keypoints, .*'coco' has 17.*--dataset-info"):
        write(own)
    assert not (own.parent / "project").exists()
    project, _ = write(own, dataset_info=own / "arm.py")
    recipe, model = project.recipe("stage0")
    assert model["head"]["out_channels"] == 3 and recipe.load_from == "demo"
    load_network(build_student(model), weights_path("student"), as_start=True)  # but for its last layer
    with pytest.raises(SagecacheError, match="model.py: the head draws 17 maps, and.* has 3 joints"):
        project.recipe("stage0", {"model.head.out_channels": 17})


def test_pages_leave_out_what_needs_a_torso_where_the_skeleton_names_none(own):
    (own / "arm.py").write_text(ARM)
    with_torso, _ = write(own, "coco", unlabeled_images=own / "more")
    relabel_as_arms(own / "labeled" / "annotations.json")
    project, _ = write(own, dataset_info=own / "arm.py", unlabeled_images=own / "more")
    for name in project.recipe_names():
        recipe, _ = project.recipe(name)
        if recipe.kind == "prior":
            continue
        check_semi(recipe, project.skeleton)
        before, _ = with_torso.recipe(name)
        assert not recipe.semi.instances.get("inverted")
        assert set(before.terms) == set(recipe.terms)  # and nothing else goes
        assert recipe.semi.pseudo_labels == before.semi.pseudo_labels
    assert "inverted" in (with_torso.folder / "sage_pose.py").read_text()
    votes = {"semi.swaps.front": 0.2, "semi.terms.sides.weight": 1.0}
    sage, _ = with_torso.recipe("sage-pose", votes)
    with pytest.raises(SagecacheError, match=r"semi.swaps=None semi.terms.sides.weight=0"):
        check_semi(sage, project.skeleton)
