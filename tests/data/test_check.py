import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagecache.data.check import Finding, SplitSource, check_splits, count_by_code
from sagecache.skeleton import COCO17

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"


def save_image(path, seed, size=(40, 30), **options):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def make_split(folder, ids, names="{:012d}.jpg", seed=0, sizes=True):
    """Images of random content with one sound person each."""
    records, persons = [], []
    for i in ids:
        name = names.format(i)
        save_image(folder / "images" / name, (seed, i))
        size = dict(width=40, height=30) if sizes else {}
        records.append({"id": i, "file_name": name, **size})
        keypoints = [20, 15, 2] * 17
        person = dict(id=i, image_id=i, category_id=1, bbox=[10, 5, 20, 20], area=200, iscrowd=0)
        persons.append({**person, "keypoints": keypoints, "num_keypoints": 17})
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO17.names)}]
    write(folder, {"images": records, "annotations": persons, "categories": categories})
    return SplitSource(folder / "images", folder / "annotations.json")


def write(folder, coco):
    (folder / "annotations.json").write_text(json.dumps(coco))


def edit(folder, change):
    coco = json.loads((folder / "annotations.json").read_text())
    change(coco)
    write(folder, coco)


def problems(sources, **options):
    return [(f.level, f.code, f.split) for f in check_splits(sources, **options) if f.level != "note"]


def test_sound_splits_pass(tmp_path):
    sources = {
        "labeled": make_split(tmp_path / "a", range(1, 6), seed=1),
        "val": make_split(tmp_path / "b", range(1, 6), seed=2),
    }
    seen = []
    report = dict(skeleton=COCO17, progress=lambda done, total: seen.append((done, total)))
    assert problems(sources, decode=True, **report) == []
    assert seen == [(i, 10) for i in range(1, 11)]


def test_files_that_are_missing_or_broken(tmp_path):
    source = make_split(tmp_path, range(1, 5))
    image = [tmp_path / "images" / f"{i:012d}.jpg" for i in range(5)]
    image[1].unlink()
    image[2].write_text("<html>")
    image[3].write_bytes(b"")
    image[4].write_bytes(image[4].read_bytes()[:-200])
    found = check_splits({"val": source})
    errors = [(f.code, f.record) for f in found if f.level == "error"]
    assert errors == [
        ("missing_file", "image 1 (000000000001.jpg)"),
        ("unreadable_file", "image 2 (000000000002.jpg)"),
        ("unreadable_file", "image 3 (000000000003.jpg)"),
    ]
    decoded = check_splits({"val": source}, decode=True)
    assert count_by_code(decoded)["error"] == {"missing_file": 1, "unreadable_file": 3}


@pytest.mark.parametrize(
    ("orientation", "stated", "expected"),
    [
        (1, (40, 30), []),
        (3, (40, 30), [("warning", "exif_orientation")]),
        (6, (40, 30), [("warning", "exif_orientation")]),
        (6, (30, 40), [("error", "exif_turned_labels")]),
        (1, (30, 40), [("error", "image_size")]),
        (1, (80, 60), [("error", "image_size")]),
    ],
)
def test_sizes_and_exif_orientation(tmp_path, orientation, stated, expected):
    source = make_split(tmp_path, [1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_image(tmp_path / "images" / "000000000001.jpg", 1, exif=exif)
    edit(tmp_path, lambda coco: coco["images"][0].update(width=stated[0], height=stated[1]))
    assert [p[:2] for p in problems({"val": source})] == expected


def test_boxes_are_held_against_the_file_where_the_record_has_no_size(tmp_path):
    source = make_split(tmp_path, [1], sizes=False)
    edit(tmp_path, lambda coco: coco["annotations"][0].update(bbox=[10, 5, 40, 20]))
    assert problems({"val": source}) == [("warning", "box_over_edge", "val")]


def test_bad_annotation_files_are_findings(tmp_path):
    source = make_split(tmp_path / "a", [1])
    (tmp_path / "a" / "annotations.json").write_text('{"images": [{"id": 1')
    none = SplitSource(tmp_path, tmp_path / "none.json")
    found = check_splits({"labeled": source, "val": none})
    assert [(f.level, f.code, f.split) for f in found] == [
        ("error", "annotations", "labeled"),
        ("error", "annotations", "val"),
    ]
    assert "truncated" in found[0].message


def test_paths_out_of_the_folder_are_findings(tmp_path):
    source = make_split(tmp_path, [1, 2])
    edit(tmp_path, lambda coco: coco["images"][0].update(file_name="../secret.jpg"))
    assert problems({"val": source}) == [("error", "path", "val")]


def test_detections_are_checked_and_may_be_to_come(tmp_path):
    source = make_split(tmp_path, [1, 2])
    boxes = [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    with_boxes = SplitSource(source.images, source.annotations, tmp_path / "boxes.json")
    assert problems({"unlabeled": with_boxes}) == [
        ("error", "unknown_image", "unlabeled"),
        ("warning", "no_person_found", "unlabeled"),
    ]
    (tmp_path / "boxes.json").write_text("{}")
    assert problems({"unlabeled": with_boxes}) == [("error", "detections", "unlabeled")]
    edit(tmp_path, lambda coco: coco.update(annotations=[]))
    found = check_splits({"unlabeled": source})
    assert "sagecache precompute detect" in next(f.fix for f in found if f.code == "no_boxes")


def test_the_same_picture_in_two_splits_is_a_leak(tmp_path):
    sources = {
        name: make_split(tmp_path / name, range(1, 4), seed=i)
        for i, name in enumerate(("labeled", "unlabeled", "test"))
    }
    shutil.copy(sources["labeled"].images / "000000000002.jpg", sources["test"].images / "000000000003.jpg")
    shutil.copy(
        sources["labeled"].images / "000000000001.jpg", sources["unlabeled"].images / "000000000001.jpg"
    )
    leaks = [f for f in check_splits(sources) if f.code == "leak_content"]
    assert [(f.level, f.split) for f in leaks] == [("note", "labeled, unlabeled"), ("error", "labeled, test")]
    assert leaks[1].message == "1 image is in both; ids in 'labeled': 2"


@pytest.mark.parametrize(
    ("names", "trained", "level"),
    [
        (("unlabeled", "unlabeled_truth"), True, None),
        (("labeled", "val"), True, "warning"),
        (("test", "unlabeled"), True, "warning"),
        (("test", "again"), False, "note"),  # nothing learns from 'again'
        (("val", "test"), True, "note"),
    ],
)
def test_two_readings_of_one_file_leak_where_one_measures_the_other(tmp_path, names, trained, level):
    source = make_split(tmp_path, range(101, 105), names="crib{:04d}.jpg")
    edit(tmp_path, lambda coco: [i.update(video_id=1) for i in coco["images"]])
    sources = {name: replace(source, trained=trained) for name in names}
    found = [(f.level, f.code) for f in check_splits(sources) if f.split == ", ".join(names)]
    assert found == ([] if level is None else [(level, "leak_annotations")])


def test_an_empty_split_is_an_error(tmp_path):
    source = make_split(tmp_path, range(1, 3))
    labels = replace(source, labeled=True)
    edit(tmp_path, lambda coco: [a.update(keypoints=[0] * 51, num_keypoints=0) for a in coco["annotations"]])
    assert problems({"infants": labels}) == [("error", "no_labels", "infants")]
    assert problems({"val": source}) == [("error", "no_labels", "val")]
    assert problems({"unlabeled": source}) == []
    edit(tmp_path, lambda coco: coco.update(images=[], annotations=[]))
    for name, one in {"infants": labels, "val": source, "unlabeled": source}.items():
        assert problems({name: one}) == [("error", "no_images", name)]


def test_the_same_picture_twice_in_a_split(tmp_path):
    source = make_split(tmp_path, range(1, 4))
    shutil.copy(source.images / "000000000001.jpg", source.images / "000000000003.jpg")
    (twins,) = [f for f in check_splits({"labeled": source}) if f.code == "same_content"]
    assert twins == Finding("warning", "same_content", "labeled", "images with the same content: 1=3")


def test_frames_of_one_recording_in_two_splits(tmp_path):
    a = make_split(tmp_path / "a", range(101, 105), names="crib_{:04d}.jpg", seed=1)
    b = make_split(tmp_path / "b", range(105, 109), names="crib_{:04d}.jpg", seed=2)
    edit(tmp_path / "a", lambda coco: [i.update(id=i["id"] - 100) for i in coco["images"]])
    edit(tmp_path / "a", lambda coco: [p.update(image_id=p["image_id"] - 100) for p in coco["annotations"]])
    edit(tmp_path / "b", lambda coco: [i.update(id=i["id"] + 900) for i in coco["images"]])
    edit(tmp_path / "b", lambda coco: [p.update(image_id=p["image_id"] + 900) for p in coco["annotations"]])
    assert problems({"labeled": a, "val": b}) == []  # one prefix everywhere says nothing
    other = make_split(tmp_path / "c", range(1, 3), names="park_{:04d}.jpg", seed=3)
    leak = ("warning", "leak_sequence", "labeled, val")
    assert problems({"labeled": a, "val": b, "source": other}) == [leak]
    assert problems({"labeled": a, "unlabeled": b, "source": other}) == []  # a note: both are trained on


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared photographs are not beside the checkout")
def test_the_real_photographs_are_sound():
    source = SplitSource(
        REAL / "images", REAL / "annotations" / "person_keypoints.json", REAL / "detections.json"
    )
    found = check_splits({"labeled": source}, decode=True, skeleton=COCO17)
    assert not [f for f in found if f.level != "note"]
    notes = {f.code: f.message for f in found}
    assert notes["contents"] == "4 images, 14 persons, 12 with keypoints"
    assert "1202706, 508900" in notes["no_keypoints"]
    again = check_splits({"labeled": source, "val": source})
    assert not count_by_code(again)["error"] and count_by_code(again)["warning"] == {"leak_annotations": 1}
