"""Images and recordings on both sides: what is trained on, and what measures.

Fast enough for every start of a training: names and paths, and the bytes of a few images of one name. A copy
under another name is for `sagecache.data.check`, which hashes all contents.
"""

from __future__ import annotations

import filecmp
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sagecache.data.splits import sequence_keys, shared

# Two images of one name in different folders may be strangers (000001.jpg of two data sets): so many pairs
# are asked for their size, and so many of one size are read.
LOOKED_AT, READ = 2000, 32
MIN_FRAMES = 2  # of a recording on each side, as in `data check`: one odd name is no recording


@dataclass(frozen=True)
class ImageList:
    """The images of a split: COCO records ('id', 'file_name', perhaps 'video_id', …) and their folder."""

    root: Path
    records: Sequence[Mapping]


@dataclass(frozen=True)
class Leak:
    """What two splits share. kind: 'image' (one file, or two of the same bytes) or 'recording'.

    count: of shared images or recordings, where whole is False at least so many. first: the first of them,
    in the order of the split that measures.
    """

    kind: str
    trained: str
    measures: str
    count: int
    first: str
    whole: bool = True


def find_leaks(trained: Mapping[str, ImageList], measures: Mapping[str, ImageList]) -> list[Leak]:
    """Leaks between each split that is trained on and each that measures, images before recordings."""
    names = {split: _by_path(images) for split, images in {**trained, **measures}.items()}
    leaks = [
        leak
        for split in trained
        for other in measures
        if (leak := _shared_images(split, names[split], other, names[other])) is not None
    ]
    told = {(leak.trained, leak.measures) for leak in leaks}
    return leaks + [
        leak
        for leak in _shared_recordings(trained, measures)
        if (leak.trained, leak.measures) not in told  # the same images are of the same recording
    ]


def _by_path(images: ImageList) -> dict[str, int]:
    """{path: image id}. Links of the folder are followed, those of single files are not: that costs a
    system call each."""
    root = os.path.realpath(images.root)
    paths = {}
    for record in images.records:
        name = record.get("file_name") or f"{record['id']:012d}.jpg"
        if "\\" in name or "./" in name or "//" in name:
            name = posixpath.normpath(name.replace("\\", "/"))
        paths.setdefault(f"{root}/{name}", record["id"])
    return paths


def _shared_images(split: str, own: dict[str, int], other: str, theirs: dict[str, int]) -> Leak | None:
    common = [path for path in theirs if path in own]
    if common:
        return Leak("image", split, other, len(common), _describe(common[0], theirs, common[0], own))
    named = {path.rpartition("/")[2]: path for path in own}
    pairs = ((path, named[name]) for path in theirs if (name := path.rpartition("/")[2]) in named)
    alike = list(islice((pair for pair in islice(pairs, LOOKED_AT) if _same_size(*pair)), READ))
    copies = [pair for pair in alike if _same_bytes(*pair)]
    if not copies:
        return None
    first = _describe(copies[0][0], theirs, copies[0][1], own)
    return Leak("image", split, other, len(copies), first, whole=False)


def _describe(path: str, ids: dict[str, int], same: str, same_ids: dict[str, int]) -> str:
    text = f"image {ids[path]} ({path})"
    if same != path:
        return f"{text}, byte for byte {same}"
    return text if ids[path] == same_ids[same] else f"{text}, there image {same_ids[same]}"


def _same_size(a: str, b: str) -> bool:
    try:
        return os.stat(a).st_size == os.stat(b).st_size
    except OSError:  # a missing image is told of by whoever reads it
        return False


def _same_bytes(a: str, b: str) -> bool:
    try:
        return filecmp.cmp(a, b, shallow=False)
    except OSError:
        return False


def _shared_recordings(trained: Mapping[str, ImageList], measures: Mapping[str, ImageList]) -> Iterator[Leak]:
    """Keys of all splits are made together: whether a prefix names a recording shows only beside others."""
    splits = {**measures, **trained}
    keys = iter(sequence_keys([record for images in splits.values() for record in images.records]))
    members = {split: list(islice(keys, len(images.records))) for split, images in splits.items()}
    for (a, b), common in shared(members, fewest=MIN_FRAMES).items():
        if a in measures and b in trained and b not in measures:
            yield Leak("recording", b, a, len(common), f"'{common[0]}'")
