"""MINI-RGBD: twelve rendered sequences of infants, with the 25 joints of the SMIL model as text.

    01/rgb/syn_00000.png
    01/joints_2Ddep/syn_joints_2Ddep_00000.txt      a line a joint: x y depth id
    02/…

From Hesse et al., "Computer Vision for Medical Infant Motion Analysis: State of the Art and RGB-D Data Set",
ECCV workshops 2018. 13 of the joints are COCO's; eyes and ears get visibility 0. The files do not tell which
joints the body hides, so that each joint in the picture counts as visible. Depth is not read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from sagecache.data.convert import BOX_RULE, Person, Picture, Reading, box_around, hide_outside
from sagecache.data.picture_files import picture_size
from sagecache.errors import SagecacheError, nearest
from sagecache.skeleton.convert import COCO17_FROM_SMIL25, SMIL25

JOINTS, IMAGES = "joints_2Ddep", "rgb"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LINE = "x y depth id"
NO_IMAGE, NO_JOINTS = "frames with joints and no image", "frames with an image and no joints"


def read_mini_rgbd(
    root: Path,
    sequences: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reading:
    """All frames below root, or those of some sequences; root may also be one sequence.

    Each picture keeps its sequence ('mini-rgbd 01') for the leak guard: frames that follow each other are
    near copies, so that splits are made of whole sequences. Boxes are of all 25 joints, by BOX_RULE. Raises
    SagecacheError for folders of another layout and for malformed lines.
    """
    folders = _sequence_folders(root)
    if sequences is not None:
        folders = {name: folders[name] for name in choose_sequences(list(folders), sequences, root)}
    frames, dropped = [], Counter()
    for name, folder in folders.items():
        found = _frames(folder, dropped)
        frames += [(name, frame, image, joints) for frame, image, joints in found]
    pictures, bases = [], set()
    for done, (name, frame, image, joints) in enumerate(frames, 1):
        points, base = parse_joints(joints.read_text(encoding="utf-8", errors="replace"), joints)
        bases.add(base)
        pictures.append(_picture(root, name, frame, image, points))
        if progress is not None:
            progress(done, len(frames))
    names = ", ".join(folders)
    common = COCO17_FROM_SMIL25.common
    return Reading(
        "MINI-RGBD",
        root,
        tuple(pictures),
        dropped,
        (
            f"sequences: {names}",
            f"joint ids start at {' and at '.join(map(str, sorted(bases)))}",
            f"{len(common)} of 17 joints have a source: {', '.join(common)}",
            f"box: {BOX_RULE.replace('the joints', 'all 25 joints')}",
            "joints hidden by the body are not told apart: all in the picture count as visible",
            "licence: non-commercial research; read the data set's own",
        ),
    )


def parse_joints(text: str, file: Path | None = None) -> tuple[np.ndarray, int]:
    """(25, 2) float64 x, y in image pixels, in the order of SMIL25, and the base of the ids (0 or 1).

    The lines may come in any order. Raises SagecacheError, with the line, for one that is not four finite
    numbers, and for ids that are not 25 in a row from 0 or from 1.
    """
    rows: dict[int, tuple[float, float]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where, words = f"line {number}", line.split()
        values = [_number(word) for word in words]
        if len(words) != 4 or None in values or values[3] != int(values[3]):
            raise SagecacheError(
                f"'{line.strip():.60}' is not '{LINE}'", file=file, record=where, fix="Extract the file again"
            )
        joint = int(values[3])
        if joint in rows:
            raise SagecacheError(
                f"joint {joint} comes twice", file=file, record=where, fix="Extract the file again"
            )
        rows[joint] = (values[0], values[1])
    base = min(rows, default=0)
    if base not in (0, 1) or sorted(rows) != list(range(base, base + len(SMIL25))):
        told = f"{len(rows)} joints" + (f", ids {min(rows)} to {max(rows)}" if rows else "")
        raise SagecacheError(
            f"holds {told}; expected 25, numbered from 0 or from 1", file=file, fix="Extract the file again"
        )
    return np.array([rows[k] for k in range(base, base + len(SMIL25))]), base


def choose_sequences(names: Sequence[str], wanted: Iterable[str], root: Path | None = None) -> list[str]:
    """Of names those that are wanted, in their order. wanted: names, or ranges such as '01-08'; of a number
    leading zeros do not count. Raises SagecacheError for one that is not there.
    """
    numbers = {int(name): name for name in names if name.isdecimal()}
    chosen = set()
    for word in wanted:
        span = re.fullmatch(r"(\d+)-(\d+)", word)
        first, last = (int(span[1]), int(span[2])) if span and word not in names else (0, -1)
        single = numbers.get(int(word)) if word.isdecimal() else None
        found = [word] if word in names else [single] if single else []
        found = found or [numbers[n] for n in range(first, last + 1) if n in numbers]
        if not found or (span and len(found) != max(1, last - first + 1)):
            raise SagecacheError(f"has no sequences '{word}'", file=root, fix=nearest(word, names))
        chosen.update(found)
    return [name for name in names if name in chosen]


def _sequence_folders(root: Path) -> dict[str, Path]:
    """{name: folder}; of root itself where it is a sequence."""
    if (root / JOINTS).is_dir():
        return {root.resolve().name: root}
    found = {path.name: path for path in sorted(root.iterdir()) if (path / JOINTS).is_dir()}
    if not found:
        raise SagecacheError(
            f"no sequence in it: no folder has '{JOINTS}'",
            file=root,
            fix="Give the folder that holds 01, 02, …, 12, or one of these",
        )
    return found


def _frames(folder: Path, dropped: Counter) -> list[tuple[int, Path, Path]]:
    """(frame number, image, joint file) of the frames that have both; the others are counted."""
    joints = _by_number(folder / JOINTS, (".txt",))
    images = _by_number(folder / IMAGES, IMAGE_SUFFIXES)
    dropped[NO_IMAGE] += len(joints.keys() - images.keys())
    dropped[NO_JOINTS] += len(images.keys() - joints.keys())
    return [(number, images[number], joints[number]) for number in sorted(joints.keys() & images.keys())]


def _by_number(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        number = re.search(r"(\d+)$", path.stem)
        if number and path.suffix.lower() in suffixes:
            if int(number[1]) in found:
                raise SagecacheError(
                    f"{found[int(number[1])].name} and {path.name} are of one frame number",
                    file=folder,
                    fix="Move one of them away",
                )
            found[int(number[1])] = path
    return found


def _picture(root: Path, sequence: str, frame: int, image: Path, points: np.ndarray) -> Picture:
    size = picture_size(image)
    joints = np.c_[points, np.full(len(points), 2.0)]
    inside, _ = hide_outside(joints, size)
    seen = inside[inside[:, 2] > 0, :2]
    bbox = box_around(seen, size) if len(seen) else None
    person = Person(COCO17_FROM_SMIL25(joints), bbox)
    fields = dict(sequence=f"mini-rgbd {sequence}", frame=frame)
    return Picture(image.relative_to(root).as_posix(), size, (person,), fields=fields)


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
