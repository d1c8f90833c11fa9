"""Videos become a split without labels: frames as JPEG files, and a COCO file that says where each is from.

Every frame has its video's name as 'sequence', which the leak guard reads, and its number as 'frame'. A
phone's video says by a tag how it is to be turned: that is done once, here, and the files are upright.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sagecache.data.convert import Report, person_category_of, write_coco
from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import COCO17

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".mts")
QUALITY = 95
ANNOTATIONS, IMAGES = "annotations.json", "images"
# A container's frame count is often an estimate: so many fewer frames are no sign of a cut file.
SLACK, SLACK_SHARE = 2, 0.02


@dataclass(frozen=True)
class FrameChoice:
    """Which frames: each every-th, or at most fps a second by the video's own rate; limit: of each video."""

    every: int = 1
    fps: float | None = None
    limit: int | None = None

    def takes(self, number: int, rate: float) -> bool:
        """Whether frame number (from 0) of a video of rate frames a second is taken."""
        if self.fps is None:
            return number % self.every == 0
        share = self.fps / rate
        # the hair's breadth: at fps == rate, n * share may fall just short of n
        return share >= 1 or number == 0 or int(number * share + 1e-9) > int((number - 1) * share + 1e-9)


def video_files(source: Path) -> list[Path]:
    """The video itself, or those of a folder, by name. Raises SagecacheError where there is none, and for two
    of one name, whose frames could not be told apart.
    """
    if source.is_file():
        return [source]
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise SagecacheError("no videos in it", file=source, fix=f"Known: {', '.join(SUFFIXES)}")
    stems = [path.stem for path in found]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise SagecacheError(f"two videos are named '{twice}'", file=source, fix="Rename one of them")
    return found


def write_frames(
    videos: list[Path],
    folder: Path,
    choice: FrameChoice,
    *,
    force: bool = False,
    keep_cut: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[dict, Report]:
    """Write FOLDER/images/<video>_<frame>.jpg and FOLDER/annotations.json, all or nothing; also returned.

    force: a folder that is there is set aside under another name. keep_cut: of a video that ends before the
    frames that it announces, keep those that could be read; else it is a SagecacheError that says how many.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())) and not force:
        raise SagecacheError(
            "is already there", file=folder, fix="Give another folder, or --force to set this one aside"
        )
    images, notes, dropped = [], [], {}
    with _whole(folder) as making:
        (making / IMAGES).mkdir()
        for video in videos:
            if progress is not None:
                progress(len(images), 0, video.name)
            records, read, stated = _extract(video, making / IMAGES, choice, len(images) + 1)
            images += records
            if stated is not None:
                if not keep_cut:
                    raise _cut(video, read, stated)
                dropped[f"frames of {video.name} that could not be read"] = stated - read
            notes.append(f"{video.name}: {len(records)} of {read} frames read")
        coco = dict(
            info=dict(description="Frames of videos", notes=notes),
            images=images,
            annotations=[],
            categories=[person_category_of(COCO17)],
        )
        write_coco(making / ANNOTATIONS, coco)
    return coco, Report("video", len(images), 0, {}, dropped, tuple(notes))


def _refuse_stills(path: Path) -> None:
    """Raise SagecacheError for what ffmpeg would take for a video: a picture, or a list of other files."""
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"ffconcat"):
        raise SagecacheError(
            "is a list of other files, no video", file=path, fix="Give the videos themselves"
        )
    if cv2.haveImageReader(str(path)):
        raise SagecacheError("is a picture, no video", file=path, fix="Give its folder to --unlabeled-images")


def _extract(
    video: Path, folder: Path, choice: FrameChoice, first_id: int
) -> tuple[list[dict], int, int | None]:
    """Image records of the frames written, how many frames were read, and how many the video announces where
    it ends too early, else None.
    """
    records: list[dict] = []
    _refuse_stills(video)
    with closing(_Video(video)) as opened:
        if choice.fps is not None and not opened.rate > 0:
            raise SagecacheError(
                "does not say its frame rate", file=video, fix="Use --every instead of --fps"
            )
        read, stopped = 0, False
        for number, frame in opened.frames(lambda n: choice.takes(n, opened.rate)):
            read = number + 1
            if frame is None:
                continue
            name = f"{video.stem}_{number:06d}.jpg"
            height, width = frame.shape[:2]
            _write_jpeg(folder / name, frame)
            records.append(
                dict(id=first_id + len(records), file_name=name, width=width, height=height)
                | dict(sequence=video.stem, frame=number)
            )
            if choice.limit is not None and len(records) >= choice.limit:
                stopped = True
                break
    if not records:
        raise SagecacheError(
            "no frame of it could be read", file=video, fix="Copy it again, or convert it to H.264 in MP4"
        )
    missing = 0 if stopped else opened.stated - read
    return records, read, opened.stated if missing > max(SLACK, SLACK_SHARE * opened.stated) else None


class _Video:
    """An open video: rate (frames a second), stated (frames that it announces, 0 where it does not)."""

    def __init__(self, path: Path) -> None:
        # FFmpeg would write its own lines about a broken file beside ours.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SagecacheError(
                f"can't be opened as a video ({path.stat().st_size} bytes)",
                file=path,
                fix="It is cut, empty or of an unknown codec: copy it again, or convert it to H.264 in MP4",
            )
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # turns frames by the tag; JPEGs get none
        self.rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.stated = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray | None]]:
        """(number, BGR uint8 (H, W, 3), or None for a frame that is not wanted), as far as it can be read."""
        number = 0
        while self._capture.grab():
            frame = None
            if wanted(number):
                done, frame = self._capture.retrieve()
                if not done:
                    return
            yield number, frame
            number += 1

    def close(self) -> None:
        self._capture.release()


def _write_jpeg(path: Path, frame: np.ndarray) -> None:
    done, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise SagecacheError("OpenCV can't encode this frame", file=path)
    path.write_bytes(data.tobytes())


def _cut(video: Path, read: int, stated: int) -> SagecacheError:
    return SagecacheError(
        f"is cut off: it announces {stated} frames, and {read} could be read",
        file=video,
        fix="Copy it again, or keep what there is: --keep-cut",
    )


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one that takes its name when all went well, and is removed otherwise. What
    had the name before is set aside.
    """
    folder = folder.absolute()
    making = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.sagecache-tmp")
    making.mkdir(parents=True)
    try:
        yield making
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            number = 1
            while (aside := folder.with_name(f"{folder.name}.replaced-{number}")).exists():
                number += 1
            folder.replace(aside)
        making.replace(folder)
    except BaseException:
        shutil.rmtree(making)
        raise
