"""Image files: those of a folder as a COCO dict, and those that converted labels speak of.

Reads headers only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from sagecache.data.coco import image_path
from sagecache.data.convert import Picture, Reading
from sagecache.errors import SagecacheError, counted

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
NAMED = 10  # files that can't be opened, in an error
MISSING = "pictures whose image is not in the folder"
_ORIENTATION = 0x0112  # the EXIF tag


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of the raw pixels, from the header. Raises SagecacheError for no image."""
    return _look(path)[0]


def list_pictures(
    place: Path, *, numbered: bool = False, on_bad: Callable[[str, str], None] | None = None
) -> dict:
    """The images below a folder, or one image, as a COCO dict without annotations; names from that folder.

    Ids are the names where all stems are numbers of their own (COCO's {:012d} rule), else 1, 2, … in order of
    name. numbered: another file names ids, so that names must be such numbers. on_bad(name, why) is told of
    images that can't be opened, which are left out; without it all of them are one error. Raises
    SagecacheError for that, for names that are no numbers where they must be, and where there is no image.
    """
    folder = place if place.is_dir() else place.parent
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [place] if place.is_file() else files
    if not files:
        raise SagecacheError("no images below it", file=folder, fix=f"Known: {', '.join(sorted(SUFFIXES))}.")
    numeric = all(re.fullmatch(r"\d+", path.stem) and int(path.stem) < 2**63 for path in files)
    ids = [int(path.stem) for path in files] if numeric else []
    repeated = len(set(ids)) < len(ids)
    if numbered and not numeric:
        raise SagecacheError(
            "detections name image ids, and these file names are no numbers",
            file=folder,
            fix="Give --unlabeled-annotations, a COCO JSON whose images have id and file_name.",
        )
    if numbered and repeated:
        raise SagecacheError("two files have the same number as name", file=folder, fix="Rename one.")
    if repeated or not numeric:
        ids = list(range(1, len(files) + 1))
    images, bad = [], {}
    for image_id, path in sorted(zip(ids, files, strict=True)):
        name = path.relative_to(folder).as_posix()
        try:
            width, height = picture_size(path)
        except SagecacheError as error:
            bad[name] = error.message
            continue
        images.append(dict(id=image_id, file_name=name, width=width, height=height))
    if on_bad is not None:
        for name, why in bad.items():
            on_bad(name, why)
    elif bad:
        shown = "; ".join(f"{name} ({why})" for name, why in list(bad.items())[:NAMED])
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise SagecacheError(
            f"{counted(len(bad), 'image')} can't be opened: {shown}{more}",
            file=folder,
            fix="Remove or repair them.",
        )
    return dict(images=images, annotations=[], categories=[dict(id=1, name="person")])


def find_pictures(
    reading: Reading, root: Path, progress: Callable[[int, int], None] | None = None
) -> Reading:
    """The reading with file names as they are below root, and sizes from the files.

    A name without a suffix (CVAT's frames of a video) takes the one of the file. Pictures that are not there
    are left out and counted. Raises SagecacheError where none is there, where a file has another size than
    its labels, and, for labels made in a browser, where EXIF turns an image: we read its raw pixels.
    """
    found, dropped = [], Counter(reading.dropped)
    for done, picture in enumerate(reading.pictures, 1):
        name = _name_below(root, picture)
        if name is None:
            dropped[MISSING] += 1
        else:
            found.append(replace(picture, file_name=name, size=_checked_size(root / name, picture, reading)))
        if progress is not None:
            progress(done, len(reading.pictures))
    if reading.pictures and not found:
        raise SagecacheError(
            f"none of {len(reading.pictures)} images is in it, such as '{reading.pictures[0].file_name}'",
            file=root,
            fix="Give the folder that the file names start at: --images",
        )
    return replace(reading, pictures=tuple(found), dropped=dropped)


def _name_below(root: Path, picture: Picture) -> str | None:
    for name in (picture.file_name, *picture.other_names):
        path = image_path(root, dict(id=picture.id, file_name=name))
        options = [path, *(path.with_name(path.name + suffix) for suffix in _both_cases())]
        for option in options if path.suffix.lower() not in SUFFIXES else options[:1]:
            if option.is_file():
                return option.relative_to(root).as_posix()
    return None


def _both_cases() -> list[str]:
    return [form for suffix in SUFFIXES for form in (suffix, suffix.upper())]


def _checked_size(path: Path, picture: Picture, reading: Reading) -> tuple[int, int]:
    size, orientation = _look(path)
    if reading.turned and orientation != 1:
        raise SagecacheError(
            f"its EXIF orientation {orientation} turns it, and labels of {reading.format} are made on the "
            "turned picture; training reads the raw pixels",
            file=path,
            fix="Turn the pixels themselves and drop the tag, for all images: mogrify -auto-orient *.jpg",
        )
    if picture.size is not None and picture.size != size:
        ours, theirs = "x".join(map(str, size)), "x".join(map(str, picture.size))
        raise SagecacheError(
            f"is {ours}, and its labels are of a picture of {theirs}",
            file=path,
            fix="Give the images that were labeled, at their own size",
        )
    return size


def _look(path: Path) -> tuple[tuple[int, int], int]:
    try:
        with Image.open(path) as image:
            return image.size, image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(str(path), path.name).split())
        raise SagecacheError(f"can't be opened as an image: {reason}", file=path) from None
