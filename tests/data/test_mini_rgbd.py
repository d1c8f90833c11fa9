"""MINI-RGBD: folders, frames and lines of text become COCO persons with 13 joints."""

import numpy as np
import pytest
from formats import SIZE, mini_rgbd_text, perfect_ap, smil_points, write_image, write_mini_rgbd
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.convert import OUTSIDE, to_coco
from sagecache.data.leaks import ImageList, find_leaks
from sagecache.data.mini_rgbd import NO_IMAGE, NO_JOINTS, choose_sequences, parse_joints, read_mini_rgbd
from sagecache.errors import SagecacheError
from sagecache.skeleton.convert import COCO17_FROM_SMIL25

POINTS = smil_points()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 1))
def test_lines_come_back_in_any_order_and_with_either_base(seed, base):
    rng = np.random.default_rng(seed)
    points = np.round(rng.uniform(-50, 700, (25, 2)), 6)
    lines = mini_rgbd_text(points, base).splitlines()
    rng.shuffle(lines)
    parsed, found = parse_joints("\n".join(lines) + "\n\n")
    assert found == base
    np.testing.assert_allclose(parsed, points, atol=1e-6)


def test_ids_may_be_written_as_numpy_writes_them():
    text = "".join(f"{x:.18e} {y:.18e} 1e+03 {k + 1:.18e}\n" for k, (x, y) in enumerate(POINTS))
    parsed, base = parse_joints(text)
    assert base == 1 and np.allclose(parsed, POINTS)


GOOD = mini_rgbd_text(POINTS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace(" 900.0 3\n", " 3\n"), "line 4: '35.000000 25.500000 3' is not 'x y depth id'"),
        (GOOD.replace("35.000000", "x"), "line 4: 'x 25.5.* is not"),
        (GOOD.replace("35.000000", "nan"), "line 4: 'nan"),
        (GOOD.replace(" 900.0 3\n", " 900.0 3.5\n"), "line 4: .* is not"),
        (GOOD.replace(" 900.0 3\n", " 900.0 2\n"), "line 4: joint 2 comes twice"),
        (GOOD[: GOOD.index("140.0")], "holds 24 joints, ids 0 to 23; expected 25"),
        (GOOD.replace(" 24\n", " 25\n"), "ids 0 to 25"),
        ("", "holds 0 joints; expected 25"),
        ("a,b,c,d\n", "line 1: 'a,b,c,d' is not"),
    ],
)
def test_a_malformed_file_is_one_error_with_its_place(tmp_path, text, told):
    root = write_mini_rgbd(tmp_path, POINTS, frames=1)
    broken = root / "02" / "joints_2Ddep" / "syn_joints_2Ddep_00000.txt"
    broken.write_text(text)
    with pytest.raises(SagecacheError, match=told) as error:
        read_mini_rgbd(root)
    assert error.value.file == broken and error.value.fix


@pytest.mark.parametrize("base", [0, 1])
def test_a_folder_of_sequences(tmp_path, base):
    reading = read_mini_rgbd(write_mini_rgbd(tmp_path, POINTS, base=base))
    coco, report = to_coco(reading)
    assert report.images == report.persons == 4 and f"joint ids start at {base}" in report.notes
    assert [image["file_name"] for image in coco["images"]][:2] == [
        "01/rgb/syn_00000.png",
        "01/rgb/syn_00001.png",
    ]
    assert [(i["sequence"], i["frame"]) for i in coco["images"]][1:3] == [
        ("mini-rgbd 01", 1),
        ("mini-rgbd 02", 0),
    ]
    keypoints = np.array(coco["annotations"][0]["keypoints"]).reshape(17, 3)
    expected = COCO17_FROM_SMIL25(np.c_[POINTS, np.full(25, 2)])
    np.testing.assert_allclose(keypoints, expected)
    assert coco["annotations"][0]["num_keypoints"] == 13
    assert report.joints["left_ear"] == 0 and report.joints["nose"] == 4
    assert perfect_ap(coco) == 1


def test_the_box_is_of_all_25_joints(tmp_path):
    """Toes and fingers count, though COCO has none: (20, 15) to (140, 99), and .1 of 120 on each side."""
    coco, _ = to_coco(read_mini_rgbd(write_mini_rgbd(tmp_path, POINTS, frames=1)))
    x, y, w, h = coco["annotations"][0]["bbox"]
    assert (x, y, x + w, y + h) == (8, 3, 152, 111)
    assert coco["annotations"][0]["area"] == pytest.approx(0.53 * w * h)


def test_joints_outside_the_picture_are_hidden(tmp_path):
    points = POINTS.copy()
    points[24] = -3, 40  # the nose
    points[22] = 400, 40  # fingers: no joint of COCO's, and no part of the box
    coco, report = to_coco(read_mini_rgbd(write_mini_rgbd(tmp_path, points, frames=1)))
    assert report.dropped[OUTSIDE] == 2 and report.joints["nose"] == 0
    assert coco["annotations"][0]["bbox"][0] + coco["annotations"][0]["bbox"][2] <= SIZE[0]


def test_frames_without_a_partner_are_counted(tmp_path):
    root = write_mini_rgbd(tmp_path, POINTS, frames=3)
    (root / "01" / "rgb" / "syn_00001.png").unlink()
    write_image(root / "02" / "rgb" / "syn_00009.png")
    _, report = to_coco(read_mini_rgbd(root))
    assert report.images == 5 and report.dropped == {NO_IMAGE: 1, NO_JOINTS: 1}


def test_two_pictures_of_one_frame_are_not_told_apart(tmp_path):
    root = write_mini_rgbd(tmp_path, POINTS, frames=1)
    write_image(root / "02" / "rgb" / "copy_00000.png")
    with pytest.raises(SagecacheError, match="copy_00000.png and syn_00000.png are of one frame number"):
        read_mini_rgbd(root)


def test_one_sequence_alone_is_of_the_same_recording(tmp_path):
    """So that the leak guard sees it, whatever folder it is read from."""
    root = write_mini_rgbd(tmp_path, POINTS)
    whole, _ = to_coco(read_mini_rgbd(root))
    alone, _ = to_coco(read_mini_rgbd(root / "02"))
    assert alone["images"][0]["file_name"] == "rgb/syn_00000.png"
    (leak,) = find_leaks(
        {"labeled": ImageList(tmp_path / "copy", whole["images"])},
        {"val": ImageList(tmp_path / "other", alone["images"])},
    )
    assert leak.kind == "recording" and "mini-rgbd 02" in leak.first


def test_chosen_sequences_leak_nothing(tmp_path):
    root = write_mini_rgbd(tmp_path, POINTS, ("01", "02", "03"))
    train, _ = to_coco(read_mini_rgbd(root, ["1-2"]))
    val, _ = to_coco(read_mini_rgbd(root, ["03"]))
    assert {i["sequence"] for i in train["images"]} == {"mini-rgbd 01", "mini-rgbd 02"}
    assert find_leaks({"t": ImageList(root, train["images"])}, {"v": ImageList(root, val["images"])}) == []


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["01"], ["01"]),
        (["1", "10"], ["01", "10"]),
        (["02-3"], ["02", "03"]),
        (["crib-2", "3"], ["03", "crib-2"]),
    ],
)
def test_sequences_are_chosen_by_name_and_range(wanted, chosen):
    names = ["01", "02", "03", "10", "crib-2"]
    assert choose_sequences(names, wanted) == chosen


@pytest.mark.parametrize("word", ["4", "02-04", "3-2", "crib", "", "-1"])
def test_sequences_that_are_not_there(word):
    with pytest.raises(SagecacheError, match=f"no sequences '{word}'.*Known: 01, 02, 03"):
        choose_sequences(["01", "02", "03"], [word])


def test_another_layout_is_told(tmp_path):
    write_image(tmp_path / "images" / "1.png")
    with pytest.raises(SagecacheError, match="no folder has 'joints_2Ddep'.*01, 02"):
        read_mini_rgbd(tmp_path)
