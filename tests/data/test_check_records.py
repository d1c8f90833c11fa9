import numpy as np
import pytest

from sagecache.data.check_records import check_annotations, check_detections, check_images, check_not_empty
from sagecache.data.findings import FindingList, count_by_code
from sagecache.skeleton import COCO17

SIZE = {1: (100, 80), 2: (100, 80)}


def person(number, image_id=1, **changes):
    points = np.column_stack([np.linspace(22, 58, 17), np.linspace(12, 68, 17), np.full(17, 2)])
    record = dict(
        id=number,
        image_id=image_id,
        category_id=1,
        bbox=[20, 10, 40, 60],
        area=1200.0,
        iscrowd=0,
        keypoints=points.ravel().tolist(),
        num_keypoints=17,
    )
    return {**record, **changes}


def coco_of(*annotations, images=None, categories=None):
    return {
        "images": images or [{"id": 1}, {"id": 2}],
        "annotations": list(annotations),
        "categories": categories or [{"id": 1, "name": "person", "keypoints": list(COCO17.names)}],
    }


def found(*annotations, sizes=SIZE, skeleton=COCO17, **rest):
    log = FindingList("s")
    check_annotations(coco_of(*annotations, **rest), sizes, log, skeleton)
    return {(f.level, f.code): f for f in log.found}


def problems(*annotations, **rest):
    return sorted(key for key in found(*annotations, **rest) if key[0] != "note")


def test_sound_annotations_give_notes_only():
    assert problems(person(1), person(2, image_id=2), person(3, iscrowd=1)) == []
    assert problems(person(1), person(2, keypoints=[], num_keypoints=0)) == []
    notes = found(person(1), person(3, iscrowd=1), person(4, keypoints=[0] * 51, num_keypoints=0))
    assert notes["note", "contents"].message == "2 images, 3 persons, 1 with keypoints"
    assert notes["note", "crowd"].message.endswith(": 3")
    assert notes["note", "no_keypoints"].message.endswith(": 4")
    assert "0.5 over 1 labeled" in notes["note", "area_rule"].message


@pytest.mark.parametrize(
    ("change", "labeled", "codes"),
    [
        ({}, True, []),
        (dict(iscrowd=1), True, ["no_labels"]),  # left out of training
        (dict(keypoints=[0] * 51, num_keypoints=0), True, ["no_labels"]),
        (dict(keypoints=[0] * 51, num_keypoints=0), False, []),
    ],
)
def test_a_split_that_is_read_for_its_keypoints_has_some(change, labeled, codes):
    log = FindingList("s")
    check_not_empty(coco_of(person(1, **change)), log, labeled)
    assert [f.code for f in log.found] == codes


def moved(dx, dy):
    keypoints = np.array(person(1)["keypoints"]).reshape(-1, 3) + [dx, dy, 0]
    return keypoints.ravel().tolist()


@pytest.mark.parametrize(
    ("change", "level", "code"),
    [
        (dict(id=0), "warning", "annotation_id_0"),
        (dict(image_id=9), "error", "unknown_image"),
        (dict(bbox=[20, 10, 0, 60]), "error", "empty_box"),
        (dict(bbox=[20, 10, 40, -60]), "error", "empty_box"),
        (dict(bbox=[20, 10, 40, 80]), "warning", "box_over_edge"),
        (dict(bbox=[-3, 10, 60, 60]), "warning", "box_over_edge"),
        (dict(keypoints=moved(0, 20)), "warning", "keypoint_outside"),
        (dict(keypoints=moved(-30, 0), bbox=[0, 10, 40, 60]), "warning", "keypoint_outside"),
        (dict(keypoints=moved(40, 0), bbox=[0, 0, 20, 80], area=900), "error", "box_not_of_person"),
        (dict(keypoints=[1, 1, 3] + moved(0, 0)[3:]), "error", "visibility"),
        (dict(num_keypoints=16), "warning", "num_keypoints"),
        (dict(keypoints=moved(0, 0)[:36], num_keypoints=12), "error", "keypoint_count"),
        (dict(area=15.6 * 2400), "warning", "area_rule"),
        (dict(area=0.05 * 2400), "warning", "area_rule"),
        (dict(area=2400), "warning", "area_rule"),
        (dict(area=100 * 80 + 1, bbox=[0, 0, 100, 80]), "warning", "area_rule"),
    ],
)
def test_one_fault_is_one_finding(change, level, code):
    assert problems({**person(1), **change}) == [(level, code)]


def test_a_box_outside_its_image():
    shifted = person(1, bbox=[120, 10, 40, 60], keypoints=[0] * 51, num_keypoints=0)
    assert problems(shifted) == [("error", "box_outside")]
    assert problems(shifted, sizes={}) == []  # nothing can be said without a size


@pytest.mark.parametrize("bbox", [[-0.5, -0.5, 100, 80], [0, 0, 101, 81], [0, 0, 100, 80]])
def test_half_a_pixel_is_no_fault(bbox):
    assert problems(person(1, bbox=bbox, area=4000)) == []


def test_repeated_and_missing_ids():
    assert problems(person(1), person(1)) == [("error", "duplicate_annotation_id")]
    bare = [{k: v for k, v in person(1).items() if k != "id"} for _ in range(2)]
    assert problems(*bare) == [("warning", "no_annotation_id")]


def test_the_area_is_optional():
    bare = {k: v for k, v in person(1).items() if k != "area"}
    assert "no_area" in {code for _, code in found(bare)}
    assert problems(bare) == []


def test_other_names_than_the_skeleton_s():
    renamed = [{"id": 1, "name": "person", "keypoints": ["a"] * 17}]
    assert problems(person(1), categories=renamed) == [("error", "keypoint_names")]
    assert problems(person(1), categories=renamed, skeleton=None) == []


def test_other_categories_are_not_looked_at():
    dog = person(2, category_id=5, bbox=[0, 0, 500, 500], keypoints=None, num_keypoints=0)
    categories = [{"id": 1, "name": "person"}, {"id": 5, "name": "dog"}]
    assert problems(person(1), dog, categories=categories) == []


def image_problems(*images):
    log = FindingList("s")
    check_images({"images": list(images)}, log)
    return [(f.level, f.code, f.record) for f in log.found]


def test_names_and_ids_of_images():
    assert image_problems({"id": 785, "file_name": "a/000000000785.jpg"}) == []
    assert image_problems({"id": 785, "file_name": "000000000786.jpg"}) == [
        ("warning", "name_not_id", "image 785")
    ]
    assert image_problems({"id": 1, "file_name": "baby.png"}) == [("note", "file_name_rule", None)]
    assert image_problems({"id": 1}) == [("note", "no_file_name", None)]
    twice = image_problems({"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "a.jpg"})
    assert twice[:2] == [
        ("error", "duplicate_image_id", "image 1"),
        ("error", "duplicate_file_name", "a.jpg"),
    ]


def detection(**changes):
    return {"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "score": 0.5, **changes}


def detection_problems(*detections, **options):
    log = FindingList("s")
    check_detections(list(detections), coco_of(), SIZE, log, **options)
    return sorted((f.level, f.code) for f in log.found)


def test_detections():
    second = detection(image_id=2)
    assert detection_problems(detection(bbox=[-4, -3, 108, 50]), second) == []  # detectors overshoot
    assert detection_problems(detection(image_id=7), detection(), second) == [("error", "unknown_image")]
    assert detection_problems(detection(score=2), second) == [("warning", "score_range")]
    assert detection_problems(detection(bbox=[0, 0, 0, 5]), second) == [("error", "empty_box")]
    assert detection_problems(detection(bbox=[200, 0, 9, 5]), second) == [("error", "box_outside")]
    assert detection_problems(detection()) == [("warning", "no_person_found")]
    assert ("error", "no_person_category") in detection_problems(detection(category_id=3))


def test_detections_of_other_units_or_corners_are_found_among_those_that_are_used():
    second, corners = detection(image_id=2), detection(bbox=[50, 20, 90, 60])  # as x, y, w, h: to 140
    assert detection_problems(corners, second) == [("warning", "box_over_edge")]
    assert detection_problems(corners, second, min_score=0.6) == []
    assert detection_problems(corners | dict(category_id=3), detection(), second) == []
    thin = detection(bbox=[50, 20, 1.5, 60])
    assert detection_problems(thin, second) == [("warning", "tiny_box")]
    shares = [detection(bbox=[0.1, 0.2, 0.5, 1.0]), detection(image_id=2, bbox=[0, 0, 1, 1])]
    assert detection_problems(*shares) == [("error", "normalised_boxes")]
    assert detection_problems(shares[0], second) == [("warning", "tiny_box")]


def test_annotations_of_a_category_that_the_file_does_not_list():
    log, told = FindingList("s"), "2 annotations have category_id 3, the file knows 1 (person)"
    check_not_empty(coco_of(person(1, category_id=3), person(2, category_id=3)), log, labeled=True)
    assert [(f.code, f.message) for f in log.found] == [("no_labels", f"{told}: no person is left")]
    some = found(person(1), person(2, category_id=3), person(3, category_id=3))
    assert some["warning", "unknown_category"].message == f"{told}: they are left out"


def test_counts_add_up():
    log = FindingList("s")
    check_annotations(coco_of(*[person(i, bbox=[0, 0, 0, 0]) for i in range(1, 8)]), SIZE, log)
    assert count_by_code(log.found)["error"]["empty_box"] == 7
