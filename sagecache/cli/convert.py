"""``sagecache data convert FORMAT SOURCE OUTPUT``: other formats become files that `init` takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.context import json_option
from sagecache.cli.output import PICTURE, emit_json, emit_table, note, progress, require_places
from sagecache.errors import SagecacheError, counted

if TYPE_CHECKING:
    from sagecache.data.convert import Reading, Report

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)
AREAS = ("bbox53", "bbox", "annotation")  # of sagecache.data.convert.AREA_RULES
MOST_NOTES = 12  # on the screen; the file has them all

Reader = Callable[..., "Reading"]


def common_options(function: Callable) -> Callable:
    """--force, --preview and --json; the function returns what is to be printed."""

    @click.option("--force", is_flag=True, help="Replace what is there.")
    @click.option(
        "--preview", type=OUTPUT, help="Also draw some pictures with their skeletons into this PNG."
    )
    @json_option
    @functools.wraps(function)
    def wrapper(*args, as_json: bool, **options) -> None:
        tell(function(*args, **options), as_json)

    return wrapper


@click.group("convert")
def convert_command() -> None:
    """Bring labels of other formats, or videos, as COCO keypoint files with COCO's 17 joints."""


def converter(
    name: str, area: str, *, stated: bool = False, named: bool = False
) -> Callable[[Reader], Reader]:
    """Make `convert NAME SOURCE OUTPUT` of a function that reads SOURCE; its docstring is the help.

    area: the rule by default; stated: the format has areas of its own. named: joints are found by their
    names, so that the function takes --map's too.
    """

    def register(read: Reader) -> Reader:
        @_area_option(area, stated)
        @common_options
        def convert(
            source: Path,
            output: Path,
            images: Path | None,
            area: str,
            force: bool,
            preview: Path | None,
            renamed: tuple[str, ...] | None = None,
        ) -> Report:
            _require_free(output, source, preview, force)
            reading = read(source) if renamed is None else read(source, parse_map(renamed))
            return finish(reading, output, images, area, preview)

        options = (_map_option, _images_option) if named else (_images_option,)
        places = (click.argument("output", type=OUTPUT), click.argument("source", type=FILE))
        for option in (*options, *places):  # the last one comes first in the help
            convert = option(convert)
        convert_command.command(name, help=read.__doc__)(convert)
        return read

    return register


_images_option = click.option(
    "--images",
    type=FOLDER,
    help="Folder that the file names start at: what is not there is left out, and sizes are compared.",
)
_map_option = click.option(
    "--map",
    "renamed",
    multiple=True,
    metavar="THEIRS=OURS",
    help="What a joint is called here, such as 'Schulter links=left_shoulder'; 'neck=none' leaves it out. "
    "Can be repeated.",
)


def _area_option(default: str, stated: bool = False) -> Callable:
    return click.option(
        "--area",
        type=click.Choice(AREAS if stated else AREAS[:2]),
        default=default,
        show_default=True,
        help="Of a person, for OKS. bbox53: .53 w h of the box, as mmpose. bbox: w h."
        + (" annotation: as the file says." if stated else ""),
    )


@convert_command.command("mini-rgbd")
@click.argument("source", type=FOLDER)
@click.argument("output", type=OUTPUT)
@click.option(
    "--sequences", help="Only these: names and ranges, such as 01-08,10. Splits are made of whole sequences."
)
@_area_option("bbox53")
@common_options
def mini_rgbd_command(
    source: Path, output: Path, sequences: str | None, area: str, force: bool, preview: Path | None
) -> Report:
    """MINI-RGBD's folder of sequences (25 SMIL joints, 13 of them COCO's) to a COCO file.

    SOURCE is the image folder for 'sagecache init --images'.
    """
    from sagecache.data.mini_rgbd import read_mini_rgbd

    _require_free(output, source, preview, force)
    wanted = None if sequences is None else [word.strip() for word in sequences.split(",") if word.strip()]
    with progress("mini-rgbd") as report:
        reading = read_mini_rgbd(source, wanted, report)
    return finish(reading, output, source, area, preview)


@converter("wholebody", "annotation", stated=True)
def _wholebody(source: Path) -> Reading:
    """A COCO-WholeBody file to its 17 body joints."""
    from sagecache.data.coco_variants import read_wholebody

    return read_wholebody(source)


@converter("syrip", "bbox53", stated=True)
def _syrip(source: Path) -> Reading:
    """A SyRIP file, with ids from 1 and an area that all its files share.

    Its own area has another rule in each file, so that it is not the default.
    """
    from sagecache.data.coco_variants import read_syrip

    return read_syrip(source)


@converter("cvat", "bbox53", named=True)
def _cvat(source: Path, renamed: dict[str, str]) -> Reading:
    """CVAT's export 'CVAT for images 1.1' (XML) or 'COCO Keypoints 1.0' (JSON), unpacked."""
    from sagecache.data.cvat import read_cvat

    return read_cvat(source, renamed=renamed)


@converter("coco", "annotation", stated=True, named=True)
def _coco(source: Path, renamed: dict[str, str]) -> Reading:
    """Any COCO keypoint file whose category names its joints; persons without a box get one around them."""
    from sagecache.data.coco_variants import read_named
    from sagecache.skeleton.definition import COCO17

    return read_named(source, COCO17, renamed, format="COCO")


@converter("label-studio", "bbox53", named=True)
def _label_studio(source: Path, renamed: dict[str, str]) -> Reading:
    """Label Studio's export 'JSON', its keypoints labeled by joint names."""
    from sagecache.data.label_studio import read_label_studio

    return read_label_studio(source, renamed=renamed)


@convert_command.command("video")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--every", type=click.IntRange(1), help="Every N-th frame. Default: 1, all of them.")
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="At most so many frames a second.")
@click.option("--limit", type=click.IntRange(1), help="At most so many frames of each video.")
@click.option("--keep-cut", is_flag=True, help="Keep what can be read of a video that is cut off.")
@common_options
def video_command(
    source: Path,
    output: Path,
    every: int | None,
    fps: float | None,
    limit: int | None,
    keep_cut: bool,
    force: bool,
    preview: Path | None,
) -> Report:
    """Frames of a video, or of a folder of them, as a split: OUTPUT/images and OUTPUT/annotations.json.

    --force sets a folder that is there aside, under another name.
    """
    from sagecache.data.videos import IMAGES, FrameChoice, video_files, write_frames

    if every is not None and fps is not None:
        raise SagecacheError("--every and --fps exclude each other", fix="Give one of them")
    _require_free_preview(preview, force)
    choice = FrameChoice(every or 1, fps, limit)
    with progress("video") as told:
        coco, report = write_frames(
            video_files(source), output, choice, force=force, keep_cut=keep_cut, progress=told
        )
    draw_preview(preview, coco, output / IMAGES)
    return report


def finish(reading: Reading, output: Path, images: Path | None, area: str, preview: Path | None) -> Report:
    """Find the images, convert, draw the preview, then write the file."""
    from sagecache.data.convert import to_coco, write_coco
    from sagecache.data.picture_files import find_pictures

    if preview is not None and images is None:
        raise SagecacheError("--preview draws on the images", fix="Give their folder: --images")
    if images is not None and reading.file != images:  # MINI-RGBD's reader has found them itself
        with progress("images") as told:
            reading = find_pictures(reading, images, told)
    coco, report = to_coco(reading, area=area)
    draw_preview(preview, coco, images)
    write_coco(output, coco)
    note(f"{output}: {counted(report.images, 'image')}, {counted(report.persons, 'person')}")
    return report


def draw_preview(path: Path | None, coco: Mapping, images: Path | None) -> None:
    if path is None:
        return
    import cv2

    from sagecache.skeleton import COCO17
    from sagecache.store.files import write_whole
    from sagecache.visualization.annotations import annotation_sheet

    sheet = annotation_sheet(coco, images, COCO17)
    write_whole(path, cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    note(f"preview: {path}")


def parse_map(words: tuple[str, ...]) -> dict[str, str]:
    """{'theirs': 'ours'} of 'theirs=ours'; only the last '=' parts them."""
    pairs = [word.rpartition("=") for word in words]
    for word, (theirs, _, ours) in zip(words, pairs, strict=True):
        if not theirs or not ours:
            raise SagecacheError(
                f"--map '{word}' is not THEIRS=OURS", fix="For example --map L_Sho=left_shoulder"
            )
    return {theirs.strip(): ours.strip() for theirs, _, ours in pairs}


def tell(report: Report, as_json: bool) -> None:
    """What was kept, dropped and decided, on stdout."""
    if as_json:
        emit_json(report.as_dict())
        return
    if report.joints:
        rows = [(name, count) for name, count in report.joints.items()]
        emit_table(report.format, ("joint", "persons"), rows)
    click.echo(f"{counted(report.images, 'image')}, {counted(report.persons, 'person')}")
    for reason, count in report.dropped.items():
        click.echo(f"left out: {count} {reason}")
    for line in report.notes[:MOST_NOTES]:
        click.echo(line)
    if len(report.notes) > MOST_NOTES:
        click.echo(f"… and {len(report.notes) - MOST_NOTES} more such lines in the file")


def _require_free(output: Path, source: Path, preview: Path | None, force: bool) -> None:
    """Before the work, not after it."""
    from sagecache.data.convert import require_free

    require_free(output, source, force)
    if preview is not None and preview.resolve() == output.resolve():
        raise SagecacheError("labels and preview can't be one file", file=preview, fix="Give another name")
    _require_free_preview(preview, force)


def _require_free_preview(preview: Path | None, force: bool) -> None:
    """--force replaces an earlier picture, and nothing else."""
    if preview is None:
        return
    if preview.exists() and not force:
        raise SagecacheError("is already there", file=preview, fix="Give another name, or --force")
    if preview.exists():
        require_places({preview: PICTURE})
