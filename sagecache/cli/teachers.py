"""``sagecache teachers``: what the frozen networks are, and how well they do where the truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sagecache.cli.actions import detect, ensure
from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import emit_json, emit_table, progress
from sagecache.errors import SagecacheError, counted

if TYPE_CHECKING:
    from sagecache.project import Project


@click.command("teachers", short_help="The frozen networks and their errors.")
@project_option
@click.option("--split", help="Measure the errors on this split; it needs ground-truth geometry (rendered).")
@json_option
def teachers_command(project: Project, split: str | None, as_json: bool) -> None:
    """The project's frozen networks; with --split, their errors beside a constant baseline."""
    summary = describe(project)
    if split is not None:
        summary |= measure(project, split)
    if as_json:
        emit_json(summary)
        return
    emit_table("frozen networks", ("", ""), [(key, str(value)) for key, value in summary["teacher"].items()])
    if split is not None:
        columns = list(summary["geometry"]["teacher"])  # a constant has no mask, so fewer figures
        rows = [
            [name, *(_figure(row.get(column)) for column in columns)]
            for name, row in summary["geometry"].items()
        ]
        emit_table(f"geometry on {split}, {counted(summary['instances'], 'instance')}", ["", *columns], rows)
        click.echo(f"person detector on {split}: AP50 {100 * summary['detector_ap50']:.1f}")


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def describe(project: Project) -> dict:
    from sagecache.teachers.registry import build_teacher

    teacher = build_teacher(project.data.teacher)
    return dict(teacher=teacher.spec.as_dict() | dict(fingerprint=teacher.fingerprint()))


def measure(project: Project, split: str) -> dict:
    """Geometry errors of the stored targets against the rendered truth, and the detector's AP50.

    Raises SagecacheError for a store of other settings: its figures would be another teacher's.
    """
    import json

    from sagecache.cli.jobs import require_fresh_store
    from sagecache.data.coco import load_coco
    from sagecache.teachers.measure import detection_ap50, mean_errors
    from sagecache.teachers.registry import build_teacher

    settings = project.split(split)
    if settings.render is None or not settings.render.geometry:
        raise SagecacheError(f"split '{split}' has no ground-truth geometry", fix="Use a rendered one: val.")
    if settings.boxes != "annotations":
        raise SagecacheError(
            f"the boxes of split '{split}' are detected, and nothing says whose they are",
            fix="Use one with annotated boxes: val.",
        )
    ensure(project, project.split_requirements(split, geometry=True))
    require_fresh_store(project, split, build_teacher(project.data.teacher))
    detect(project, split)
    errors = mean_errors(_errors(project, split))
    boxes = json.loads((project.split_folder(split) / "detections.json").read_text())
    return dict(
        instances=errors["count"],
        geometry={
            "teacher": {
                key: value
                for key, value in errors.items()
                if not key.startswith("constant") and key != "count"
            },
            "constant": {
                key.removeprefix("constant_"): value
                for key, value in errors.items()
                if key.startswith("constant")
            },
        },
        detector_ap50=detection_ap50(boxes, load_coco(project.path(settings.annotations))),
    )


def _errors(project: Project, split: str):
    """One dict of errors an instance: stored targets decoded, truth cut out by the same matrix."""
    import cv2
    import numpy as np

    from sagecache.data.coco import load_coco
    from sagecache.store.codec import decode_depth, decode_normal
    from sagecache.synth.write import read_geometry
    from sagecache.teachers.measure import geometry_errors

    settings = project.split(split)
    folder = project.path(settings.annotations).parent
    records = {record["id"]: record for record in load_coco(project.path(settings.annotations))["images"]}
    reader = project.targets(split)
    missing = {"depth", "normal", "mask"} - set(reader.fields)
    if missing:
        raise SagecacheError(f"its teacher gives no {' and no '.join(sorted(missing))}", file=reader.root)
    keys = [tuple(key) for key in reader.ids.tolist() if tuple(key) in reader]
    with progress(f"measure {split}") as report:
        for done, key in enumerate(keys, 1):
            targets = reader.read(*key)
            depth, normals, instances = read_geometry(folder, records[key[0]])
            matrix, size = targets["target_from_image"][:2], targets["mask"].shape[::-1]
            cut = [
                cv2.warpAffine(np.ascontiguousarray(value), matrix, size, flags=cv2.INTER_NEAREST)
                for value in (depth, normals, (instances == key[1]).astype(np.uint8))
            ]
            yield geometry_errors(
                decode_depth(targets["depth"], targets.get("depth_range")),
                decode_normal(targets["normal"]),
                targets["mask"],
                cut[0],
                cut[1].transpose(2, 0, 1),
                cut[2] > 0,
            )
            report(done, len(keys))
