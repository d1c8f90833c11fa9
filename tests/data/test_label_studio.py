"""Label Studio's export: percents, rectangles with their points, the annotation that counts, file names."""

import numpy as np
import pytest
from formats import perfect_ap, studio_box, studio_point, studio_task, write_image, write_json
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.convert import to_coco
from sagecache.data.label_studio import NO_JOINTS, ROTATED, SECOND, UNFINISHED, read_label_studio
from sagecache.data.picture_files import find_pictures
from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import COCO17


def written(tmp_path, *tasks: dict):
    return write_json(tmp_path / "project-1.json", list(tasks))


def converted(path, **options):
    return to_coco(read_label_studio(path, **options))


def points_of(annotation: dict) -> dict[str, list]:
    values = np.array(annotation["keypoints"], dtype=float).reshape(17, 3).round(6).tolist()
    return {name: value for name, value in zip(COCO17.names, values, strict=True) if value[2]}


def boxes_of(coco: dict) -> np.ndarray:
    return np.array([one["bbox"] for one in coco["annotations"]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(17)))
def test_points_come_back(tmp_path_factory, seed, order):
    points = np.random.default_rng(seed).uniform(5, 115, (17, 2))
    result = [studio_point(COCO17.names[k].replace("_", " ").upper(), *points[k]) for k in order]
    coco, _ = converted(written(tmp_path_factory.mktemp("ls"), studio_task(8, result)))
    keypoints = np.reshape(coco["annotations"][0]["keypoints"], (17, 3))
    np.testing.assert_allclose(keypoints, np.c_[points, np.full(17, 2)], atol=1e-9)
    assert coco["images"][0]["id"] == 8


def test_rectangles_are_persons_and_hold_their_points(tmp_path):
    result = [
        studio_box(10, 5, 60, 90, id="A"),
        studio_box(80, 5, 60, 100, id="B"),
        studio_point("nose", 100, 20, id="1", parentID="B"),
        studio_point("nose", 30, 20, id="2", parentID="A"),
        studio_point("left eye", 105, 15, id="3", parentID="B"),
    ]
    coco, report = converted(written(tmp_path, studio_task(1, result)))
    assert [points_of(one) for one in coco["annotations"]] == [
        {"nose": [30, 20, 2]},
        {"nose": [100, 20, 2], "left_eye": [105, 15, 2]},
    ]
    np.testing.assert_allclose(boxes_of(coco), [[10, 5, 60, 90], [80, 5, 60, 100]])
    assert report.persons == 2 and perfect_ap(coco) == 1


def test_a_lone_rectangle_has_all_points_and_a_tilted_one_is_no_box(tmp_path):
    tilted = studio_box(10, 5, 60, 90)
    tilted["value"]["rotation"] = 30
    tasks = [
        studio_task(1, [studio_point("nose", 50, 40), studio_box(10, 5, 60, 90)], "a.jpg"),
        studio_task(2, [studio_point("nose", 50, 40), tilted], "b.jpg"),
    ]
    coco, _ = converted(written(tmp_path, *tasks))
    np.testing.assert_allclose(boxes_of(coco), [[10, 5, 60, 90], [48, 38, 4, 4]])


def test_a_point_of_nobody_and_a_joint_twice_are_errors(tmp_path):
    boxes = [studio_box(10, 5, 60, 90, id="A"), studio_box(80, 5, 60, 100, id="B")]
    with pytest.raises(SagecacheError, match="task 5: 2 rectangles, and 'nose' is below none.*region list"):
        read_label_studio(written(tmp_path, studio_task(5, [*boxes, studio_point("nose", 1, 2)])))
    twice = [studio_point("nose", 1, 2), studio_point("Nose", 3, 4)]
    with pytest.raises(SagecacheError, match="task 5: a person has 'nose' twice.*rectangle"):
        read_label_studio(written(tmp_path, studio_task(5, twice)))
    alone = [*boxes, studio_point("nose", 20, 30, parentID="A")]
    assert converted(written(tmp_path, studio_task(5, alone)))[1].dropped == {NO_JOINTS: 1}


def test_a_choice_says_that_a_joint_is_hidden(tmp_path):
    result = [
        studio_point("nose", 50, 40, id="n"),
        studio_point("left_ear", 60, 40, id="e"),
        dict(id="e", type="choices", value=dict(choices=["Occluded"])),
        dict(id="n", type="choices", value=dict(choices=["sharp"])),
    ]
    coco, _ = converted(written(tmp_path, studio_task(1, result)))
    assert points_of(coco["annotations"][0]) == {"nose": [50, 40, 2], "left_ear": [60, 40, 1]}


def test_which_annotation_of_a_task_counts(tmp_path):
    def annotation(x: float, **extra) -> dict:
        return dict(result=[studio_point("nose", x, 40)], was_cancelled=False) | extra

    skipped = annotation(30, was_cancelled=True)
    tasks = [
        studio_task(1, [], "1.jpg", annotations=[annotation(10), annotation(20), skipped]),
        studio_task(2, [], "2.jpg", annotations=[annotation(10, ground_truth=True), annotation(20)]),
        studio_task(3, [], "3.jpg"),
        studio_task(4, [], "4.jpg", annotations=[], predictions=[annotation(10)]),
        studio_task(5, [studio_point("nose", 9, 9, image_rotation=90)], "5.jpg"),
    ]
    coco, report = converted(written(tmp_path, *tasks))
    assert [image["id"] for image in coco["images"]] == [1, 2]
    assert [points_of(one)["nose"][0] for one in coco["annotations"]] == [20, 10]
    assert report.dropped == {SECOND: 2, UNFINISHED: 2, ROTATED: 1}


@pytest.mark.parametrize(
    ("address", "name", "file"),
    [
        ("/data/upload/3/0123abcd-baby 1.jpg", "0123abcd-baby 1.jpg", "baby 1.jpg"),
        ("/data/upload/3/0123abcd-baby%201.jpg", "0123abcd-baby 1.jpg", "0123abcd-baby 1.jpg"),
        ("/data/local-files/?d=photos/crib7/001.jpg", "photos/crib7/001.jpg", "crib7/001.jpg"),
        ("s3://bucket/photos/001.jpg", "photos/001.jpg", "001.jpg"),
        ("https://host.example/a/001.jpg?X-Signature=1", "a/001.jpg", "a/001.jpg"),
        ("001.jpg", "001.jpg", "001.jpg"),
        ("C:\\photos\\001.jpg", "photos/001.jpg", "001.jpg"),
        ("../../photos/001.jpg", "photos/001.jpg", "photos/001.jpg"),
    ],
)
def test_where_the_image_lies(tmp_path, address, name, file):
    """As written without a folder of images, and as found in one."""
    path = written(tmp_path, studio_task(1, [studio_point("nose", 50, 40)], address))
    reading = read_label_studio(path)
    assert reading.pictures[0].file_name == name
    write_image(tmp_path / "images" / file)
    assert find_pictures(reading, tmp_path / "images").pictures[0].file_name == file


def test_the_image_is_under_any_key(tmp_path):
    task = studio_task(1, [studio_point("nose", 50, 40)])
    task["data"] = dict(note="prone", picture="crib/001.png")
    assert read_label_studio(written(tmp_path, task)).pictures[0].file_name == "crib/001.png"
    task["data"] = dict(note="prone")
    with pytest.raises(SagecacheError, match="task 1: names no image; its data have note"):
        read_label_studio(written(tmp_path, task))


def test_names_that_are_not_ours(tmp_path):
    path = written(tmp_path, studio_task(1, [studio_point("Nase", 50, 40), studio_point("neck", 1, 2)]))
    with pytest.raises(SagecacheError, match="unknown joints: 'Nase', 'neck'.*--map 'Nase=nose'"):
        read_label_studio(path)
    coco, _ = converted(path, renamed={"Nase": "nose", "neck": "none"})
    assert points_of(coco["annotations"][0]) == {"nose": [50, 40, 2]}


def changed(**changes) -> list[dict]:
    return [studio_task(1, [studio_point("nose", 50, 40) | changes])]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "not a list of tasks.*Export it as 'JSON'"),
        ([dict(image="a.jpg", kp=[])], "not a list of tasks"),  # JSON-MIN
        ([3], "not a list of tasks"),
        (changed(original_width=10**30), "lacks original_width"),
        (changed(value=dict(x=1, y=2, keypointlabels=[""])), "unknown joints: ''"),
        (changed(original_width=None), "task 1: a region lacks original_width"),
        (changed(value=dict(x=3, keypointlabels=["nose"])), "task 1: a region lacks x, y in percent"),
        (changed(value=dict(x="3", y=2, keypointlabels=["nose"])), "lacks x, y"),
        (changed(value=dict(x=float("nan"), y=2, keypointlabels=["nose"])), "lacks x, y"),
        (
            [studio_task(1, [dict(studio_box(1, 2, 3, 4), value=dict(keypointlabels=[]))])],
            "lacks x, y, width",
        ),
        ([studio_task(1, [], annotations=[])], "nothing is left of it.*without a finished annotation"),
        ([studio_task(1, [], annotations={"a": 3})], "nothing is left"),
        ([studio_task(1, [], annotations=[3, None, dict(result=[3, {}, dict(value=3)])])], "nothing is left"),
        (
            [studio_task(1, [], annotations=[dict(result=[dict(value=dict(keypointlabels="x"))])])],
            "nothing is",
        ),
    ],
)
def test_other_exports_and_broken_ones_are_one_error(tmp_path, content, told):
    path = write_json(tmp_path / "a.json", content)
    with pytest.raises(SagecacheError, match=told) as error:
        converted(path)
    assert error.value.file == path
