"""data convert, as typed: each format, what is printed and refused, and that init and data check take it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from formats import (
    SIZE,
    cvat_points,
    cvat_xml,
    skeleton_xml,
    smil_points,
    studio_point,
    studio_task,
    write_image,
    write_json,
    write_mini_rgbd,
)
from typed import sagecache

from sagecache.cli.convert import parse_map
from sagecache.cli.main import cli
from sagecache.data.coco import load_coco
from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import COCO17


def convert(*words, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["data", "convert", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def coco_file(path: Path, joints: int = 17, first: int = 0, count: int = 2) -> Path:
    points = np.random.default_rng(0).uniform(10, 110, (joints, 2))
    keypoints = np.c_[points, np.full(joints, 2.0)].ravel().tolist()
    return write_json(
        path,
        dict(
            images=[
                dict(id=i, file_name=f"{i}.png", width=SIZE[0], height=SIZE[1])
                for i in range(first, first + count)
            ],
            annotations=[
                dict(id=i, image_id=i, category_id=1, bbox=[5, 5, 120, 110], area=50.0, keypoints=keypoints)
                for i in range(first, first + count)
            ],
            categories=[dict(id=1, name="person", keypoints=list(COCO17.names))],
        ),
    )


def cvat_file(path: Path, label: str = "nose") -> Path:
    images = [
        skeleton_xml([cvat_points(label, 40 + i, 50), cvat_points("L-Wrist", 90, 80)]) for i in range(3)
    ]
    path.write_text(cvat_xml(images), encoding="utf-8")
    return path


def images_of(folder: Path, count: int = 3, suffix: str = ".png") -> Path:
    for i in range(count):
        write_image(folder / f"{i}{suffix}", shade=60 + 20 * i)
    return folder


def test_mini_rgbd_is_taken_by_init_and_data_check(tmp_path):
    """From the data set's folder to a project that the checks pass, split by sequences."""
    root = write_mini_rgbd(tmp_path / "MINI-RGBD_web", smil_points(), ("01", "02", "03"), base=1)
    for name, sequences in (("train", "01-02"), ("val", "3")):
        convert("mini-rgbd", root, tmp_path / f"{name}.json", "--sequences", sequences)
    project = tmp_path / "mine"
    labels = ["--labeled", tmp_path / "train.json", "--val", tmp_path / "val.json"]
    sagecache(tmp_path, "init", project, "--images", root, *labels)
    answer = json.loads(sagecache(project, "data", "check", "--json").stdout)
    assert [one for one in answer["findings"] if one["level"] != "note"] == []


def test_mini_rgbd_tells_what_it_did(tmp_path):
    root = write_mini_rgbd(tmp_path / "in", smil_points(), base=1)
    text = convert("mini-rgbd", root, tmp_path / "a.json", "--preview", tmp_path / "a.png").stdout
    assert "joint ids start at 1" in text and "13 of 17 joints" in text and "4 images, 4 persons" in text
    assert "non-commercial" in text and "bbox53" not in text and ".53 * w * h" in text
    assert cv2.imread(str(tmp_path / "a.png")).shape[1] > 4 * SIZE[0]
    answer = json.loads(convert("mini-rgbd", root, tmp_path / "b.json", "--json", "--area", "bbox").stdout)
    assert (answer["images"], answer["persons"], answer["joints"]["left_ear"]) == (4, 4, 0)
    one = load_coco(tmp_path / "b.json")["annotations"][0]
    assert one["area"] == pytest.approx(one["bbox"][2] * one["bbox"][3])


@pytest.mark.parametrize(
    ("format", "joints", "area", "ids"),
    [("wholebody", 133, 50.0, [1, 2]), ("syrip", 17, 0.53 * 120 * 110, [1, 2])],
)
def test_variants_of_coco(tmp_path, format, joints, area, ids):
    source = coco_file(tmp_path / "in.json", joints, first=1 if format == "wholebody" else 0)
    images = images_of(tmp_path / "images")
    preview = tmp_path / "new" / "sheet.png"
    answer = json.loads(
        convert(
            format, source, tmp_path / "o.json", "--images", images, "--preview", preview, "--json"
        ).stdout
    )
    coco = load_coco(tmp_path / "o.json")
    assert answer["persons"] == 2 and [one["id"] for one in coco["annotations"]] == [1, 2]
    assert coco["annotations"][0]["area"] == pytest.approx(area) and preview.is_file()
    stated = convert(format, source, tmp_path / "p.json", "--area", "annotation").stdout
    assert "as the file says" in stated
    assert load_coco(tmp_path / "p.json")["annotations"][0]["area"] == 50


@pytest.mark.parametrize(("format", "joints"), [("wholebody", 133), ("syrip", 17), ("coco", 17)])
def test_a_file_that_leaves_nobody_is_refused_and_writes_nothing(tmp_path, format, joints):
    source = coco_file(tmp_path / "in.json", joints)
    content = json.loads(source.read_text())
    for one in content["annotations"]:
        one["category_id"] = 9
    source.write_text(json.dumps(content))
    with pytest.raises(
        SagecacheError, match="in.json: nothing is left of it: 2 pictures and no person. Left o"
    ):
        convert(format, source, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_any_coco_file_gets_boxes_around_joints_and_its_names(tmp_path):
    source = coco_file(tmp_path / "in.json")
    content = json.loads(source.read_text())
    names = [name.upper().replace("_", "-") for name in COCO17.names]
    content["categories"] = [dict(id=1, name="infant", keypoints=names)]
    for one in content["annotations"]:
        del one["bbox"]
    source.write_text(json.dumps(content))
    convert("coco", source, tmp_path / "o.json")
    found = load_coco(tmp_path / "o.json")["annotations"]
    for one, before in zip(found, content["annotations"], strict=True):
        points = np.reshape(before["keypoints"], (17, 3))
        x, y, w, h = one["bbox"]
        seen = points[points[:, 2] > 0]
        assert ((seen[:, :2] >= [x, y]) & (seen[:, :2] <= [x + w, y + h])).all()
    with pytest.raises(SagecacheError, match="lacks 'bbox'"):
        load_coco(source)


def test_what_is_not_in_the_folder_is_told(tmp_path):
    source = coco_file(tmp_path / "in.json", count=3)
    images = images_of(tmp_path / "images", 2)
    done = convert("syrip", source, tmp_path / "o.json", "--images", images)
    assert "left out: 1 pictures whose image is not in the folder" in done.stdout
    assert len(load_coco(tmp_path / "o.json")["annotations"]) == 2


def test_cvat_and_its_names(tmp_path):
    source = cvat_file(tmp_path / "annotations.xml", "Nase")
    with pytest.raises(SagecacheError, match="unknown joints: 'Nase'"):
        convert("cvat", source, tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()
    convert("cvat", source, tmp_path / "o.json", "--map", "Nase=nose", "--map", "L-Wrist=none")
    coco = load_coco(tmp_path / "o.json")
    assert [one["num_keypoints"] for one in coco["annotations"]] == [1, 1, 1]
    assert coco["annotations"][2]["keypoints"][:3] == [42, 50, 2]


def test_label_studio(tmp_path):
    tasks = [studio_task(i, [studio_point("Nase", 40, 50)]) for i in range(3)]
    source = write_json(tmp_path / "in.json", tasks)
    images = images_of(tmp_path / "images", suffix=".jpg")
    words = ("label-studio", source, tmp_path / "o.json", "--images", images, "--map", "Nase=nose")
    answer = json.loads(convert(*words, "--json").stdout)
    assert answer["format"] == "Label Studio" and answer["joints"]["nose"] == 3
    assert [image["file_name"] for image in load_coco(tmp_path / "o.json")["images"]] == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
    ]


@pytest.fixture
def video(tmp_path) -> Path:
    path = tmp_path / "crib.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(8):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


def test_video_frames_are_unlabeled_images_of_a_project(tmp_path, video):
    out = tmp_path / "unlabeled"
    done = convert("video", video, out, "--every", 3, "--preview", tmp_path / "sheet.png")
    assert "3 images, 0 persons" in done.stdout and "crib.avi: 3 of 8 frames read" in done.stdout
    assert (tmp_path / "sheet.png").is_file()
    with pytest.raises(SagecacheError, match="already there"):
        convert("video", video, out)
    assert (
        json.loads(convert("video", video, out, "--fps", 5, "--limit", 2, "--force", "--json").stdout)[
            "images"
        ]
        == 2
    )
    labels = coco_file(tmp_path / "in.json")
    convert("syrip", labels, tmp_path / "train.json")
    words = ["--images", images_of(tmp_path / "images"), "--labeled", tmp_path / "train.json"]
    words += ["--unlabeled-images", out / "images", "--unlabeled-annotations", out / "annotations.json"]
    sagecache(tmp_path, "init", tmp_path / "mine", *words)
    assert json.loads(sagecache(tmp_path / "mine", "data", "check", "--json").stdout)["errors"] == 0


def test_video_takes_one_way_to_choose_frames(tmp_path, video):
    with pytest.raises(SagecacheError, match="--every and --fps exclude each other"):
        convert("video", video, tmp_path / "o", "--every", 2, "--fps", 1)
    for word in ("--every=0", "--fps=0", "--limit=0"):
        convert("video", video, tmp_path / "o", word, code=2)


def test_nothing_is_overwritten_unasked_and_nothing_written_in_vain(tmp_path):
    source = coco_file(tmp_path / "in.json")
    there = tmp_path / "o.json"
    there.write_text("mine")
    with pytest.raises(SagecacheError, match="already there.*--force"):
        convert("syrip", source, there)
    assert there.read_text() == "mine"
    preview = tmp_path / "o.png"
    preview.write_bytes(b"\x89PNG of before")
    images = images_of(tmp_path / "images")
    with pytest.raises(SagecacheError, match="o.png: is already there"):
        convert("syrip", source, tmp_path / "new.json", "--images", images, "--preview", preview)
    assert not (tmp_path / "new.json").exists()
    convert("syrip", source, there, "--images", images, "--preview", preview, "--force")
    assert load_coco(there)["annotations"] and b"of before" not in preview.read_bytes()[:40]
    labels = source.read_bytes()
    with pytest.raises(SagecacheError, match="is no earlier result"):
        convert("syrip", source, there, "--images", images, "--preview", source, "--force")
    with pytest.raises(SagecacheError, match="labels and preview can't be one file"):
        convert("syrip", source, there, "--images", images, "--preview", there, "--force")
    assert source.read_bytes() == labels
    with pytest.raises(SagecacheError, match="is what would be read"):
        convert("syrip", source, source, "--force")
    with pytest.raises(SagecacheError, match="--preview draws on the images.*--images"):
        convert("syrip", source, tmp_path / "x.json", "--preview", tmp_path / "x.png")


def test_pairs_of_names():
    assert parse_map(("a=nose", "b = c=left_eye ")) == {"a": "nose", "b = c": "left_eye"}
    for word in ("nose", "=nose", "a="):
        with pytest.raises(SagecacheError, match="is not THEIRS=OURS"):
            parse_map((word,))
