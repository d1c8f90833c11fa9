"""``sagecache cache export | import``: targets out for other tools, and in from where they were computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.actions import import_maps
from sagecache.cli.context import json_option, project_option
from sagecache.cli.output import emit_json, emit_table, note, progress
from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from sagecache.project import Project
    from sagecache.store import StoreReader

_folder = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("export")
@project_option
@click.option("--split", required=True, help="Whose targets.")
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option(
    "--format",
    "format",
    type=click.Choice(["npz", "arrow", "images"]),
    default="npz",
    show_default=True,
    help="npz: a file an instance. arrow: Parquet files. images: PNG and JSON.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N instances that have targets.")
@click.option("--id", "image_ids", type=int, multiple=True, help="Only of this image (can be repeated).")
@click.option("--force", is_flag=True, help="Set a folder that is not empty aside, under another name.")
@json_option
def export_command(project: Project, split: str, as_json: bool, **options) -> None:
    """Decoded targets for other tools. Depth and normals are float32, NaN where there is none."""
    summary = export_targets(project, split, **options)
    if as_json:
        emit_json(summary)
        return
    columns = ("instances", "without targets", "MB", "folder")
    row = (
        summary["instances"],
        summary["without_targets"],
        f"{summary['bytes'] / 1e6:.1f}",
        summary["folder"],
    )
    emit_table(f"export of {split} as {summary['format']}", columns, [row])
    if summary["replaced"]:
        note(f"what was there is kept at {summary['replaced']}")


def export_targets(
    project: Project,
    split: str,
    folder: Path,
    format: str,
    limit: int | None = None,
    image_ids: tuple[int, ...] = (),
    force: bool = False,
) -> dict:
    """Write a split's targets into a folder; returns what was written."""
    from sagecache.precompute.leftovers import folder_bytes
    from sagecache.store import layout
    from sagecache.store.export import export

    project.split(split)
    reader = project.targets(split)
    if not (reader.root / layout.MANIFEST).exists():
        fix = f"Make it: sagecache precompute geo --split {split}"
        raise SagecacheError("there is no target store", file=reader.root, fix=fix)
    keys, without = _chosen(reader, image_ids)
    keys = keys[:limit]
    with progress(f"export {split}") as report:
        replaced = export(reader, keys, folder, format, force, report)
    return dict(
        split=split,
        folder=str(folder),
        format=format,
        instances=len(keys),
        without_targets=without,
        bytes=folder_bytes(folder),
        replaced=str(replaced) if replaced else None,
    )


def _chosen(reader: StoreReader, image_ids: tuple[int, ...]) -> tuple[list[tuple[int, int]], int]:
    """Instances that have targets, and how many have none; of all images or of these."""
    known = {key[0] for key in reader.ids.tolist()}
    for image_id in image_ids:
        if image_id not in known:
            near = sorted(known, key=lambda other: (abs(other - image_id), other))[:5]
            raise SagecacheError(
                f"no image {image_id} in the store",
                file=reader.root,
                fix=f"Nearest ids: {', '.join(map(str, near))}.",
            )
    lacking = {(one.image_id, one.instance) for one in reader.failures()}
    keys = [tuple(key) for key in reader.ids.tolist() if not image_ids or key[0] in image_ids]
    found = [key for key in keys if key not in lacking]
    if not found:
        raise SagecacheError("none of these instances has targets", file=reader.root)
    return found, len(keys) - len(found)


@click.command("import")
@project_option
@click.option("--split", required=True, help="Whose images the maps are of.")
@click.option("--depth", type=_folder, help="Folder of depth maps: NAME.npy for NAME.jpg, (H, W).")
@click.option("--normal", type=_folder, help="Folder of normal maps, (H, W, 3).")
@click.option("--mask", type=_folder, help="Folder of masks, (H, W) bool, or class numbers above 0.")
@click.option(
    "--map-size",
    type=(click.IntRange(2), click.IntRange(2)),
    metavar="W H",
    help="Of the targets. Default: that of data.py's teacher.",
)
@click.option(
    "--depth-kind",
    type=click.Choice(["affine", "metric", "disparity"]),
    default="affine",
    show_default=True,
    help="affine: true up to scale and offset.",
)
@click.option("--unit", help="Of metric depth. Default: m.")
@click.option("--towards", is_flag=True, help="Depth grows towards the camera: negate it.")
@click.option(
    "--normal-axes",
    type=click.Choice(["opengl", "opencv"]),
    default="opengl",
    show_default=True,
    help="opengl: x right, y up, z to the viewer, as Sapiens has them.",
)
@click.option("--workers", type=click.IntRange(1), help="Threads that read and cut maps.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N, into a place of their own.")
@click.option("--force", is_flag=True, help="Set the existing store aside and import all anew.")
@click.option("--strict", is_flag=True, help="Stop at the first instance that fails.")
@json_option
@click.pass_context
def import_command(
    context,
    project: Project,
    split: str,
    depth: Path | None,
    normal: Path | None,
    mask: Path | None,
    as_json: bool,
    **options,
) -> None:
    """Targets from folders of .npy maps. Maps of whole images, cut into a split's target store.

    Takes what the demo scripts of facebookresearch/sapiens write. Resumes; run again, it tests every checksum
    and makes anew what is damaged.
    """
    from sagecache.cli.precompute import finish

    given = {"depth": depth, "normal": normal, "mask": mask}
    folders = {name: folder for name, folder in given.items() if folder is not None}
    finish(context, as_json, [import_maps(project, split, folders, **options)], "import")
