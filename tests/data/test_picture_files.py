"""Images are found by name, measured, and refused where labels are of other pixels."""

from pathlib import Path

import pytest
from formats import SIZE, write_image
from PIL import Image

from sagecache.data.convert import Picture, Reading
from sagecache.data.picture_files import MISSING, find_pictures, picture_size
from sagecache.errors import SagecacheError


def reading(*pictures: Picture, turned: bool = False) -> Reading:
    return Reading("test", Path("labels.xml"), pictures, {"odd": 1}, turned=turned)


def test_names_sizes_and_what_is_missing(tmp_path):
    write_image(tmp_path / "a" / "1.png")
    write_image(tmp_path / "frame_000002.PNG", (40, 30))
    write_image(tmp_path / "x.jpg")
    found = find_pictures(
        reading(
            Picture("a/1.png", SIZE),
            Picture("frame_000002", None),
            Picture("0123abcd-x.jpg", None, other_names=("x.jpg",)),
            Picture("gone.jpg", SIZE),
        ),
        tmp_path,
    )
    names = [(one.file_name, one.size) for one in found.pictures]
    assert names == [("a/1.png", SIZE), ("frame_000002.PNG", (40, 30)), ("x.jpg", SIZE)]
    assert found.dropped == {"odd": 1, MISSING: 1}


def test_labels_of_another_size_are_refused(tmp_path):
    write_image(tmp_path / "1.png", (80, 60))
    with pytest.raises(SagecacheError, match="1.png: is 80x60, and its labels are of a picture of 160x120"):
        find_pictures(reading(Picture("1.png", SIZE)), tmp_path)


def test_a_picture_that_exif_turns_is_refused_for_labels_of_a_browser_alone(tmp_path):
    """Orientation 3 does not even change the size."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", SIZE).save(tmp_path / "1.jpg", exif=exif)
    assert len(find_pictures(reading(Picture("1.jpg", SIZE)), tmp_path).pictures) == 1
    with pytest.raises(SagecacheError, match="orientation 3 turns it.*mogrify"):
        find_pictures(reading(Picture("1.jpg", SIZE), turned=True), tmp_path)


def test_none_there_is_an_error_and_no_picture_is_none(tmp_path):
    with pytest.raises(SagecacheError, match="none of 1 images is in it, such as 'a.jpg'.*--images"):
        find_pictures(reading(Picture("a.jpg", SIZE)), tmp_path)
    assert find_pictures(reading(), tmp_path).pictures == ()


def test_a_name_can_not_leave_the_folder(tmp_path):
    write_image(tmp_path / "secret.png")
    with pytest.raises(SagecacheError, match="leaves the image folder"):
        find_pictures(reading(Picture("../secret.png", SIZE)), tmp_path / "images")


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(SagecacheError, match="a.png: can't be opened as an image"):
        picture_size(tmp_path / "a.png")
    assert picture_size(write_image(tmp_path / "b.png", (31, 17))) == (31, 17)


def test_progress_counts_pictures(tmp_path):
    write_image(tmp_path / "1.png")
    calls = []
    find_pictures(
        reading(Picture("1.png", SIZE), Picture("2.png", SIZE)), tmp_path, lambda *call: calls.append(call)
    )
    assert calls == [(1, 2), (2, 2)]
