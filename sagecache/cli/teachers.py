"""``sagecache teachers``: what the frozen networks are, and how well they do where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.actions import detect, ensure
from sagecache.cli.context import json_option, open_project, project_option
from sagecache.cli.output import emit_json, emit_table, progress
from sagecache.errors import SagecacheError, counted

if TYPE_CHECKING:
    from sagecache.project import Project


@click.group("teachers", invoke_without_command=True, short_help="The frozen networks: which, how good.")
@click.option("--project", "folder", type=click.Path(file_okay=False), help="Folder of the project.")
@click.option("--split", help="Measure the errors on this split; it needs ground-truth geometry (rendered).")
@json_option
@click.pass_context
def teachers_command(context: click.Context, folder: str | None, split: str | None, as_json: bool) -> None:
    """The project's frozen networks; with --split, their errors beside a constant baseline."""
    if context.invoked_subcommand is not None:
        return
    project = open_project(folder)
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


@teachers_command.command("ls")
@project_option
@json_option
def ls_command(project: Project, as_json: bool) -> None:
    """Which files and folders this project's networks come from, and whether they are there."""
    rows = list_networks(project)
    if as_json:
        emit_json(rows)
        return
    columns = ("network", "type", "gives", "file", "GB", "licence")
    emit_table("", columns, [[row[column] for column in columns] for row in rows])


@teachers_command.command("check")
@click.argument("path", metavar="FILE", type=click.Path(exists=True))
@project_option
@click.option("--size", default=None, metavar="WxH", help="Pixels of the network's input. Default: its own.")
@click.option(
    "--as",
    "role",
    type=click.Choice(["depth", "normal", "mask", "detector"]),
    help="What a TorchScript file is. Default: depth where it gives one channel, normal where three.",
)
@click.option("--image", type=click.Path(exists=True, dir_okay=False), help="Look at this picture.")
@click.option(
    "--split",
    help="Look at the first person of this split. Default: one with annotated boxes; in the demo an infant.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False), help="Where the picture goes. Default: FILE's name.png."
)
@click.option("--device", default="cpu", show_default=True, help="Where to run it.")
@json_option
@click.pass_context
def check_command(
    context: click.Context, path: str, project: Project, as_json: bool, **options: str | None
) -> None:
    """What a weight file is, whether all its names match, what it needs, and what it says of one picture.

    A TorchScript file is a program: it is loaded and run, as precompute does. Exit 1 where names don't match
    or the network can't be used here: only what ran is usable.
    """
    from sagecache.cli.teachers_check import check, findings

    summary = check(project, Path(path), **options)
    if as_json:
        emit_json(summary)
    else:
        emit_table(str(path), ("", ""), findings(summary))
    context.exit(0 if summary["usable"] else 1)


def list_networks(project: Project) -> list[dict]:
    """One dict for each file of data.py's teacher and detector, and one for each that has none."""
    from sagecache.models.identify import SAPIENS, licence_of

    rows = []
    for role, config in (("teacher", project.data.teacher), ("detector", project.data.detector)):
        kind = str(config.get("type"))
        files = dict(config.get("files") or {}) or ({"": config["path"]} if config.get("path") else {})
        for output, path in files.items() or [("", None)]:
            row = dict(network=role, type=kind, gives=output, file=path or "in the package", GB="")
            known = None if path is None else licence_of(Path(path))
            row["licence"] = SAPIENS if kind == "sapiens" else known or ""
            if path is not None:
                row["GB"] = f"{_size(Path(path)) / 1e9:.2f}" if Path(path).exists() else "missing"
            rows.append(row)
    return rows


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files if one.is_file())


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
