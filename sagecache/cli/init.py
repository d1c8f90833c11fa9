"""``sagecache init FOLDER``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from sagecache.cli.output import note

PAGES = ("demo", "nk_sapiens", "sage_pose")  # of sagecache.project.init
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("init", short_help="Write a project for your own data.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--images", type=FOLDER, required=True, help="Folder of the labeled images.")
@click.option("--labeled", type=FILE, required=True, help="COCO keypoint JSON of the labeled images.")
@click.option("--val", type=FILE, help="COCO keypoint JSON for validation. Default: the labeled one.")
@click.option("--test", type=FILE, help="COCO keypoint JSON for the final figure.")
@click.option("--val-images", type=FOLDER, help="Folder of the validation images. Default: --images.")
@click.option("--test-images", type=FOLDER, help="Folder of the test images. Default: --images.")
@click.option("--unlabeled-images", type=FOLDER, help="Folder of the unlabeled images.")
@click.option(
    "--unlabeled-annotations", type=FILE, help="COCO JSON that lists them. Default: made from the folder."
)
@click.option(
    "--detections", type=FILE, help="COCO detection JSON (mmpose's bbox_file) of the unlabeled images."
)
@click.option("--dataset-info", type=FILE, help="mmpose dataset_info page of another skeleton than COCO-17.")
@click.option(
    "--pages",
    type=click.Choice(PAGES),
    default="demo",
    show_default=True,
    help="Student, recipes, frozen networks: the demo's small ones to try data out, Sapiens', ViTPose's.",
)
@click.option("--force", is_flag=True, help="Write the pages of an existing project anew.")
def init_command(folder: Path, pages: str, force: bool, **options) -> None:
    """Write a project FOLDER for your own COCO-format data."""
    from sagecache.project.init import UserData, write_project

    written = write_project(folder, UserData(**options), pages, force)
    for path in written:
        click.echo(path)
    if others := sorted(
        {path.name for path in written[0].parent.glob("*.py")} - {one.name for one in written}
    ):
        note(f"left as they were: {', '.join(others)}")
    if pages == "demo":
        note(
            "model.py and the recipes are the demo's: a small student, a few hundred steps; for Sapiens or "
            "ViTPose give --pages nk_sapiens or sage_pose"
        )
    else:
        note(
            "put the checkpoints where data.py and stage0.py name them, or correct these; 'sagecache "
            "teachers check FILE' says what a file is"
        )
    if options["val"] is None:
        note("val is the labeled split: its figures flatter; --val names images that no recipe learns from")
    click.echo(f"next: sagecache --project {shlex.quote(str(folder))} data check")
