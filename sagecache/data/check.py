"""Are these splits sound? Files, records, and what the splits share that they should not.

Contents are compared by the hash of the files' bytes: a picture that was encoded again is not recognised.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from sagecache.data.check_records import check_annotations, check_detections, check_images, check_not_empty
from sagecache.data.coco import image_path, load_coco, load_detections, read_image
from sagecache.data.findings import Finding, FindingList, count_by_code, fold, some
from sagecache.data.splits import is_held_out, sequence_keys, shared
from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import Skeleton

__all__ = ["Finding", "SplitSource", "check_splits", "count_by_code", "fold"]

ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class SplitSource:
    """Where a split lies: image folder, annotation file and, where boxes are detected, the detection file.

    trained: whether anything is learned from it. labeled: whether it is read for its keypoints; splits that
    measure are, whatever this says. min_score: detections from there on are used. find_persons: the command
    that makes the boxes of a split without any.
    """

    images: Path
    annotations: Path
    detections: Path | None = None
    trained: bool = True
    labeled: bool = False
    min_score: float = 0.0
    find_persons: str = "sagecache precompute detect"


@dataclass(frozen=True, slots=True)
class _FileFacts:
    """What one look at an image file tells; problem is (code, message) where it is of no use."""

    digest: str | None = None
    size: tuple[int, int] | None = None
    orientation: int = 1
    problem: tuple[str, str] | None = None


def check_splits(
    sources: Mapping[str, SplitSource],
    *,
    decode: bool = False,
    skeleton: Skeleton | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Check each split, then the splits against each other. Never raises for bad data: it becomes findings.

    decode: decode every image instead of reading its header (finds truncated ones). skeleton: what the
    keypoints should be. progress(done, total) counts image files.
    """
    logs = {name: FindingList(name) for name in sources}
    annotations = {name: _load(source, logs[name]) for name, source in sources.items()}
    annotations = {name: coco for name, coco in annotations.items() if coco is not None}
    paths = {name: _paths(coco, sources[name].images, logs[name]) for name, coco in annotations.items()}
    facts = _look_at({path for split in paths.values() for path in split.values()}, decode, progress)
    for name, coco in annotations.items():
        log = logs[name]
        check_images(coco, log)
        _check_files(coco, paths[name], facts, log)
        sizes = _sizes(coco, paths[name], facts)
        check_annotations(coco, sizes, log, skeleton)
        check_not_empty(coco, log, labeled=sources[name].labeled or is_held_out(name))
        _check_boxes(sources[name], coco, sizes, log)
    same_file = _same_file(sources)
    across = _check_contents(paths, facts, same_file) + _check_sequences(annotations, same_file)
    across += _check_same_file(sources, same_file)
    return [finding for log in logs.values() for finding in log.found] + across


def _load(source: SplitSource, log: FindingList) -> dict | None:
    try:
        return load_coco(source.annotations)
    except SagecacheError as error:
        fix = error.fix or "Correct the path in data.py, which starts at the project's folder"
        log.error("annotations", f"{error.message}: {source.annotations}", error.record, fix)
        return None


def _paths(coco: dict, root: Path, log: FindingList) -> dict[int, Path]:
    """{image_id: path}; of a repeated id the first."""
    paths: dict[int, Path] = {}
    for record in coco["images"]:
        try:
            paths.setdefault(record["id"], image_path(root, record))
        except SagecacheError as error:
            log.error("path", error.message, error.record, error.fix)
    return paths


def _look_at(paths: set[Path], decode: bool, progress: Callable | None) -> dict[Path, _FileFacts]:
    ordered = sorted(paths)
    facts = {}
    with ThreadPool(min(8, (os.cpu_count() or 1) + 2)) as pool:  # hashing and decoding leave the interpreter
        found = pool.imap(lambda path: _inspect(path, decode), ordered, chunksize=8)
        for done, (path, one) in enumerate(zip(ordered, found, strict=True), 1):
            facts[path] = one
            if progress is not None:
                progress(done, len(ordered))
    return facts


def _inspect(path: Path, decode: bool) -> _FileFacts:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with Image.open(file) as image:
                size, orientation = image.size, image.getexif().get(ORIENTATION, 1)
        if decode:
            read_image(path)
    except FileNotFoundError:
        return _FileFacts(problem=("missing_file", "the image file is missing"))
    except UnidentifiedImageError:
        return _FileFacts(problem=("unreadable_file", "holds no image: empty, cut, or of another format"))
    except SagecacheError as error:
        return _FileFacts(problem=("unreadable_file", error.message))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return _FileFacts(problem=("unreadable_file", f"can't be opened: {error}"))
    return _FileFacts(digest, size, orientation or 1)


def _check_files(coco: dict, paths: dict[int, Path], facts: dict[Path, _FileFacts], log: FindingList) -> None:
    for record in coco["images"]:
        if record["id"] not in paths:
            continue
        one = facts[paths[record["id"]]]
        where = f"image {record['id']} ({paths[record['id']].name})"
        if one.problem is not None:
            log.error(*one.problem, where)
            continue
        stated = (record.get("width"), record.get("height"))
        if one.orientation != 1:
            _report_orientation(one, stated, where, log)
        elif None not in stated and stated != one.size:
            log.error(
                "image_size",
                f"is {one.size[0]}x{one.size[1]}, its record says {stated[0]}x{stated[1]}",
                where,
                "Boxes and keypoints are of another version of this image",
            )


def _report_orientation(one: _FileFacts, stated: tuple, where: str, log: FindingList) -> None:
    width, height = one.size
    turned = one.orientation >= 5 and width != height and stated == (height, width)
    if turned:
        log.error(
            "exif_turned_labels",
            f"EXIF orientation {one.orientation}, and the record's size is that of the turned image",
            where,
            "Save the image turned, without the EXIF tag: sagecache reads raw pixels",
        )
    else:
        log.warning(
            "exif_orientation",
            f"EXIF orientation {one.orientation} is ignored: raw pixels are read",
            where,
            "See that the labels were made on the raw pixels: sagecache inspect",
        )


def _sizes(coco: dict, paths: dict[int, Path], facts: dict[Path, _FileFacts]) -> dict[int, tuple[int, int]]:
    """Real size of each image, or what its record says, where known."""
    sizes = {}
    for record in coco["images"]:
        path = paths.get(record["id"])
        real = facts[path].size if path is not None else None
        if real is None and record.get("width") and record.get("height"):
            real = record["width"], record["height"]
        if real is not None:
            sizes[record["id"]] = real
    return sizes


def _check_boxes(source: SplitSource, coco: dict, sizes: dict, log: FindingList) -> None:
    if source.detections is None:
        if not coco["annotations"]:
            log.note("no_boxes", "has no boxes yet", fix=f"Find persons: {source.find_persons}")
        return
    try:
        detections = load_detections(source.detections)
    except SagecacheError as error:
        log.error("detections", error.message, error.record or source.detections.name, error.fix)
        return
    check_detections(detections, coco, sizes, log, min_score=source.min_score)


def _same_file(sources: Mapping[str, SplitSource]) -> set[tuple[str, str]]:
    """Pairs of splits that read one annotation file, in the order of sources."""
    files = {name: source.annotations.resolve() for name, source in sources.items()}
    return {(a, b) for a, b in combinations(files, 2) if files[a] == files[b]}


def _check_same_file(sources: Mapping[str, SplitSource], pairs: set[tuple[str, str]]) -> list[Finding]:
    """Two readings of one file leak only where one of them measures what the other was learned from."""
    findings = []
    for a, b in sorted(pairs):
        if is_held_out(a) or is_held_out(b):
            leaks = any(sources[name].trained and not is_held_out(name) for name in (a, b))
            message = f"both read {sources[a].annotations.name}"
            message += ": what is measured was trained on" if leaks else ""
            fix = "Give them different images, or the figures are too good" if leaks else None
            level = "warning" if leaks else "note"
            findings.append(Finding(level, "leak_annotations", f"{a}, {b}", message, fix=fix))
    return findings


def _check_contents(paths: dict[str, dict], facts: dict, same_file: set[tuple[str, str]]) -> list[Finding]:
    """The same bytes twice: within a split, and in two splits of different files."""
    findings = []
    ids_by_digest: dict[str, dict[str, list[int]]] = {}
    for split, by_id in paths.items():
        groups: dict[str, list[int]] = {}
        for image_id, path in by_id.items():
            if facts[path].digest is not None:
                groups.setdefault(facts[path].digest, []).append(image_id)
        ids_by_digest[split] = groups
        twins = ["=".join(map(str, ids)) for ids in groups.values() if len(ids) > 1]
        if twins:
            message = f"images with the same content: {some(twins)}"
            findings.append(Finding("warning", "same_content", split, message))
    contents = {split: list(groups) for split, groups in ids_by_digest.items()}
    for (a, b), common in shared(contents).items():
        if (a, b) in same_file:
            continue
        ids = [ids_by_digest[a][digest][0] for digest in common]
        images = "1 image is" if len(ids) == 1 else f"{len(ids):,} images are"
        message = f"{images} in both; ids in '{a}': {some(ids)}"
        level = "error" if is_held_out(a) or is_held_out(b) else "note"
        fix = "Remove them from one of the two" if level == "error" else None
        findings.append(Finding(level, "leak_content", f"{a}, {b}", message, fix=fix))
    return findings


def _check_sequences(annotations: dict[str, dict], same_file: set[tuple[str, str]]) -> list[Finding]:
    """Frames of one recording on both sides, more than one on each; not within one file."""
    records = [(split, image) for split, coco in annotations.items() for image in coco["images"]]
    members: dict[str, list] = {split: [] for split in annotations}
    keys = sequence_keys([image for _, image in records])
    for (split, _), key in zip(records, keys, strict=True):
        members[split].append(key)
    return [
        Finding(
            "warning" if is_held_out(a) or is_held_out(b) else "note",
            "leak_sequence",
            f"{a}, {b}",
            f"frames of the same recording in both: {some(common)}",
            fix="Split by recording, or the figures are too good",
        )
        for (a, b), common in shared(members, fewest=2).items()
        if (a, b) not in same_file
    ]
