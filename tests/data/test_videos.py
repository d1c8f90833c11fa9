"""Videos of counted frames: which are taken, that they are upright, and what a cut file says."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.coco import load_coco, read_image
from sagecache.data.leaks import ImageList, find_leaks
from sagecache.data.videos import FrameChoice, video_files, write_frames
from sagecache.errors import SagecacheError

FRAMES, RATE, SIZE = 20, 10, (64, 48)
STEP = 12  # of grey from frame to frame


def write_video(path: Path, codec: str = "MJPG", frames: int = FRAMES) -> Path:
    """Frame i is grey 10 + STEP * i; its upper left corner is white."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), RATE, SIZE)
    assert writer.isOpened()
    for i in range(frames):
        frame = np.full((SIZE[1], SIZE[0], 3), 10 + STEP * i, np.uint8)
        frame[:12, :12] = 255
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "crib 7.avi")


def numbers(coco: dict) -> list[int]:
    return [image["frame"] for image in coco["images"]]


def test_frames_are_written_with_their_video_and_number(video, tmp_path):
    coco, report = write_frames([video], tmp_path / "out", FrameChoice(every=6))
    assert coco == load_coco(tmp_path / "out" / "annotations.json")
    assert coco["images"][1] == dict(
        id=2, file_name="crib 7_000006.jpg", width=64, height=48, sequence="crib 7", frame=6
    )
    assert report.as_dict()["images"] == 4 and "crib 7.avi: 4 of 20 frames read" in report.notes
    for image in coco["images"]:
        pixels = read_image(tmp_path / "out" / "images" / image["file_name"])
        assert abs(float(pixels[30, 40].mean()) - (10 + STEP * image["frame"])) < 4  # the very frame
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        (FrameChoice(), list(range(20))),
        (FrameChoice(every=7), [0, 7, 14]),
        (FrameChoice(every=7, limit=2), [0, 7]),
        (FrameChoice(fps=2), [0, 5, 10, 15]),
        (FrameChoice(fps=4), [0, 3, 5, 8, 10, 13, 15, 18]),
        (FrameChoice(fps=99, limit=3), [0, 1, 2]),
    ],
)
def test_which_frames_are_taken(video, tmp_path, choice, taken):
    assert numbers(write_frames([video], tmp_path / "out", choice)[0]) == taken


@settings(max_examples=60, deadline=None)
@given(fps=st.floats(0.1, 120), rate=st.floats(1, 120), total=st.integers(1, 400))
def test_a_rate_is_kept(fps, rate, total):
    """Over the whole, and never more than so many a second."""
    choice = FrameChoice(fps=fps)
    taken = [n for n in range(total) if choice.takes(n, rate)]
    expected = total if fps >= rate else total * fps / rate
    assert taken[0] == 0 and abs(len(taken) - expected) <= 1


def test_a_folder_of_videos(video, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_video(folder / "b.avi", frames=3)
    write_video(folder / "a.AVI", frames=2)
    (folder / "notes.txt").write_text("no video")
    coco, _ = write_frames(video_files(folder), tmp_path / "out", FrameChoice())
    assert [(i["id"], i["sequence"], i["frame"]) for i in coco["images"]] == [
        (1, "a", 0),
        (2, "a", 1),
        (3, "b", 0),
        (4, "b", 1),
        (5, "b", 2),
    ]
    again, _ = write_frames([folder / "b.avi"], tmp_path / "val", FrameChoice())
    (leak,) = find_leaks(
        {"unlabeled": ImageList(tmp_path / "elsewhere", coco["images"])},
        {"val": ImageList(tmp_path / "val" / "images", again["images"])},
    )
    assert leak.kind == "recording" and "b" in leak.first
    write_video(folder / "b.mp4", "mp4v", 1)
    with pytest.raises(SagecacheError, match="two videos are named 'b'"):
        video_files(folder)
    with pytest.raises(SagecacheError, match="no videos in it"):
        video_files(tmp_path)


def test_a_cut_video_says_how_much_there_is(video, tmp_path):
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size * 4 // 5])
    with pytest.raises(
        SagecacheError, match=r"cut off: it announces 20 frames, and \d+ could be read"
    ) as told:
        write_frames([video, cut], tmp_path / "out", FrameChoice())
    assert told.value.file == cut and "--keep-cut" in told.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["cut.avi"]  # nothing is left, hidden or not
    coco, report = write_frames([cut], tmp_path / "out", FrameChoice(), keep_cut=True)
    read = int(str(told.value).split("and ")[1].split()[0])
    assert 0 < read < 20 and len(coco["images"]) == read
    assert report.dropped == {"frames of cut.avi that could not be read": 20 - read}
    coco, _ = write_frames([cut], tmp_path / "few", FrameChoice(limit=2))  # the rest is not asked for
    assert len(coco["images"]) == 2


@pytest.mark.parametrize("data", [b"", b"no video at all", b"RIFF\x00\x00\x00\x00AVI "])
def test_what_is_no_video(tmp_path, data):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(SagecacheError, match="a.mp4: (can't be opened as a video|no frame of it)"):
        write_frames([path], tmp_path / "out", FrameChoice())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1].tobytes(), "is a picture, no video"),
        (b"ffconcat version 1.0\nfile other.avi\n", "is a list of other files, no video"),
    ],
    ids=["picture", "list"],
)
def test_what_a_player_would_take_for_a_video(tmp_path, data, told):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(SagecacheError, match=told):
        write_frames([path], tmp_path / "out", FrameChoice())
    assert not (tmp_path / "out").exists()


def test_a_video_that_is_cut_before_its_index_is_no_video(tmp_path):
    whole = write_video(tmp_path / "a.mp4", "mp4v")
    whole.write_bytes(whole.read_bytes()[:-400])
    with pytest.raises(SagecacheError, match="can't be opened"):
        write_frames([whole], tmp_path / "out", FrameChoice())


def turned(path: Path) -> Path:
    """The MP4 with a tag to show it turned by a quarter, clockwise: the matrix of its track header."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4
    matrix = start + (40 if data[start] == 0 else 52)
    one = 1 << 16
    assert struct.unpack_from(">2i", data, matrix) == (one, 0)
    struct.pack_into(">9i", data, matrix, 0, one, 0, -one, 0, 0, SIZE[1] * one, 0, 1 << 30)
    path.write_bytes(data)
    return path


def test_a_phone_s_video_is_turned_once(tmp_path):
    path = turned(write_video(tmp_path / "a.mp4", "mp4v", 3))
    coco, _ = write_frames([path], tmp_path / "out", FrameChoice())
    assert (coco["images"][0]["width"], coco["images"][0]["height"]) == (SIZE[1], SIZE[0])
    pixels = read_image(tmp_path / "out" / "images" / coco["images"][0]["file_name"])
    assert pixels.shape == (SIZE[0], SIZE[1], 3)
    assert pixels[4, -5].mean() > 200 > 100 > pixels[4, 4].mean()  # the white corner is at the right now


def test_a_folder_that_is_there_is_set_aside_never_lost(video, tmp_path):
    out = tmp_path / "out"
    write_frames([video], out, FrameChoice(limit=1))
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SagecacheError, match="already there.*--force"):
        write_frames([video], out, FrameChoice(limit=2))
    for limit in (2, 3):
        coco, _ = write_frames([video], out, FrameChoice(limit=limit), force=True)
        assert len(list((out / "images").iterdir())) == limit == len(coco["images"])
    assert (tmp_path / "out.replaced-1" / "mine.txt").read_text() == "mine"
    assert len(list((tmp_path / "out.replaced-2" / "images").iterdir())) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    write_frames([video], empty, FrameChoice(limit=1))
    assert (empty / "annotations.json").is_file()
