"""The command group: ``--project``, ``--debug``, exit codes (0 done, 1 failed check, 2 bad input).

Commands are imported when they are called or listed; they import torch and mmpose only when they run.
"""

from __future__ import annotations

import importlib
import os
import re
import sys

import click

from sagecache import __version__
from sagecache.errors import SagecacheError

# command -> module of sagecache.cli that defines a click command of that name
COMMANDS = {
    "demo": "demo",
    "init": "init",
    "data": "data",
    "precompute": "precompute",
    "cache": "cache",
    "train": "train",
    "eval": "evaluate",
    "predict": "predict",
    "export": "train",
    "inspect": "inspect",
    "report": "report",
    "teachers": "teachers",
    "ablate": "ablate",
    "doctor": "doctor",
}
OF_THE_GROUP = ("--draw", "--debug")  # options that no command takes itself


class LazyGroup(click.Group):
    """Commands by name; order of listing is the order of use."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[name]}", __package__)
        return getattr(module, f"{name}_command")

    def resolve_command(self, context: click.Context, args: list[str]):
        from sagecache.errors import nearest

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"No command '{args[0]}': {nearest(args[0], COMMANDS)}.", context)
        return super().resolve_command(context, args)


@click.command(cls=LazyGroup, context_settings=dict(help_option_names=["-h", "--help"]))
@click.option(
    "--project", type=click.Path(file_okay=False), help="Folder of the project (any command takes it)."
)
@click.option(
    "--draw",
    metavar="N[:LABELS]",
    help="Repetition N of the experiment: other labeled images (LABELS of them) and seeds, runs of its own. "
    "Goes before the command: sagecache --draw 2 train stage0.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error. Goes before the command.")
@click.version_option(__version__, prog_name="sagecache")
def cli(project: str | None, draw: str | None, debug: bool) -> None:
    """Fine-tune top-down pose models on few labels: frozen teachers run once, into a cache."""


# Packages between us and an object store; their errors are of the network, the endpoint or the credentials.
_OBJECT_STORES = frozenset(("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs", "gcsfs", "adlfs"))


def unreachable(error: Exception) -> SagecacheError | None:
    """What to check where an object store did not answer; None for any other error. Imports none of them."""
    if type(error).__module__.partition(".")[0] not in _OBJECT_STORES:
        return None
    without_query = re.sub(r"(://[^\s\"'?]*)\?[^\s\"']*", r"\1", str(error)).strip()
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    return SagecacheError(
        f"the object store can't be used: {without_query or type(error).__name__}",
        fix=f"Check AWS_ENDPOINT_URL ({endpoint or 'not set'}), the credentials and the network, then run "
        "the same command again: what is committed is kept.",
    )


def _mendable(error: Exception) -> str:
    """What to tell of an error that is the user's to mend; '' for a fault of ours."""
    if isinstance(error, SagecacheError):
        return str(error)
    if (told := unreachable(error)) is not None:
        return str(told)
    if isinstance(error, OSError):  # a full disk, a folder that can't be written
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or type(error).__name__
        return f"{where}{reason}. Mend that, or see where it came from with --debug."
    return ""


def main() -> None:
    """Entry point: one line for an error that the user can mend, a traceback with --debug."""
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and error.option_name in OF_THE_GROUP:
            error.message += f" It goes before the command: sagecache {error.option_name} …"
            error.possibilities = None
        error.show()
        code = error.exit_code
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt) as stop:
        click.echo(f"stopped; {str(stop) or 'run the same command again to go on'}", err=True)
        code = 130
    except Exception as error:
        if debug or not (told := _mendable(error)):
            raise
        click.echo(f"error: {told}", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
