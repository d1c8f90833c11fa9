"""What a command needs and lacks: made on the spot in the demo, an error with the commands elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sagecache.cli.output import note
from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from sagecache.project import Project, Requirement


def ensure(project: Project, requirements: Sequence[Requirement]) -> None:
    """Make what is missing (demo), or raise SagecacheError with the exact commands (any other project)."""
    if not project.embedded:
        missing = [need for need in requirements if not need.present()]
        if missing:
            raise SagecacheError(
                "missing: " + ", ".join(f"{need.kind} of {need.what}" for need in missing),
                file=project.folder,
                fix="Run: " + " && ".join(need.command for need in missing),
            )
        return
    for need in requirements:
        if not need.present():
            note(f"{need.kind} '{need.what}' is not there yet: {need.command}")
            _make(project, need)


def _make(project: Project, need: Requirement) -> None:
    from sagecache.cli import data, precompute, train

    makers = {
        "split": lambda: data.synth(project, need.what),
        "boxes": lambda: precompute.detect(project, need.what),
        "geo": lambda: precompute.geo(project, need.what),
        "stats": lambda: precompute.stats(project),
        "recipe": lambda: train.run(project, need.what),
    }
    makers[need.kind]()
