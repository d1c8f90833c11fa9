"""What two splits share, found by names, paths and the bytes of images of one name."""

from __future__ import annotations

import os
import time

import pytest

from sagecache.data.leaks import READ, ImageList, Leak, find_leaks


def images(folder, *names, first_id=1, **fields) -> ImageList:
    records = [dict(id=first_id + i, file_name=name, **fields) for i, name in enumerate(names)]
    return ImageList(folder, records)


def write(folder, **content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / f"{name}.jpg").write_bytes(data)


def test_different_images_of_different_names_leak_nothing(tmp_path):
    trained = {"a": images(tmp_path, "1.jpg", "2.jpg"), "b": images(tmp_path, "3.jpg")}
    assert find_leaks(trained, {"val": images(tmp_path, "4.jpg", first_id=1)}) == []


def test_one_file_in_two_splits_is_told_with_both_ids(tmp_path):
    trained = {"unlabeled": images(tmp_path, "x.jpg", "sub/y.jpg", "z.jpg")}
    (leak,) = find_leaks(trained, {"val": images(tmp_path, "sub//y.jpg", "z.jpg", first_id=70)})
    assert (leak.kind, leak.trained, leak.measures, leak.count, leak.whole) == (
        "image",
        "unlabeled",
        "val",
        2,
        True,
    )
    assert leak.first == f"image 70 ({tmp_path.resolve()}/sub/y.jpg), there image 2"


def test_a_link_to_the_folder_is_the_folder_and_no_file_name_is_the_id(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    nameless = ImageList(tmp_path / "link", [dict(id=42)])
    (leak,) = find_leaks({"u": images(tmp_path / "real", f"{42:012d}.jpg")}, {"val": nameless})
    assert leak.count == 1


def test_a_copy_under_its_name_is_found_by_its_bytes(tmp_path):
    write(tmp_path / "train", a=b"one", b=b"two")
    write(tmp_path / "val", a=b"two", b=b"two", c=b"one")
    trained = {"u": images(tmp_path / "train", "a.jpg", "b.jpg")}
    (leak,) = find_leaks(trained, {"val": images(tmp_path / "val", "a.jpg", "b.jpg", "c.jpg")})
    assert leak.count == 1 and not leak.whole
    assert leak.first.startswith("image 2 ") and "byte for byte" in leak.first
    (tmp_path / "val" / "b.jpg").write_bytes(b"owt")  # as long, and another image
    assert find_leaks(trained, {"val": images(tmp_path / "val", "a.jpg", "b.jpg", "c.jpg")}) == []


def test_two_data_sets_that_count_from_one_are_no_leak_and_few_files_are_read(tmp_path, monkeypatch):
    names = {f"{i:06d}": bytes([i]) * 9 for i in range(3 * READ)}
    write(tmp_path / "a", **names)
    write(tmp_path / "b", **{name: b"x" + data[1:] for name, data in names.items()})
    read, files = [], [f"{name}.jpg" for name in names]
    monkeypatch.setattr("filecmp.cmp", lambda a, b, shallow: read.append(a) or False)
    assert find_leaks({"u": images(tmp_path / "a", *files)}, {"val": images(tmp_path / "b", *files)}) == []
    assert len(read) == READ


def test_frames_of_one_recording_are_told_unless_the_images_are_the_same(tmp_path):
    trained = {
        "u": images(tmp_path, *(f"baby{b}/frame_{i:03d}.jpg" for b in (1, 2) for i in range(5))),
        "l": images(tmp_path, "baby9/frame_000.jpg", "baby9/frame_001.jpg", first_id=500),
    }
    val = images(tmp_path, "baby2/frame_100.jpg", "baby2/frame_101.jpg", "baby3/frame_000.jpg", first_id=900)
    assert find_leaks(trained, {"val": val}) == [Leak("recording", "u", "val", 1, "'baby2'")]
    both = images(tmp_path, "baby2/frame_003.jpg", "baby2/frame_100.jpg", "baby2/frame_101.jpg", first_id=900)
    assert [leak.kind for leak in find_leaks(trained, {"val": both})] == ["image"]


@pytest.mark.parametrize("field, other, leaks", [("video_id", 7, 1), ("video_id", 8, 0), ("sequence", 7, 1)])
def test_a_field_of_the_record_decides(tmp_path, field, other, leaks):
    trained = {"u": images(tmp_path, "p.jpg", "q.jpg", **{field: 7})}
    val = images(tmp_path, "r.jpg", "s.jpg", **{field: other})
    assert len(find_leaks(trained, {"val": val})) == leaks


def test_splits_of_one_side_may_share_and_a_split_on_both_sides_leaks(tmp_path):
    one, two = images(tmp_path, "a.jpg"), images(tmp_path, "a.jpg")
    assert find_leaks({"labeled": one, "unlabeled": two}, {"val": images(tmp_path, "b.jpg")}) == []
    assert find_leaks({"l": images(tmp_path, "b.jpg")}, {"val": one, "test": two}) == []
    assert [leak.count for leak in find_leaks({"val": one}, {"val": one})] == [1]


def test_a_hundred_thousand_records_take_less_than_two_seconds(tmp_path):
    def many(count, first):
        names = (f"baby{(first + i) // 100:05d}/frame_{i % 100:04d}.jpg" for i in range(count))
        return images(tmp_path / str(first), *names, first_id=first)

    trained, val = {"u": many(100_000, 1)}, {"val": many(5000, 500_000)}
    begun = time.process_time()
    assert find_leaks(trained, val) == []
    assert time.process_time() - begun < 2


def test_a_folder_that_is_gone_is_no_error(tmp_path):
    gone = images(tmp_path / "gone", "a.jpg")
    assert not os.path.exists(gone.root)
    assert find_leaks({"u": gone}, {"val": images(tmp_path / "too", "a.jpg")}) == []
