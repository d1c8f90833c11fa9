"""Options that many commands share, and the project that they open."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagecache.cli.output import note
from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from sagecache.project import Project


def project_option(function: Callable) -> Callable:
    """Add ``--project DIR`` and pass the opened project as the keyword ``project``."""

    @click.option(
        "--project",
        "project_folder",
        type=click.Path(file_okay=False),
        help="Folder of the project. Default: $SAGECACHE_PROJECT, else the embedded demo.",
    )
    @functools.wraps(function)
    def wrapper(*args: Any, project_folder: str | None, **kwargs: Any) -> Any:
        project = open_project(project_folder)
        try:
            return function(*args, project=project, **kwargs)
        except SagecacheError as error:
            if error.fix is None:
                raise
            # the rooms below name the command; which project it is for is known here
            fix = project.command(error.fix)
            raise SagecacheError(error.message, file=error.file, record=error.record, fix=fix) from error

    return wrapper


def open_project(folder: str | None) -> Project:
    from sagecache.project import Project

    project = Project.open(folder or _typed("project"))
    if project.embedded:
        _tell_of_projects_here(project.folder)
    return redrawn(project)


def _tell_of_projects_here(demo: Path) -> None:
    """Who forgets --project beside a project of their own would work on the demo and not know."""
    pages = sorted([*Path.cwd().glob("data.py"), *Path.cwd().glob("*/data.py")])
    others = [page.parent for page in pages if (page.parent / "model.py").is_file() and page.parent != demo]
    if others:
        here = shlex.quote(os.path.relpath(others[0]))
        note(f"the embedded demo; for the project here: --project {here}")


def redrawn(project: Project) -> Project:
    """The project in the draw that ``sagecache --draw`` names, with the lists of its labels written."""
    from sagecache.project.draws import Draw, write_label_lists

    if (text := _typed("draw")) is None:
        return project
    draw = Draw.parse(text)
    drawn = project.redrawn(draw.number, draw.labels)
    write_label_lists(drawn, project)
    return drawn


def _typed(option: str) -> str | None:
    """An option of ``sagecache`` itself, before the command."""
    return click.get_current_context().find_root().params.get(option)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
