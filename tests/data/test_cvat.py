"""CVAT's exports: skeletons, grouped points, boxes, what is hidden; and XML that means harm."""

import numpy as np
import pytest
from formats import SIZE, cvat_points, cvat_xml, perfect_ap, skeleton_xml, write_image, write_json
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.convert import to_coco
from sagecache.data.cvat import LONE_BOX, parse_xml, read_cvat
from sagecache.data.leaks import ImageList, find_leaks
from sagecache.data.picture_files import find_pictures
from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import COCO17


def written(tmp_path, *images: str, meta: str = ""):
    path = tmp_path / "annotations.xml"
    path.write_text(cvat_xml(images, meta), encoding="utf-8")
    return path


def converted(path, **options):
    return to_coco(read_cvat(path, **options))


def points_of(annotation: dict) -> dict[str, list]:
    values = np.array(annotation["keypoints"], dtype=float).reshape(17, 3).tolist()
    return {name: value for name, value in zip(COCO17.names, values, strict=True) if value[2]}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(17)))
def test_skeletons_come_back(tmp_path_factory, seed, order):
    """Joints in any order, their names as people write them, v from outside and occluded."""
    points = np.round(np.random.default_rng(seed).uniform(5, 115, (17, 2)), 2)
    v = np.random.default_rng(seed).integers(0, 3, 17)
    v[3] = 2
    elements = []
    for k in order:
        label = COCO17.names[k].replace("_", "-").title()
        elements.append(cvat_points(label, *points[k], outside=int(v[k] == 0), occluded=int(v[k] == 1)))
    coco, _ = converted(written(tmp_path_factory.mktemp("cvat"), skeleton_xml(elements)))
    expected = np.c_[points, v] * (v > 0)[:, None]
    np.testing.assert_array_equal(np.reshape(coco["annotations"][0]["keypoints"], (17, 3)), expected)


NOSE, EYE = cvat_points("nose", 50, 40), cvat_points("left_eye", 60, 35)


def test_two_skeletons_are_two_persons(tmp_path):
    other = skeleton_xml([cvat_points("nose", 110, 80, occluded=1)])
    coco, report = converted(written(tmp_path, skeleton_xml([NOSE, EYE]) + other, ""))
    assert [points_of(one) for one in coco["annotations"]] == [
        {"nose": [50, 40, 2], "left_eye": [60, 35, 2]},
        {"nose": [110, 80, 1]},
    ]
    assert [(i["id"], i["file_name"]) for i in coco["images"]] == [(0, "0.jpg"), (1, "1.jpg")]
    assert report.images == 2 and report.persons == 2 and perfect_ap(coco) == 1


def test_loose_points_are_parted_by_their_group(tmp_path):
    labels = (("nose", 20, 1), ("nose", 90, 2), ("LEye", 95, 2))
    image = "".join(cvat_points(label, x, 40, group=group) for label, x, group in labels)
    coco, _ = converted(written(tmp_path, image, NOSE + EYE))
    assert [points_of(one) for one in coco["annotations"]] == [
        {"nose": [20, 40, 2]},
        {"nose": [90, 40, 2], "left_eye": [95, 40, 2]},
        {"nose": [50, 40, 2], "left_eye": [60, 35, 2]},
    ]


def box(group: int = 0, left: float = 10.0) -> str:
    grouped = f' group_id="{group}"' if group else ""
    return f'<box label="person" xtl="{left}" ytl="5.00" xbr="130.50" ybr="100.00"{grouped}></box>'


def test_boxes_are_of_their_group_or_alone(tmp_path):
    image = skeleton_xml([NOSE], 3) + skeleton_xml([EYE], 4) + box(4) + box(5)
    coco, report = converted(written(tmp_path, image, skeleton_xml([NOSE]) + box(left=20), box()))
    boxes = [one["bbox"] for one in coco["annotations"]]
    assert boxes == [[48, 38, 4, 4], [10, 5, 120.5, 95], [20, 5, 110.5, 95]]
    assert report.dropped == {LONE_BOX: 2}


def test_a_group_of_two_persons_has_one_box(tmp_path):
    coco, report = converted(written(tmp_path, skeleton_xml([NOSE], 3) + skeleton_xml([EYE], 3) + box(3)))
    assert [one["bbox"][2] for one in coco["annotations"]] == [120.5, 4] and not report.dropped


@pytest.mark.parametrize(
    "meta",
    [
        "<task><name>x</name><source>crib 7.mp4</source></task>",
        "<job><source>crib 7.mp4</source></job>",
        "<task><name>x</name></task><source>C:\\videos\\crib 7.mp4</source>",
    ],
)
def test_frames_of_a_video_are_of_one_recording(tmp_path, meta):
    meta = f"<meta>{meta}<dumped>2024</dumped></meta>"
    video = written(tmp_path, skeleton_xml([NOSE]), skeleton_xml([EYE]), meta=meta)
    coco, _ = converted(video)
    assert [(i["sequence"], i["frame"]) for i in coco["images"]] == [("crib 7", 0), ("crib 7", 1)]
    frames = [dict(id=i, file_name=f"crib 7_{i:06d}.jpg", sequence="crib 7") for i in range(3)]
    val = ImageList(tmp_path, coco["images"])
    (leak,) = find_leaks({"unlabeled": ImageList(tmp_path, frames)}, {"val": val})
    assert leak.kind == "recording"


def test_tasks_of_a_project_have_videos_of_their_own(tmp_path):
    tasks = "".join(
        f"<task><id>{i}</id>{source}</task>" for i, source in ((4, "<source>a.mp4</source>"), (5, ""))
    )
    path = written(tmp_path, skeleton_xml([NOSE]), skeleton_xml([EYE]), skeleton_xml([EYE]))
    text = path.read_text().replace(
        "</version>", f"</version><meta><project><tasks>{tasks}</tasks></project></meta>"
    )
    for i, task in enumerate((4, 4, 5)):
        text = text.replace(f'<image id="{i}"', f'<image task_id="{task}" id="{i}"')
    path.write_text(text)
    coco, _ = converted(path)
    assert [image.get("sequence") for image in coco["images"]] == ["a", "a", None]


def test_frames_without_a_suffix_are_found(tmp_path):
    path = tmp_path / "annotations.xml"
    path.write_text(cvat_xml([skeleton_xml([NOSE])]).replace('"0.jpg"', '"train/frame_000000"'))
    write_image(tmp_path / "images" / "frame_000000.PNG")
    coco, _ = to_coco(find_pictures(read_cvat(path), tmp_path / "images"))
    assert coco["images"][0]["file_name"] == "frame_000000.PNG"


def test_the_other_export(tmp_path):
    person = dict(id=1, image_id=1, category_id=1, bbox=[5, 6, 70, 80])
    content = dict(
        images=[dict(id=1, file_name="a.png", width=SIZE[0], height=SIZE[1])],
        annotations=[dict(person, keypoints=[60, 35, 1, 50, 40, 2])],
        categories=[dict(id=1, name="person", keypoints=["L-Eye", "Nose"], skeleton=[])],
    )
    path = write_json(tmp_path / "person_keypoints_default.json", content)
    coco, report = converted(path)
    assert points_of(coco["annotations"][0]) == {"nose": [50, 40, 2], "left_eye": [60, 35, 1]}
    assert coco["annotations"][0]["bbox"] == [5, 6, 70, 80] and report.format == "CVAT"
    assert read_cvat(path).turned  # labels are made on what a browser shows


def test_names_that_are_not_ours(tmp_path):
    path = written(
        tmp_path, skeleton_xml([NOSE, cvat_points("Hals & Kopf", 1, 2), cvat_points("neck", 3, 4)])
    )
    with pytest.raises(SagecacheError, match="annotations.xml: unknown joints: 'Hals & Kopf', 'neck'.*--map"):
        read_cvat(path)
    coco, _ = converted(path, renamed={"Hals & Kopf": "left_ear", "neck": "none"})
    assert points_of(coco["annotations"][0]) == {"nose": [50, 40, 2], "left_ear": [1, 2, 2]}


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotations [<!ENTITY a "boom">{}]>
<annotations>&i;</annotations>""".format(
    "".join(f'<!ENTITY {name} "{f"&{chr(ord(name) - 1)};" * 10}">' for name in "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "declares a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotations/>', "declares a DOCTYPE"),
        ("<annotations><image", "not XML, or was cut: .* at line 1"),
        ("", "not XML, or was cut"),
        ("<annotations>&nbsp;</annotations>", "not XML"),
        ('<?xml version="1.0" encoding="utf-88"?><annotations/>', "no XML: unknown encoding"),
        ("<dataset/>", "<dataset>, no <annotations>.*CVAT for images"),
        ('<annotations><track id="0"/></annotations>', "is 'CVAT for video'.*CVAT for images"),
        ("<annotations/>", "no skeletons and no points"),
        (cvat_xml([NOSE]).replace(' name="0.jpg"', ""), "an <image> has no name"),
        (cvat_xml([NOSE]).replace('width="160"', ""), "image '0.jpg': lacks its id, width or height"),
        (cvat_xml([NOSE]).replace("50.00,40.00", "50.00"), "'nose' has 0 points"),
        (cvat_xml([NOSE]).replace("50.00,40.00", "1,2;3,4"), "'nose' has 2 points"),
        (cvat_xml([NOSE]).replace("50.00,40.00", "1,x"), "image '0.jpg': '1,x' is no position"),
        (cvat_xml([NOSE]).replace("50.00,40.00", "1,nan"), "is no position"),
        (cvat_xml([NOSE + NOSE]), "has 'nose' twice.*as skeletons"),
        (cvat_xml([NOSE + box()]).replace('xtl="10.0"', ""), "image '0.jpg': .* is no position"),
        (cvat_xml([NOSE + box()]).replace('xtl="10.0"', 'xtl="1,2"'), "image '0.jpg': '1,2, .* no corners"),
        (cvat_xml([NOSE + box()]).replace('xtl="10.0"', 'xtl="1e5"'), "'1e5, .* are no corners of a box"),
        (cvat_xml([NOSE]).replace("<points", "<points x=\xff"), "not XML"),
    ],
)
def test_broken_and_hostile_files_are_one_error(tmp_path, text, told):
    path = tmp_path / "annotations.xml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SagecacheError, match=told) as error:
        read_cvat(path)
    assert error.value.file == path


def test_nothing_is_read_of_a_doctype(tmp_path):
    """An entity of a file of this machine is not opened."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    path = tmp_path / "a.xml"
    path.write_text(f'<!DOCTYPE a [<!ENTITY x SYSTEM "{secret.as_uri()}">]><annotations>&x;</annotations>')
    with pytest.raises(SagecacheError, match="DOCTYPE") as error:
        parse_xml(path)
    assert "secret" not in str(error.value).replace(str(path), "")


def test_a_zip_is_to_be_unpacked(tmp_path):
    path = tmp_path / "task.zip"
    path.write_bytes(b"PK")
    with pytest.raises(SagecacheError, match="neither .xml nor .json.*unpack the zip"):
        read_cvat(path)
