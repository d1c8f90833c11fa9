"""Whatever lies in a folder of images, and whatever a disk does: the run says so, and nothing is lost."""

import errno
import importlib.util
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from toy_store import tree
from toy_teacher import ToyTeacher, geo_job

from sagecache.precompute.runner import run_geo
from sagecache.store import StoreReader
from sagecache.store.spec import OK, UNREADABLE
from sagecache.structures import Instance

PIXELS = np.random.default_rng(3).integers(90, 256, (50, 40, 3), dtype=np.uint8)


def png_that_says_it_is_huge() -> bytes:
    """A sound header of 100,000 x 100,000 pixels, and hardly any data."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def hostile_images(folder: Path) -> dict[str, int]:
    """File name -> the status that its instance must get."""
    picture, exif = Image.fromarray(PIXELS), Image.Exif()
    exif[0x0112] = 6  # turned, says the camera
    folder.mkdir()
    picture.save(folder / "with spaces and 100 %.png")
    picture.save(folder / "säugling-幼児-👶.png")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.save(folder / "turned.jpg", exif=exif)
    assert cv2.imwrite(str(folder / "sixteen.png"), PIXELS.astype(np.uint16) * 257)
    good = {path.name: OK for path in folder.iterdir()}
    (folder / "huge.png").write_bytes(png_that_says_it_is_huge())
    (folder / "cut.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:300])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    (folder / "folder.png").mkdir()
    bad = dict.fromkeys(
        ["huge.png", "cut.jpg", "empty.png", "text.png", "folder.png", "missing.png"], UNREADABLE
    )
    return good | bad


def instances_of(folder: Path, names) -> list[Instance]:
    return [Instance(k, 0, folder / name, (4.0, 5.0, 30.0, 40.0)) for k, name in enumerate(names, 1)]


def test_every_kind_of_image_gets_targets_or_a_reason(tmp_path):
    wanted = hostile_images(tmp_path / "images")
    instances = instances_of(tmp_path / "images", wanted)
    report = run_geo(geo_job(tmp_path / "geo", instances), ToyTeacher())
    assert StoreReader(tmp_path / "geo").status.tolist() == list(wanted.values())
    reasons = {item.path.name: item.reason for item in report.failed}
    assert reasons.keys() == {name for name, status in wanted.items() if status != OK}
    assert all(reason.startswith("the image could not be read: ") for reason in reasons.values())
    assert StoreReader(tmp_path / "geo").verify() == []


@pytest.mark.parametrize("call", [1, 4, 9, 14, 25])
def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(instances, tmp_path, monkeypatch, call):
    job, real, count = geo_job(tmp_path / "geo", instances), os.fsync, 0
    run_geo(geo_job(tmp_path / "whole", instances), ToyTeacher())

    def full(descriptor):
        nonlocal count
        count += 1
        if count >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run_geo(job, ToyTeacher())
    assert not (tmp_path / "geo" / "complete.json").exists()
    assert not (tmp_path / "geo" / ".lock").exists()
    run_geo(job, ToyTeacher())
    assert tree(tmp_path / "geo") == tree(tmp_path / "whole")


@pytest.mark.timeout(280)
def test_a_short_torture_ends_with_the_undisturbed_stores():
    """The command of ``make torture``, with few kills; Ray where it is installed."""
    script = Path(__file__).parents[1] / "torture.py"
    paths = os.pathsep.join([str(script.parent), str(script.parents[1])])
    with_ray = "1" if _installed("ray") else "0"
    done = subprocess.run(
        [sys.executable, script, "--kills", "12", "--ray-kills", with_ray, "--seed", "5"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills, stores, same = map(int, _COUNTS.search(done.stdout).groups())
    assert kills >= 12 and stores == same > 0  # a store in hand may be killed once more than was asked for


_COUNTS = re.compile(
    r"local: (\d+) kills left one of (\d+) stores unfinished, .*?(\d+) of \2 stores are", re.S
)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
