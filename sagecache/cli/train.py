"""``sagecache train RECIPE`` and ``sagecache export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli import actions
from sagecache.cli.context import project_option
from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from sagecache.project import Project


@click.command("train", short_help="Train a recipe of the project.")
@click.argument("recipe")
@project_option
@click.option(
    "--work-dir", type=click.Path(file_okay=False, path_type=Path), help="Where checkpoints and logs go."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the work dir.")
@click.option(
    "--max-iters", type=click.IntRange(1), help="Stop after this many; the schedule stays the recipe's."
)
@click.option("--amp", is_flag=True, help="bfloat16 autocast in the forward passes.")
@click.option("--wandb", is_flag=True, help="Log to Weights & Biases too; WANDB_MODE=offline stays here.")
@click.option(
    "--seed", type=click.IntRange(0), help="Seed of views, batches and heads. Default: the recipe's."
)
@click.option(
    "--cfg-options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override leaves of the recipe or model: a.b=1. Repeatable.",
)
@click.argument("more_options", nargs=-1, metavar="[KEY=VALUE]...")
def train_command(
    recipe: str,
    project: Project,
    amp: bool,
    cfg_options: tuple[str, ...],
    more_options: tuple[str, ...],
    **options,
) -> None:
    """Train a RECIPE of the project: stage0, ddp-prior, stage1-full, …"""
    from sagecache.project.overrides import parse_overrides

    if options["wandb"]:
        from sagecache.mm.tracking import require_wandb

        require_wandb()  # before what is missing is made, which may take minutes
    overrides = parse_overrides([*cfg_options, *more_options]) | ({"amp": True} if amp else {})
    begun = time.time()
    try:
        actions.train(project, recipe, overrides=overrides, **options)
    except KeyboardInterrupt as stop:
        work_dir = options["work_dir"] or project.work_dir(recipe)
        raise click.Abort(how_to_go_on(work_dir, options["resume"], begun)) from stop


def how_to_go_on(work_dir: Path, resume: bool, begun: float) -> str:
    """After Ctrl-C. begun: when the command started; unless it resumed, older checkpoints aren't its own."""
    saved = [path for path in work_dir.glob("iter_*.pth") if resume or path.stat().st_mtime >= begun]
    if not saved:
        return "no checkpoint was written yet, so the same command starts the training anew"
    if resume:
        return "run the same command again to go on"
    return f"add --resume to the same command to go on from the last checkpoint in {work_dir}"


@click.command("export", short_help="For mmpose, ONNX, TorchScript, Hugging Face.")
@project_option
@click.option(
    "--checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: the newest."
)
@click.option(
    "--network", type=click.Choice(["ema_teacher", "student"]), default="ema_teacher", show_default=True
)
@click.option(
    "--to",
    "kind",
    type=click.Choice(["mmpose", "onnx", "torchscript", "huggingface"]),
    help="Default: by OUTPUT's suffix (.pth .safetensors, .onnx, .pt; none: a Hugging Face folder).",
)
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.argument("output", type=click.Path(path_type=Path))
def export_command(
    project: Project, checkpoint: Path | None, network: str, kind: str | None, force: bool, output: Path
) -> None:
    """Write a trained network to OUTPUT, and run what was written against the original.

    For mmpose: a checkpoint and its config. ONNX and TorchScript: a function of RGB pictures (B, 3, H, W) of
    0..255 that normalises them itself. Hugging Face: a folder for VitPoseForPoseEstimation.
    """
    from sagecache.mm.export import export

    output = output.absolute()  # '.' has no name of its own
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = newest_checkpoint(project, checkpoint)
    written = export(project, checkpoint, output, network, kind, force)
    for told in (f"{checkpoint} ({network})", *written):
        click.echo(told)


def newest_checkpoint(project: Project, checkpoint: Path | None) -> Path:
    """The given checkpoint, else the project's newest. Raises SagecacheError where there is none."""
    found = checkpoint or project.checkpoint()
    if found is None:
        recipe = "stage1-full" if "stage1-full" in project.recipe_names() else "stage0"
        fix = "Run: " + project.command(f"sagecache train {recipe}")
        raise SagecacheError("no checkpoint yet", file=project.folder, fix=fix)
    return found
