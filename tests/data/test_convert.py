"""What all formats share: ids, boxes, areas, joints outside, the counts, and a file that others can read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formats import SIZE, perfect_ap
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.coco import instances_from_annotations, load_coco
from sagecache.data.convert import (
    AREA_RULES,
    OUTSIDE,
    Person,
    Picture,
    Reading,
    area_by,
    box_around,
    hide_outside,
    require_free,
    to_coco,
    write_coco,
)
from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import COCO17

FILE = Path("labels.xyz")


def joints(seed: int = 0, v: int = 2) -> np.ndarray:
    points = np.random.default_rng(seed).uniform(10, 100, (17, 2))
    return np.c_[points, np.full(17, v)]


def reading(*persons: Person, **changes) -> Reading:
    return replace(Reading("test", FILE, (Picture("a.jpg", SIZE, persons),)), **changes)


def keypoints_of(annotation: dict) -> np.ndarray:
    return np.array(annotation["keypoints"], dtype=float).reshape(-1, 3)


def drawn_person(seed: int, box: tuple | None, number: int | None) -> Person:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-60, 220, (17, 2))
    return Person(np.c_[points, rng.integers(0, 3, 17)].astype(float), box, None, 0, number)


def is_kept(person: Person) -> bool:
    """Who has a box with area, or a joint inside the picture."""
    return (person.bbox is not None and min(person.bbox[2:]) > 0) or hide_outside(person.keypoints, SIZE)[
        0
    ].any()


coordinates = st.floats(-300, 300, width=32)
persons = st.builds(
    drawn_person,
    st.integers(0, 2**32),
    st.none() | st.tuples(coordinates, coordinates, st.floats(0, 200), st.floats(0, 200)),
    st.none() | st.integers(-2, 5),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(persons, max_size=3), min_size=1, max_size=3), st.sampled_from(["bbox53", "bbox"]))
def test_whatever_goes_in_the_result_is_sound(lists, rule):
    pictures = tuple(Picture(f"{i}.jpg", SIZE, tuple(some)) for i, some in enumerate(lists))
    if not any(is_kept(person) for some in lists for person in some):
        with pytest.raises(
            SagecacheError, match="labels.xyz: nothing is left of it: . pictures? and no person"
        ):
            to_coco(Reading("test", FILE, pictures), area=rule)
        return
    coco, report = to_coco(Reading("test", FILE, pictures), area=rule)
    ids = [one["id"] for one in coco["annotations"]]
    assert len(set(ids)) == len(ids) and all(number >= 1 for number in ids)
    assert len({image["id"] for image in coco["images"]}) == len(lists) == report.images
    assert report.persons == len(ids)
    given_persons = [one for some in lists for one in some]
    if len(ids) == len(given_persons):
        for person, one in zip(given_persons, coco["annotations"], strict=True):
            kept = keypoints_of(one)
            seen = kept[:, 2] > 0
            np.testing.assert_array_equal(kept[seen], person.keypoints[seen])
    for one in coco["annotations"]:
        kept, (_, _, w, h) = keypoints_of(one), one["bbox"]
        seen = kept[:, 2] > 0
        assert one["num_keypoints"] == seen.sum() and not kept[~seen].any()
        assert w > 0 and h > 0 and one["area"] == pytest.approx((0.53 if rule == "bbox53" else 1) * w * h)
        assert ((kept[:, :2] >= -0.5) & (kept[:, :2] <= SIZE)).all()
    assert sum(report.joints.values()) == sum(one["num_keypoints"] for one in coco["annotations"])


def test_the_result_is_what_everyone_reads(tmp_path):
    """Also pycocotools', which misses a match with annotation id 0."""
    picture = Picture("a.jpg", SIZE, (Person(joints(1), id=0), Person(joints(2, v=1), id=4)), id=0)
    coco, report = to_coco(Reading("test", FILE, (picture,)))
    assert [one["id"] for one in coco["annotations"]] == [1, 5] and coco["images"][0]["id"] == 0
    assert any("started at 0" in line for line in report.notes)
    write_coco(tmp_path / "new" / "out.json", coco)
    loaded = load_coco(tmp_path / "new" / "out.json")
    first, second = instances_from_annotations(loaded, tmp_path)
    np.testing.assert_allclose(first.keypoints, joints(1))
    np.testing.assert_allclose(second.keypoints, joints(2, v=1))
    assert loaded["categories"][0]["keypoints"] == list(COCO17.names)
    assert min(map(min, loaded["categories"][0]["skeleton"])) == 1
    assert perfect_ap(loaded) == 1
    spoilt = dict(coco, annotations=[dict(one, id=one["id"] - 1) for one in coco["annotations"]])
    assert perfect_ap(spoilt) < 1  # the trap is there


@pytest.mark.parametrize(
    ("own", "written"),
    [
        ([3, 1], [3, 1]),
        ([0, 7], [1, 8]),
        ([2, 2], [1, 2]),
        ([None, 7], [1, 2]),
        ([-1, 4], [1, 2]),
    ],
)
def test_ids_of_annotations(own, written):
    people = [Person(joints(i), id=number) for i, number in enumerate(own)]
    coco, _ = to_coco(reading(*people))
    assert [one["id"] for one in coco["annotations"]] == written


def test_ids_of_images():
    def ids(*own):
        someone = (Person(joints()),)
        pictures = tuple(Picture(f"{i}.jpg", SIZE, someone, number) for i, number in enumerate(own))
        coco, report = to_coco(Reading("test", FILE, pictures))
        return [image["id"] for image in coco["images"]], report.notes[:-1]  # the last: the rule of areas

    assert ids(7, 0) == ([7, 0], ())
    assert ids(None, None) == ([1, 2], ())
    numbers, notes = ids(4, 4)
    assert numbers == [1, 2] and "not unique" in notes[0]


def test_joints_outside_are_hidden_and_counted():
    points = joints()
    points[0, :2] = -0.5, 120  # on the edges by one convention or the other
    points[1, :2] = -0.6, 50
    points[2, :2] = 50, 120.1
    points[3] = -45, -45, 0  # not labeled: nobody's loss
    points[4, 0] = np.nan
    kept, hidden = hide_outside(points, SIZE)
    assert hidden == 3 and kept[0, 2] == 2 and not kept[1:5].any()
    np.testing.assert_array_equal(kept[5:], points[5:])
    _, report = to_coco(reading(Person(points)))
    assert report.dropped == {OUTSIDE: 3} and report.joints["left_eye"] == 0 and report.joints["nose"] == 1


def test_a_box_of_joints():
    assert box_around(np.array([[50.0, 40], [90, 60]]), SIZE) == (46, 36, 48, 28)  # .1 of 40 on each side
    assert box_around(np.array([[50.0, 40]]), SIZE) == (48, 38, 4, 4)  # at least 2 px
    assert box_around(np.array([[-0.5, -0.5], [159.5, 119]]), SIZE) == (0, 0, 160, 120)


def test_a_person_of_whom_nothing_is_seen_is_left_out_unless_it_has_a_box():
    away = joints() - [500, 0, 0]
    coco, report = to_coco(reading(Person(away), Person(away, (1, 2, 30, 40)), Person(joints() * [1, 1, 0])))
    assert [one["bbox"] for one in coco["annotations"]] == [[1, 2, 30, 40]]
    assert report.dropped["persons without a box and without a joint inside the picture"] == 2
    assert coco["annotations"][0]["num_keypoints"] == 0


def test_a_box_without_area_is_made_anew():
    coco, _ = to_coco(reading(Person(joints(), (5, 5, 0, 3))))
    assert coco["annotations"][0]["bbox"][2] > 50


def test_area_rules():
    bbox = (3, 4, 10, 20)
    assert area_by("bbox53", bbox, 7) == pytest.approx(106) and area_by("bbox", bbox, 7) == 200
    assert area_by("annotation", bbox, 7) == 7
    assert area_by("annotation", bbox, None) == area_by("annotation", bbox, 0) == pytest.approx(106)
    for rule, words in AREA_RULES.items():
        _, report = to_coco(reading(Person(joints())), area=rule)
        assert f"area: {words}" in report.notes


def test_other_fields_and_licences_are_kept_and_the_report_is_json():
    picture = Picture(
        "a.jpg", SIZE, (Person(joints(), iscrowd=1),), fields=dict(sequence="crib 7", license=4)
    )
    coco, report = to_coco(Reading("test", FILE, (picture,), {"odd": 2, "none": 0}, licences=(dict(id=4),)))
    assert coco["images"][0]["sequence"] == "crib 7" and coco["licenses"] == [dict(id=4)]
    assert coco["annotations"][0]["iscrowd"] == 1
    assert json.loads(json.dumps(report.as_dict()))["dropped"] == {"odd": 2}


def test_what_can_not_be_converted():
    with pytest.raises(SagecacheError, match="labels.xyz: nothing is left of it. Left out: 3 records: odd"):
        to_coco(Reading("test", FILE, (), {"odd": 3}))
    with pytest.raises(SagecacheError, match="It holds no pictures"):
        to_coco(Reading("test", FILE, ()))
    with pytest.raises(
        SagecacheError, match="nothing is left of it: 1 picture and no person. It labels nobody"
    ):
        to_coco(reading())
    with pytest.raises(
        SagecacheError, match="1 picture and no person. Left out: 1 record: persons without a b"
    ):
        to_coco(reading(Person(joints(v=0))))
    with pytest.raises(SagecacheError, match="how large 'a.jpg' is.*--images"):
        to_coco(Reading("test", FILE, (Picture("a.jpg", None),)))
    with pytest.raises(SagecacheError, match="2 of its pictures are the file 'a.jpg'"):
        to_coco(Reading("test", FILE, (Picture("a.jpg", SIZE), Picture("a.jpg", SIZE))))


def test_nothing_is_overwritten_unasked(tmp_path):
    source, there = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text("{}")
    require_free(there, source, force=False)
    there.write_text("{}")
    with pytest.raises(SagecacheError, match="already there.*--force"):
        require_free(there, source, force=False)
    require_free(there, source, force=True)
    with pytest.raises(SagecacheError, match="is what would be read"):
        require_free(source, source, force=True)
    with pytest.raises(SagecacheError, match="not finite.*NaN"):
        write_coco(there, {"a": float("nan")})
    assert there.read_text() == "{}" and len(list(tmp_path.iterdir())) == 2
