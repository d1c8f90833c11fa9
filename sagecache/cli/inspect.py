"""``sagecache inspect ID``: everything known of an image's instances, as a picture and a table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagecache.cli.actions import ensure
from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import emit_json, emit_table
from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    import numpy as np

    from sagecache.project import Project, Recipe
    from sagecache.store import StoreReader
    from sagecache.structures import Instance

DEFAULT_RECIPE = "stage1-full"


@click.command("inspect", short_help="One image: picture, targets, provenance.")
@click.argument("image_id", type=int)
@project_option
@click.option("--split", help="Default: unlabeled, or labeled where there is no such split.")
@click.option("--instance", type=click.IntRange(0), help="Only this instance of the image. Default: all.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Add the predictions of its student and EMA teacher, and the gate's decision.",
)
@click.option(
    "--recipe",
    help="Whose filter and gate to apply. Default: that of the checkpoint's run, else stage1-full, or what "
    "the project has.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The picture. Default: below the cache."
)
@json_option
@click.pass_context
def inspect_command(context, image_id: int, project: Project, as_json: bool, **options) -> None:
    """Picture and provenance of image ID: boxes, keypoints, targets, where their bytes lie, stale or not.

    Exit 1 where the bytes of its targets are damaged.
    """
    summary = inspect(project, image_id, **options)
    if as_json:
        emit_json(summary)
    else:
        emit_table(f"image {image_id} of {summary['split']}", ("", ""), _pairs(summary))
        for row in summary["instances"]:
            emit_table(f"instance {row['instance']}", ("", ""), _pairs(row))
        click.echo(summary["picture"])
    context.exit(1 if any(row["damaged"] for row in summary["instances"]) else 0)


def inspect(
    project: Project,
    image_id: int,
    split: str | None = None,
    instance: int | None = None,
    checkpoint: Path | None = None,
    recipe: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Draw the picture, return what the table says."""
    from sagecache.data.coco import read_image

    split = split or ("unlabeled" if "unlabeled" in project.data.splits else "labeled")
    by = None if checkpoint is None else _trained_by(project, recipe, checkpoint)
    asked = project.embedded and (by is None or by.recipe.uses_geometry)  # a store that is there is shown
    ensure(project, project.split_requirements(split, geometry=asked))
    chosen = _find(project, split, image_id, instance)
    reader = _reader(project, split)
    predictions = {} if by is None else _predictions(project, by, checkpoint, chosen)
    image = read_image(chosen[0].path)
    panels, rows = [], []
    for one in chosen:
        row, targets = _row(project, reader, one)
        predicted = predictions.get(one.key)
        panels.append(_panel(project, split, reader, one, image, targets, predicted))
        rows.append(row | _predicted_row(predicted))
    out = out or project.cache_root / "inspect" / f"{split}_{image_id}.png"
    _write_picture(out, panels)
    return dict(
        image_id=image_id,
        split=split,
        file=str(_shortened(chosen[0].path)),
        size=f"{image.shape[1]} x {image.shape[0]}",
        **({} if by is None else dict(recipe=by.name)),
        store=_store_summary(project, split, reader),
        instances=rows,
        picture=str(out),
    )


def _shortened(path: Path) -> Path:
    """Without the way through a project's '..', unless a link makes that another file."""
    short = Path(os.path.normpath(path))
    return short if short.exists() and short.samefile(path) else path


@dataclass(frozen=True)
class _Judge:
    """The recipe whose filter and gate judge a checkpoint's poses, and the model that made them."""

    name: str
    recipe: Recipe
    model: dict[str, Any]


def _trained_by(project: Project, name: str | None, checkpoint: Path) -> _Judge:
    """The page of that name; without one the checkpoint's own run as it was trained, else a page."""
    from sagecache.project.runs import noted_start
    from sagecache.project.trained import trained_run

    if name is None and noted_start(checkpoint.parent) is not None:
        run = trained_run(project, work_dir=checkpoint.resolve().parent)
        return _Judge(run.name, run.recipe, run.model)
    name = name or _pose_recipe(project)
    return _Judge(name, *project.recipe(name))


def _panel(
    project: Project,
    split: str,
    reader: StoreReader | None,
    one: Instance,
    image: np.ndarray,
    targets: dict | None,
    predicted: Any,
) -> np.ndarray:
    from sagecache.visualization.report import inspect_panel

    about = reader.field_attributes("depth") if reader is not None and "depth" in reader.fields else {}
    return inspect_panel(
        image,
        _with_annotation(project, split, one),
        project.skeleton,
        targets,
        predicted,
        depth_kind=about.get("kind", "affine"),
        unit=about.get("unit"),
    )


def _write_picture(path: Path, panels: list[np.ndarray]) -> None:
    """Panels below each other. Raises SagecacheError for a name of no picture."""
    import cv2
    import numpy as np

    width = max(panel.shape[1] for panel in panels)
    sheet = np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0))) for p in panels])
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), sheet[..., ::-1])
    except cv2.error:  # no writer for such a name
        written = False
    if not written:
        raise SagecacheError("can't write the picture", file=path, fix="Give --out a name that ends in .png.")


def _find(project: Project, split: str, image_id: int, instance: int | None) -> list[Instance]:
    instances = project.instances(split)
    found = [one for one in instances if one.image_id == image_id and instance in (None, one.instance)]
    if not found:
        _require_boxes(project, split, image_id, {one.image_id for one in instances})
        known = sorted({one.image_id for one in instances}, key=lambda other: (abs(other - image_id), other))
        raise SagecacheError(
            f"split '{split}' has no image {image_id}"
            + ("" if instance is None else f", instance {instance}"),
            fix=f"Nearest ids: {', '.join(map(str, known[:5])) or 'none, the split is empty'}.",
        )
    return found


def _require_boxes(project: Project, split: str, image_id: int, with_boxes: set[int]) -> None:
    """Raises SagecacheError for an image that the split lists and none of whose boxes is used, saying so."""
    from sagecache.data.coco import image_path, load_coco, read_image

    settings = project.split(split)
    records = load_coco(project.path(settings.annotations))["images"]
    record = next((one for one in records if one["id"] == image_id), None)
    if record is None or image_id in with_boxes:
        return
    path = image_path(project.path(settings.images), record)
    try:
        read_image(path)
    except SagecacheError as error:
        message = f"image {image_id} of split '{split}' can't be read: {error.message}"
        raise SagecacheError(message, file=path, fix=error.fix) from error
    boxes = settings.annotations if settings.boxes == "annotations" else project.detections(split)
    raise SagecacheError(
        f"image {image_id} is in split '{split}' and has no person's box that is used",
        file=path,
        fix=f"The boxes are those of {boxes}.",
    )


def _with_annotation(project: Project, split: str, one: Instance) -> Instance:
    """A detected instance shows the annotation that it overlaps best, where the split has any."""
    from sagecache.data.matching import with_annotation

    return one if one.keypoints is not None else with_annotation(one, project.instances(split, "annotations"))


def _reader(project: Project, split: str) -> StoreReader | None:

    root = project.geometry_store(split)
    return project.targets(split, partial=True) if (root / "manifest.json").is_file() else None


def _row(project: Project, reader: StoreReader | None, one: Instance) -> tuple[dict[str, Any], dict | None]:
    """Table rows of one instance, and its targets if it has any."""
    from sagecache.cli.jobs import is_imported
    from sagecache.store.arrays import DamagedChunk
    from sagecache.store.fingerprint import file_sha256
    from sagecache.store.spec import STATUS_TEXT, UNREADABLE

    x, y, width, height = one.bbox
    bbox = f"{x:.1f} {y:.1f} {width:.1f} {height:.1f}"
    row = dict(instance=one.instance, bbox=bbox, score=one.score, damaged=False)
    if reader is None:
        return row | dict(status="no store"), None
    try:
        targets = reader.read(*one.key)
    except SagecacheError as error:
        damaged = isinstance(error.__cause__, DamagedChunk)
        told = str(error)
        if is_imported(reader.fingerprint):  # the status has no words for a map
            told = told.replace(STATUS_TEXT[UNREADABLE], "the image or its map could not be read")
        return row | dict(status=project.command(told), damaged=damaged), None
    same = file_sha256(one.path) == reader.image_sha256(*one.key)
    row["status"] = "ok" if same else "the image file was replaced since: precompute geo again, with --force"
    for name, (path, offset, length) in reader.locate(*one.key).items():
        row[f"bytes of {name}"] = f"{path.removeprefix(f'{reader.root}/')} [{offset}:{offset + length}]"
    if "depth_range" in targets:
        low, step = targets["depth_range"]
        levels = targets["depth"][targets["depth"] > 0]
        high = low + (int(levels.max(initial=1)) - 1) * step
        row["depth"] = f"{low:.4g} to {high:.4g}, step {step:.2g} (the picture: 2nd to 98th percentile)"
    if "mask" in targets:
        row["mask"] = f"{100 * targets['mask'].mean():.1f} % of the crop"
    return row, targets


def _store_summary(project: Project, split: str, reader: StoreReader | None) -> dict[str, Any]:
    from sagecache.cli.jobs import stale_boxes, stale_parts, teacher_of

    if reader is None:
        return dict(status="none; run " + project.command(f"sagecache precompute geo --split {split}"))
    parts = stale_boxes(project, split), stale_parts(project, split, teacher_of(project, [split]))
    return dict(
        path=str(reader.root),
        complete=reader.complete,
        instances=len(reader),
        fields=", ".join(reader.fields),
        teacher=_teacher_name(reader),
        fingerprint=reader.fingerprint_sha256[:16],
        stale="; ".join(filter(None, parts)) or "no",
    )


def _teacher_name(reader: StoreReader) -> str:
    teacher = reader.fingerprint["teacher"]
    return teacher.get("spec", {}).get("name", teacher.get("type", ""))


def _predictions(
    project: Project, by: _Judge, checkpoint: Path, chosen: list[Instance]
) -> dict[tuple[int, int], Any]:
    from sagecache.mm.explain import explain_as
    from sagecache.visualization.report import Predictions

    needs = project.requirements(by.recipe)
    ensure(project, [one for one in needs if one.kind == "stats" or one.what == "ddp-prior"])
    explained = explain_as(project, by.recipe, by.model, checkpoint, chosen)
    return {key: Predictions(**values) for key, values in explained.items()}


def _pose_recipe(project: Project) -> str:
    """The recipe whose gate is asked where neither the command nor the checkpoint says.

    Raises SagecacheError in a project without any.
    """
    names = [name for name in project.recipe_names() if project.recipe(name)[0].kind != "prior"]
    for name in (DEFAULT_RECIPE, "stage0", *names):
        if name in names:
            return name
    raise SagecacheError("no recipe of a pose network", file=project.folder, fix="Add a page, as stage0.py.")


def _predicted_row(predicted: Any) -> dict[str, Any]:
    if predicted is None:
        return {}
    row = dict(confidence=f"{predicted.ema_teacher[:, 2].mean():.3f}", gate=predicted.gate)
    if predicted.keep is not None:
        row |= dict(plausibility=f"{predicted.plausibility:.3f}", kept_joints=predicted.kept)
    return row


def _pairs(summary: dict[str, Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in summary.items():
        if isinstance(value, dict):
            pairs += [(f"{key}.{inner}", str(item)) for inner, item in value.items()]
        elif not isinstance(value, list) and key != "picture" and (key, value) != ("damaged", False):
            pairs.append((key, str(value)))
    return pairs
