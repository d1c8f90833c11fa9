"""Drawing splits and keeping them apart: which images get labels, and which images belong together.

Draws rank images by a hash of (seed, id): the same seed always gives the same images, a smaller draw is part
of a larger one, and images added later do not reshuffle the old ones.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np

from sagecache.data.coco import labeled_keypoints
from sagecache.errors import SagecacheError

T = TypeVar("T")
SEQUENCE_FIELDS = ("sequence", "sequence_id", "seq_id", "video", "video_id", "vid_id")

# Stems that say 'a picture' and not which recording it is from.
GENERIC_STEMS = frozenset(
    "img image images frame frames photo pic picture dsc dscn dscf pxl p color rgb".split()
)


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most count of them, evenly over the list from its first to its last: the same ones each time."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int).tolist()]


def draw_images(
    coco: Mapping, count: int, seed: int, *, labeled_only: bool = True, by_sequence: bool = False
) -> list[int]:
    """Ids of count images, sorted. labeled_only: images with at least one labeled keypoint.

    count is images, not persons (Semi_Human_Pose's '1K labels' are the first 1,000 person records of the
    file). by_sequence takes whole sequences (see `sequence_keys`) until count is reached: what a held-out
    split needs. Raises SagecacheError where there are too few.
    """
    records = coco["images"]
    if labeled_only:
        labeled = {a["image_id"] for a in coco["annotations"] if labeled_keypoints(a)}
        records = [record for record in records if record["id"] in labeled]
    if not 0 < count <= len(records):
        kind = "labeled images" if labeled_only else "images"
        raise SagecacheError(f"can't draw {count} of {len(records)} {kind}")
    keys = sequence_keys(records) if by_sequence else [None] * len(records)
    units: dict[Hashable, list[int]] = {}
    for record, key in zip(records, keys, strict=True):
        units.setdefault(record["id"] if key is None else key, []).append(record["id"])
    drawn: list[int] = []
    for unit in sorted(units, key=lambda unit: hashlib.sha256(f"{seed}:{unit}".encode()).digest()):
        if len(drawn) >= count:
            break
        drawn += units[unit]
    return sorted(drawn)


def subset(coco: Mapping, image_ids: Iterable[int]) -> dict:
    """The COCO dict of these images and their annotations, in the order of the file."""
    wanted = set(image_ids)
    missing = sorted(wanted - {image["id"] for image in coco["images"]})
    if missing:
        raise SagecacheError(f"no image has id {missing[0]} ({len(missing)} ids are unknown)")
    return {
        **coco,
        "images": [image for image in coco["images"] if image["id"] in wanted],
        "annotations": [a for a in coco["annotations"] if a["image_id"] in wanted],
    }


def sequence_keys(records: Sequence[Mapping]) -> list[str | None]:
    """Which recording each image is a frame of, None where nothing says so.

    A field of SEQUENCE_FIELDS decides where there is one. Else the file name: folder and stem without the
    trailing frame number of two or more digits ('baby3/frame_0012.jpg' -> 'baby3', 'crib7_0012.jpg' ->
    'crib7'). To keep false alarms rare, names count only if they are not just the image's id (COCO's
    {:012d}.jpg), say more than 'img' or 'frame', and differ: one prefix for all is the data set's name.
    """
    names = [_name_prefix(record) for record in records]
    numbered = [(record, tail) for record, (_, tail) in zip(records, names, strict=True) if tail is not None]
    repeats_id = sum(record["id"] == tail for record, tail in numbered)
    prefixes = {prefix for prefix, tail in names if prefix}
    if len(prefixes) < 2 or repeats_id >= 0.9 * len(numbered):
        names = [(None, None)] * len(records)
    keys = []
    for record, (prefix, _) in zip(records, names, strict=True):
        field = next((f for f in SEQUENCE_FIELDS if record.get(f) not in (None, "", -1)), None)
        if field is None:
            keys.append(prefix)
        elif isinstance(record[field], int) and prefix:
            keys.append(f"{field} {record[field]} of {prefix}")  # numbers start again in every file
        else:
            keys.append(f"{field} {record[field]}")
    return keys


def is_held_out(split: str) -> bool:
    """Whether a split measures, so that nothing of it may be seen in training. Told by its name."""
    return split.lower().startswith(("val", "test"))


def shared(members: Mapping[str, Sequence[Hashable | None]], fewest: int = 1) -> dict[tuple[str, str], list]:
    """What two splits have in common: {(split, split): values}, pairs without any left out.

    members: for each split one value an image (content hash, sequence; None: unknown). A value counts when
    each side has it at least `fewest` times. Values come in the order of the first split.
    """
    counts = {split: Counter(v for v in values if v is not None) for split, values in members.items()}
    pairs = {}
    for a, b in combinations(counts, 2):
        common = [v for v, n in counts[a].items() if n >= fewest and counts[b][v] >= fewest]
        if common:
            pairs[a, b] = common
    return pairs


def _name_prefix(record: Mapping) -> tuple[str | None, int | None]:
    """Prefix of a numbered file name and its number: ('baby3', 12) of 'baby3/frame_0012.jpg'."""
    folder, _, name = (record.get("file_name") or "").replace("\\", "/").rpartition("/")
    match = _NUMBERED.fullmatch(_stem(name))
    if match is None:
        return None, None
    stem = match[1].strip("_-. ")
    parts = [] if folder in ("", ".") else [folder.removeprefix("./")]
    if stem and stem.lower() not in GENERIC_STEMS:
        parts.append(stem)
    return "/".join(parts) or None, int(match[2])


_NUMBERED = re.compile(r"(.*?)(\d{2,})", re.DOTALL)


def _stem(name: str) -> str:
    """As pathlib's, which takes seconds for the names of a large split."""
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name
