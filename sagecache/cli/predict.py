"""``sagecache predict``: the poses that a checkpoint sees in a split or in pictures; boxes made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.actions import ensure
from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import PICTURE, RESULTS, emit_json, note, progress, require_places
from sagecache.cli.train import newest_checkpoint
from sagecache.errors import SagecacheError, counted
from sagecache.store.files import write_whole

if TYPE_CHECKING:
    from sagecache.project import Project
    from sagecache.skeleton.definition import Skeleton
    from sagecache.structures import Instance


@click.command("predict", short_help="Keypoints of a split's persons, and boxes about them.")
@project_option
@click.option("--split", help="By its boxes. Default: unlabeled.")
@click.option(
    "--images",
    type=click.Path(exists=True, path_type=Path),
    help="Instead of a split: a picture, or a folder of them. Persons are those of data.py's detector.",
)
@click.option(
    "--checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: the newest."
)
@click.option(
    "--network", type=click.Choice(["ema_teacher", "student"]), default="ema_teacher", show_default=True
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="COCO keypoint results."
)
@click.option(
    "--boxes",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a box about each pose here, after OKS-NMS: a detection JSON for data.py.",
)
@click.option(
    "--preview",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw some pictures with the joints above --confidence into this PNG.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Of joints in a box.",
)
@click.option(
    "--oks", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="Above it two poses are one."
)
@json_option
def predict_command(
    project: Project,
    split: str | None,
    images: Path | None,
    checkpoint: Path | None,
    network: str,
    out: Path,
    boxes: Path | None,
    preview: Path | None,
    as_json: bool,
    **rule: float,
) -> None:
    """Run a network over the boxes of a split; scores are the box's times the mean of the joints'."""
    if split is not None and images is not None:
        raise click.UsageError("--split and --images exclude each other.")
    checkpoint = newest_checkpoint(project, checkpoint)
    split = (split or "unlabeled") if images is None else None
    files = {"--out": (out, RESULTS), "--boxes": (boxes, RESULTS), "--preview": (preview, PICTURE)}
    root = images if split is None else project.path(project.split(split).images)
    used = [checkpoint, *(project.split_files(split) if split else ())]
    _require_own_places(files, [*used, *_among(root, preview)])
    persons = in_pictures(project, images) if split is None else of_split(project, split)
    results = _predict(project, checkpoint, network, persons)
    summary = dict(checkpoint=str(checkpoint), network=network, persons=len(results), out=str(out))
    summary |= dict(images=str(images)) if split is None else dict(split=split)
    write_whole(out, json.dumps(results).encode())
    if boxes is not None:
        from sagecache.mm.pseudo_boxes import pseudo_boxes

        found = pseudo_boxes(results, project.skeleton, rule["confidence"], rule["oks"])
        write_whole(boxes, json.dumps(found).encode())
        summary |= dict(boxes=str(boxes), boxed=len(found))
    if preview is not None:
        _draw(preview, persons, results, project.skeleton, rule["confidence"])
        note(f"preview: {preview}")
    if as_json:
        emit_json(summary)
        return
    click.echo(f"{counted(len(results), 'pose')} of {checkpoint} ({network}): {out}")
    if boxes is not None:
        told = f"{counted(summary['boxed'], 'person')} with a box"
        known_as = os.path.relpath(boxes.absolute(), Path.cwd() if project.embedded else project.folder)
        click.echo(f'{told}: {boxes}; in data.py boxes="{known_as}"')
        if not summary["boxed"]:
            note(f"no pose has three joints above --confidence {rule['confidence']:g}")


def _require_own_places(files: Mapping[str, tuple[Path | None, bytes]], used: Sequence[Path]) -> None:
    """As require_places; two options may not name one file either."""
    asked = {option: path for option, (path, _) in files.items() if path is not None}
    by_path: dict[Path, str] = {}
    for option, path in asked.items():
        if (other := by_path.setdefault(path.resolve(), option)) != option:
            raise SagecacheError(
                f"{other} and {option} name the same file", file=path, fix="Give each its own."
            )
    require_places({path: kind for path, kind in files.values() if path is not None}, used)


def _among(pictures: Path, preview: Path | None) -> list[Path]:
    """The preview, where it would replace one of the pictures (a folder of them, or one)."""
    if preview is None or not preview.exists():
        return []
    place = preview.resolve()
    return [preview] if pictures.resolve() in (place, *place.parents) else []


@dataclass(frozen=True)
class Persons:
    """Whose pose is asked for, in the images of a COCO dict that lie below root."""

    coco: Mapping
    root: Path
    instances: Sequence[Instance]
    named: bool = False  # nobody else knows the ids: results name their files


def of_split(project: Project, name: str) -> Persons:
    """The instances of a split, by its boxes."""
    from sagecache.data.coco import load_coco

    ensure(project, project.split_requirements(name))
    split = project.split(name)
    coco = load_coco(project.path(split.annotations))
    return Persons(coco, project.path(split.images), project.instances(name))


def in_pictures(project: Project, place: Path) -> Persons:
    """What data.py's detector finds in a picture, or in those of a folder; unreadable ones are told."""
    from sagecache.data.coco import instances_from_detections
    from sagecache.data.picture_files import list_pictures
    from sagecache.precompute.steps import DetectWork
    from sagecache.project.settings import SplitSettings
    from sagecache.teachers.registry import build_detector

    root = place if place.is_dir() else place.parent
    coco = list_pictures(place, on_bad=lambda name, why: note(f"{root / name}: {why}"))
    parts = [[(one["id"], root / one["file_name"])] for one in coco["images"]]
    work, found = DetectWork(parts, build_detector(project.data.detector), batch_size=1), []
    with progress("detect") as report:
        for number, part in work(range(len(parts))):
            found += part.detections
            for failure in part.failed:
                note(f"{failure.path}: {failure.reason}")
            report(number + 1, len(parts))
    rule = SplitSettings(root, root)
    limits = dict(score_threshold=rule.min_score, max_per_image=rule.max_per_image)
    return Persons(coco, root, instances_from_detections(found, coco, root, **limits), named=True)


def _predict(project: Project, checkpoint: Path, network: str, persons: Persons) -> list[dict]:
    from sagecache.mm.evaluate import predict

    if not persons.instances:
        return []
    with progress("predict") as report:
        results = predict(project, checkpoint, persons.instances, network, report)
    names = {one["id"]: one["file_name"] for one in persons.coco["images"]} if persons.named else {}
    results = [{**one, "file_name": names.get(one["image_id"])} for one in results]
    return [{key: value for key, value in one.items() if value is not None} for one in results]


def _draw(
    path: Path, persons: Persons, results: Sequence[Mapping], skeleton: Skeleton, confidence: float
) -> None:
    """A sheet of pictures, with the joints above confidence."""
    import cv2
    import numpy as np

    from sagecache.visualization.annotations import annotation_sheet

    shown = []
    for one in results:
        keypoints = np.array(one["keypoints"]).reshape(-1, 3)
        keypoints[:, 2] = np.where(keypoints[:, 2] > confidence, 2, 0)
        shown.append({**one, "keypoints": keypoints.ravel().tolist()})
    sheet = annotation_sheet({**persons.coco, "annotations": shown}, persons.root, skeleton)
    write_whole(path, cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
