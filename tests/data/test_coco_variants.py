"""COCO-WholeBody, SyRIP, and COCO files with joints of other names: what is kept is kept to the digit."""

import numpy as np
import pytest
from formats import SIZE, perfect_ap, write_json
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.coco_variants import (
    OTHER_CATEGORY,
    UNKNOWN_IMAGE,
    read_named,
    read_syrip,
    read_wholebody,
)
from sagecache.data.convert import to_coco
from sagecache.data.leaks import ImageList, find_leaks
from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import COCO17

NAMES = list(COCO17.names)


def body(seed: int = 0) -> np.ndarray:
    """(17, 3) inside SIZE, with v of all kinds, and 0 where v is 0."""
    rng = np.random.default_rng(seed)
    points = np.c_[rng.uniform(5, 115, (17, 2)), rng.integers(0, 3, 17)]
    points[0, 2] = 2
    return np.where(points[:, 2:] > 0, points, 0)


def annotation(points: np.ndarray, number: int = 1, image: int = 1, **extra) -> dict:
    flat = np.asarray(points, dtype=float).ravel().tolist()
    return dict(id=number, image_id=image, category_id=1, bbox=[4.0, 4.0, 120, 110], keypoints=flat) | extra


def file_of(path, *annotations: dict, names=NAMES, images: int = 1, **extra):
    listed = [dict(id=i, file_name=f"{i}.jpg", width=SIZE[0], height=SIZE[1]) for i in range(1, images + 1)]
    category = dict(id=1, name="person", keypoints=list(names))
    return write_json(path, dict(images=listed, annotations=list(annotations), categories=[category]) | extra)


def points_of(coco: dict, i: int = 0) -> np.ndarray:
    return np.array(coco["annotations"][i]["keypoints"], dtype=float).reshape(-1, 3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_both_forms_of_wholebody_give_the_same_body(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("wb")
    rest = np.random.default_rng(seed).uniform(5, 115, (116, 3))
    parts = dict(foot_kpts=[1.0] * 18, face_kpts=[1.0] * 204, foot_valid=True, lefthand_box=[1, 2, 3, 4])
    split = file_of(folder / "a.json", annotation(body(seed), area=77, iscrowd=0, **parts))
    flat = file_of(folder / "b.json", annotation(np.r_[body(seed), rest], area=77), names=["x"] * 133)
    made = [to_coco(read_wholebody(path), area="annotation")[0] for path in (split, flat)]
    for coco in made:
        np.testing.assert_array_equal(points_of(coco), body(seed))
        (one,) = coco["annotations"]
        assert (one["bbox"], one["area"], one["iscrowd"]) == ([4, 4, 120, 110], 77, 0)
        assert set(one) == {
            *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "keypoints", "num_keypoints")
        }
    assert made[0]["annotations"] == made[1]["annotations"]


def test_wholebody_is_evaluated_as_it_was(tmp_path):
    path = file_of(tmp_path / "a.json", annotation(body(3), 5, area=900), annotation(body(4), 9, area=900))
    coco, report = to_coco(read_wholebody(path), area="annotation")
    assert perfect_ap(coco) == 1 and [one["id"] for one in coco["annotations"]] == [5, 9]
    assert any("non-commercial" in line for line in report.notes)


def test_a_reliability_counts_as_visible(tmp_path):
    points = body()
    points[:5, :2], points[:5, 2] = 50, [0.3, 1.0, 1.4, 2.0, -1]
    coco, _ = to_coco(read_wholebody(file_of(tmp_path / "a.json", annotation(points))))
    assert points_of(coco)[:5, 2].tolist() == [2, 1, 2, 2, 0]


def test_wholebody_with_another_number_of_joints(tmp_path):
    path = file_of(tmp_path / "a.json", annotation(body()), annotation(body()[:16], 2))
    with pytest.raises(SagecacheError, match=r"a.json, annotations\[1\]: has 16 keypoints.*17.*133"):
        read_wholebody(path)


def test_crowds_and_persons_without_keypoints_stay_and_others_go(tmp_path):
    path = file_of(
        tmp_path / "a.json",
        annotation(np.zeros((17, 3)), 1, iscrowd=1, segmentation=dict(counts="x", size=[1, 1])),
        dict(id=2, image_id=1, category_id=1, bbox=[1, 2, 3, 4]),
        annotation(body(), 3, category_id=7),
        annotation(body(), 4, image=8),
        categories=[dict(id=1, name="person"), dict(id=7, name="dog")],
        licenses=[dict(id=4, name="CC BY 2.0")],
    )
    coco, report = to_coco(read_wholebody(path))
    assert [(one["id"], one["iscrowd"], one["num_keypoints"]) for one in coco["annotations"]] == [
        (1, 1, 0),
        (2, 0, 0),
    ]
    assert report.dropped == {OTHER_CATEGORY: 1, UNKNOWN_IMAGE: 1}
    assert coco["licenses"] == [dict(id=4, name="CC BY 2.0")]


def file_with_images(path, images, people):
    return write_json(
        path,
        dict(images=images, annotations=people, categories=[dict(id=1, name="person", keypoints=NAMES)]),
    )


def test_syrip_counts_from_one_and_has_one_rule_of_area(tmp_path):
    images = [dict(id=i, file_name=f"test{i}.jpg", width=SIZE[0], height=SIZE[1]) for i in range(2)]
    unlabeled = body(1)
    unlabeled[10] = -45, -45, 0
    people = [annotation(body(2), 0, 0, area=99999.0), annotation(unlabeled, 1, 1, area=3.0)]
    path = file_with_images(tmp_path / "a.json", images, people)
    coco, report = to_coco(read_syrip(path))
    assert [one["id"] for one in coco["annotations"]] == [1, 2]
    assert [image["id"] for image in coco["images"]] == [0, 1]  # detections and predictions name them
    assert [one["area"] for one in coco["annotations"]] == [pytest.approx(0.53 * 120 * 110)] * 2
    assert points_of(coco, 1)[10].tolist() == [0, 0, 0] and not report.dropped
    assert perfect_ap(coco) == 1
    assert any("non-commercial" in line for line in report.notes)


def test_syrip_knows_the_videos_that_its_pictures_are_from(tmp_path):
    def converted(name, *sources):
        images = [
            dict(id=i, file_name=f"{name}{i}.jpg", width=SIZE[0], height=SIZE[1], image_source=source)
            for i, source in enumerate(sources)
        ]
        path = file_with_images(tmp_path / f"{name}.json", images, [annotation(body(), 1, 0)])
        return to_coco(read_syrip(path))

    video = "https://www.youtube.com/watch?v=abc"
    train, report = converted("train", video + "&t=88s", video, "", None)
    val, _ = converted("test", video, video + "&t=5s&list=x", "https://www.youtube.com/watch?v=def")
    assert [image.get("sequence") for image in train["images"]] == [video, video, None, None]
    assert any("1 videos gave several pictures" in line for line in report.notes)
    (leak,) = find_leaks(
        {"train": ImageList(tmp_path, train["images"])}, {"val": ImageList(tmp_path, val["images"])}
    )
    assert leak.kind == "recording"


def test_syrip_of_another_skeleton(tmp_path):
    with pytest.raises(SagecacheError, match="has 16 keypoints, SyRIP has 17"):
        read_syrip(file_of(tmp_path / "a.json", annotation(body()[:16])))


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(17)), seed=st.integers(0, 2**32))
def test_joints_are_found_by_name_in_any_order(tmp_path_factory, order, seed):
    """Left stays left, whatever the order, and an added neck is left out."""
    path = tmp_path_factory.mktemp("named") / "a.json"
    names = [NAMES[k].replace("_", " ").title() for k in order] + ["neck"]
    points = np.r_[body(seed)[list(order)], [[9, 9, 2]]]
    file_of(path, annotation(points), names=names)
    coco, _ = to_coco(read_named(path, renamed={"neck": "none"}))
    np.testing.assert_array_equal(points_of(coco), body(seed))


def test_named_joints_of_several_categories(tmp_path):
    categories = [
        dict(id=1, name="adult", keypoints=["nose", "left_eye"]),
        dict(id=2, name="infant", keypoints=["left_eye", "nose"]),
        dict(id=3, name="crib", keypoints=[]),
    ]
    points = [[10, 11, 2], [20, 21, 1]]
    people = [annotation(points, 1), annotation(points, 2, category_id=2), annotation([], 3, category_id=3)]
    path = file_of(tmp_path / "a.json", *people, categories=categories)
    coco, report = to_coco(read_named(path))
    assert points_of(coco, 0)[:2].tolist() == points
    assert points_of(coco, 1)[:2].tolist() == points[::-1]
    assert report.dropped == {OTHER_CATEGORY: 1}


def test_named_joints_that_are_not_there(tmp_path):
    path = file_of(tmp_path / "a.json", annotation(body()), names=["1", *NAMES[1:]])
    with pytest.raises(SagecacheError, match="a.json: unknown joints: '1'.*--map '1=nose'"):
        read_named(path)
    assert read_named(path, renamed={"1": "nose"}).pictures
    with pytest.raises(SagecacheError, match="no category names its keypoints"):
        read_named(file_of(tmp_path / "b.json", annotation(body()), names=[]))
    with pytest.raises(SagecacheError, match=r"annotations\[0\]: has 16 keypoints, its category names 17"):
        read_named(file_of(tmp_path / "c.json", annotation(body()[:16])))
    with pytest.raises(SagecacheError, match="category 1: 'keypoints' must be a list of names"):
        read_named(file_of(tmp_path / "d.json", annotation(body()), names=[1, 2]))


@pytest.mark.parametrize("read", [read_wholebody, read_syrip, read_named])
@pytest.mark.parametrize(
    "text", ["", "[1, 2]", '{"images": [{"id": 1}', '{"images": 3}', "\xff", "[" * 10**5]
)
def test_broken_files_are_one_error(tmp_path, read, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SagecacheError) as error:
        read(path)
    assert error.value.file == path
