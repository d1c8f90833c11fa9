import errno
import os
import shutil

import pytest

from sagecache.store.files import remaining_files, remove_folder, remove_leftovers, unused_name, write_whole


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "x.bin"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["x.bin"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "x.bin"
    write_whole(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_leftovers_are_found_at_any_depth_and_nothing_else_is_touched(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".mine").write_bytes(b"kept")
    with monkeypatch.context() as patch:  # die between writing and renaming: the unlink never comes
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            write_whole(tmp_path / "a" / "b" / "x.bin", b"data")
    assert remaining_files(tmp_path / "a" / "b") == []
    assert remove_leftovers(tmp_path) == 1
    assert [p.name for p in (tmp_path / "a").iterdir() if p.is_file()] == [".mine"]


def test_a_folder_goes_whole_and_what_its_links_point_to_stays(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    write_whole(outside / "x.bin", b"kept")
    write_whole(tmp_path / "geo" / "a" / "x.bin", b"gone")
    (tmp_path / "geo" / "link").symlink_to(outside)
    with monkeypatch.context() as patch:  # killed after the first step: it no longer has its name
        patch.setattr(shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "geo")
    assert not (tmp_path / "geo").exists() and remaining_files(tmp_path) == [outside]
    (left,) = tmp_path.glob(".geo.*")
    remove_folder(left)
    assert list(tmp_path.iterdir()) == [outside] and (outside / "x.bin").read_bytes() == b"kept"


def test_unused_names_count_up(tmp_path):
    assert unused_name(tmp_path / "x").name == "x"
    (tmp_path / "x").touch()
    (tmp_path / "x-2").touch()
    assert unused_name(tmp_path / "x").name == "x-3"
