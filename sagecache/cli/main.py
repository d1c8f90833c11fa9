"""The command group: ``--project``, ``--debug``, exit codes (0 done, 1 failed check, 2 bad input).

Commands are imported when they are called or listed; they import torch and mmpose only when they run.
"""

from __future__ import annotations

import importlib
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
    "export": "train",
    "inspect": "inspect",
    "teachers": "teachers",
    "doctor": "doctor",
}


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
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="sagecache")
def cli(project: str | None, debug: bool) -> None:
    """Fine-tune top-down pose models on few labels: frozen teachers run once, into a cache."""


def main() -> None:
    """Entry point: one line for an error that the user can mend, a traceback with --debug."""
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except SagecacheError as error:
        if debug:
            raise
        click.echo(f"error: {error}", err=True)
        code = 2
    except OSError as error:  # a full disk, a folder that can't be written: the user's to mend as well
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or type(error).__name__
        click.echo(f"error: {where}{reason}. Mend that, or see where it came from with --debug.", err=True)
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt) as stop:
        click.echo(f"stopped; {str(stop) or 'run the same command again to go on'}", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
