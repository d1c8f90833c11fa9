import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sagecache.data.coco import (
    image_path,
    instances_from_annotations,
    instances_from_detections,
    labeled_keypoints,
    load_coco,
    load_detections,
    read_image,
)
from sagecache.errors import SagecacheError

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the shared photographs are not beside the checkout"
)


@pytest.fixture(scope="module")
def picture():
    """Smooth and not symmetric, so that JPEG and a wrong turn can be told apart."""
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, 255 - x * 2 - y], axis=-1).astype(np.uint8)


# ---- pixels


@pytest.mark.parametrize("kind", ["RGB.png", "RGB.jpg", "RGBA.png", "RGB.webp", "RGB.bmp", "CMYK.jpg"])
def test_colour_files_give_rgb(picture, tmp_path, kind):
    mode, suffix = kind.split(".")
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).convert(mode).save(path, quality=97)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == picture.shape
    assert np.abs(image.astype(int) - picture).mean() < 2


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_grey_and_palette_files_are_what_pil_converts_them_to(picture, tmp_path, mode):
    Image.fromarray(picture).convert(mode).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("suffix", "bound"), [("png", 0), ("tif", 1)])  # libtiff rounds colour
def test_sixteen_bits_keep_the_high_byte(picture, tmp_path, suffix, bound):
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), (picture[..., ::-1].astype(np.uint16) << 8) + 77)
    colour = read_image(tmp_path / f"a.{suffix}").astype(int)
    assert np.abs(colour - picture).max() <= bound
    cv2.imwrite(str(tmp_path / f"g.{suffix}"), picture[..., 0].astype(np.uint16) << 8)
    grey = read_image(tmp_path / f"g.{suffix}")
    np.testing.assert_array_equal(grey, np.repeat(picture[..., :1], 3, axis=-1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_ignored(picture, tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, exif=exif, quality=97)
    image = read_image(path)
    assert image.shape == picture.shape
    assert np.abs(image.astype(int) - picture).mean() < 2


def test_names_with_other_letters(picture, tmp_path):
    path = tmp_path / "婴儿 1.png"
    Image.fromarray(picture).save(path)
    np.testing.assert_array_equal(read_image(str(path)), picture)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_empty_and_truncated_files_are_refused(picture, tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(SagecacheError, match="holds no image") as error:
        read_image(path)
    assert str(path) in str(error.value)


def test_missing_files_folders_and_text_are_refused(tmp_path):
    with pytest.raises(SagecacheError, match="missing"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(SagecacheError, match="can't be read"):
        read_image(tmp_path)
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(SagecacheError, match="holds no image"):
        read_image(tmp_path / "a.jpg")


# ---- paths


def test_paths_follow_file_name_or_the_number():
    assert image_path("root", {"id": 785}) == Path("root/000000000785.jpg")
    assert image_path("root", {"id": 785, "file_name": ""}) == Path("root/000000000785.jpg")
    assert image_path("root", {"id": 1, "file_name": "a/b..c.png"}) == Path("root/a/b..c.png")


@pytest.mark.parametrize("name", ["../a.jpg", "a/../../b.jpg", "/etc/passwd", "..\\a.jpg", "a/.."])
def test_paths_never_leave_the_root(name):
    with pytest.raises(SagecacheError, match="leaves the image folder"):
        image_path("root", {"id": 1, "file_name": name})


# ---- files


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def minimal():
    return {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 5, "image_id": 1, "bbox": [0, 0, 9, 9], "keypoints": [1, 2, 2], "area": 3}],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].pop("id"), r"images\[0\]: lacks 'id'"),
        (lambda c: c["images"][0].update(id="1"), r"images\[0\]: 'id' must be an integer, not a string '1'"),
        (lambda c: c["images"][0].update(id=2**70), r"images\[0\].*must be an integer of 64 bits"),
        (lambda c: c["images"][0].update(id=True), "must be an integer, not a boolean"),
        (lambda c: c["images"][0].update(file_name=3), r"images\[0\] \(id 1\): 'file_name' must be a string"),
        (lambda c: c["images"].append(7), r"images\[1\]: must be a dict, not a int"),
        (lambda c: c.update(images={}), "'images' must be a list, not a dict"),
        (lambda c: c["annotations"][0].pop("bbox"), r"annotations\[0\] \(id 5\): lacks 'bbox'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "'bbox' must have 4 numbers, it has 3"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]), "must be a list of finite numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "finite numbers"),
        (lambda c: c["annotations"][0].pop("image_id"), "lacks 'image_id'"),
        (lambda c: c["annotations"][0].update(keypoints=[1, 2]), "must be triplets"),
        (lambda c: c["annotations"][0].update(area="big"), "'area' must be a finite number"),
    ],
)
def test_a_bad_record_is_named(tmp_path, change, message):
    content = minimal()
    change(content)
    path = write(tmp_path / "a.json", content)
    with pytest.raises(SagecacheError, match=message) as error:
        load_coco(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"images": [{"id": 1}, {"i', "is truncated"),
        ('{"images": [{"id": 1}', "is truncated"),
        ('{"images": [}, 1]}', "is not JSON: .* at line 1, column 13"),
        ("[]", "a list, as detection files are"),
        ('{"annotations": []}', "no 'images'"),
    ],
)
def test_what_is_not_coco_is_refused(tmp_path, text, message):
    with pytest.raises(SagecacheError, match=message):
        load_coco(write(tmp_path / "a.json", text))


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(SagecacheError, match="missing"):
        load_coco(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(SagecacheError, match="not UTF-8"):
        load_coco(tmp_path / "a.json")


def test_a_missing_detection_file_is_called_one_with_a_fix(tmp_path):
    with pytest.raises(
        SagecacheError, match="boxes.json: detection file is missing. .*'boxes'.*precompute det"
    ):
        load_detections(tmp_path / "boxes.json")


def test_images_alone_are_a_split_and_a_byte_order_mark_is_no_error(tmp_path):
    coco = load_coco(write(tmp_path / "a.json", "\ufeff" + '{"images": [{"id": 3}]}'))
    assert (coco["annotations"], coco["categories"]) == ([], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "must be a list of detections, not a dict"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}], r"detections\[0\]: lacks 'score'"),
        ([{"image_id": 1.0, "category_id": 1, "bbox": [0] * 4, "score": 1}], "must be an integer"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0] * 5, "score": 1}], "must have 4 numbers"),
    ],
)
def test_bad_detections_are_named(tmp_path, content, message):
    with pytest.raises(SagecacheError, match=message):
        load_detections(write(tmp_path / "d.json", content))


# ---- instances


def person(image_id, number, **changes):
    record = {"id": number, "image_id": image_id, "category_id": 1, "bbox": [number, 0, 10, 10]}
    return {**record, "keypoints": [1, 1, 2] * 2, "iscrowd": 0, **changes}


def coco_of(*annotations, ids=(2, 1)):
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "dog"}]
    return {"images": [{"id": i} for i in ids], "annotations": list(annotations), "categories": categories}


def test_annotations_keep_their_number_whatever_is_left_out():
    coco = coco_of(
        person(2, 10),
        person(1, 11, iscrowd=1),
        person(1, 12, keypoints=[0, 0, 0] * 2),
        person(1, 13),
        person(2, 14, bbox=[0, 0, -5, 5]),
        person(2, 15, category_id=3),
        person(2, 16),
    )
    instances = instances_from_annotations(coco, "root")
    assert [i.key for i in instances] == [(1, 2), (2, 0), (2, 3)]
    assert [i.annotation_id for i in instances] == [13, 10, 16]
    both = instances_from_annotations(coco, "root", keep_unlabeled=True)
    assert [i.key for i in both] == [(1, 1), (1, 2), (2, 0), (2, 3)]


def test_fields_of_an_instance():
    coco = coco_of(person(1, 7, area=42, keypoints=[1, 2, 2, 3.5, 4, 0]))
    (one,) = instances_from_annotations(coco, "root")
    assert one.bbox == (7.0, 0.0, 10.0, 10.0) and one.area == 42.0 and one.score == 1.0
    assert one.keypoints.tolist() == [[1, 2, 2], [3.5, 4, 0]]
    assert one.path == Path("root/000000000001.jpg")
    bare = coco_of(person(1, 7))
    del bare["annotations"][0]["keypoints"], bare["annotations"][0]["id"]
    (one,) = instances_from_annotations(bare, "root", keep_unlabeled=True)
    (empty,) = instances_from_annotations(coco_of(person(1, 7, keypoints=[])), "root", keep_unlabeled=True)
    assert empty.keypoints is None
    assert one.keypoints is None and one.annotation_id is None and one.area is None


def test_labeled_keypoints_are_counted():
    assert labeled_keypoints({"keypoints": [5, 5, 0, 5, 5, 1, 5, 5, 2]}) == 2
    assert labeled_keypoints({}) == labeled_keypoints({"keypoints": None}) == 0


def test_unknown_and_repeated_images_are_refused():
    with pytest.raises(SagecacheError, match=r"x\.json, annotations\[0\]: image_id 9 is not among"):
        instances_from_annotations(coco_of(person(9, 1)), "root", file="x.json")
    with pytest.raises(SagecacheError, match="image id 1 is used twice"):
        instances_from_annotations(coco_of(ids=(1, 1)), "root")


def detection(image_id, score, category_id=1, bbox=(0, 0, 5, 5)):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


def test_detections_are_filtered_and_keep_their_number():
    found = [
        detection(2, 0.3),
        detection(1, 0.9, category_id=3),
        detection(1, 0.5),
        detection(2, 0.8),
        detection(2, 0.8, bbox=(0, 0, 0, 5)),
        detection(2, 0.6),
        detection(2, 0.8, bbox=(1, 0, 5, 5)),
    ]
    keys = [i.key for i in instances_from_detections(found, coco_of(), "root")]
    assert keys == [(1, 1), (2, 0), (2, 1), (2, 3), (2, 4)]
    keys = [i.key for i in instances_from_detections(found, coco_of(), "root", score_threshold=0.6)]
    assert keys == [(2, 1), (2, 3), (2, 4)]
    keys = [i.key for i in instances_from_detections(found, coco_of(), "root", max_per_image=2)]
    assert keys == [(1, 1), (2, 1), (2, 4)]
    with pytest.raises(SagecacheError, match=r"detections\[0\]: image_id 8"):
        instances_from_detections([detection(8, 1.0)], coco_of(), "root")


@needs_real
def test_the_real_files():
    coco = load_coco(REAL / "annotations" / "person_keypoints.json")
    persons = instances_from_annotations(coco, REAL / "images")
    assert len(persons) == 12
    assert not {1202706, 508900} & {p.annotation_id for p in persons}
    everybody = instances_from_annotations(coco, REAL / "images", keep_unlabeled=True)
    assert len(everybody) == 14
    sizes = {record["id"]: (record["height"], record["width"], 3) for record in coco["images"]}
    assert {p.image_id: read_image(p.path).shape for p in persons} == sizes
    detections = load_detections(REAL / "detections.json")
    assert len(instances_from_detections(detections, coco, REAL / "images")) == 118
    assert len(instances_from_detections(detections, coco, REAL / "images", score_threshold=0.5)) == 18
