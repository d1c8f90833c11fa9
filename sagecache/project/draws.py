"""Draws: repetitions of an experiment, each with labeled images and seeds of its own.

A result that hangs on one draw of 24 labels says little; several draws say how much it varies with them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sagecache.data.coco import load_coco
from sagecache.data.splits import draw_images, subset
from sagecache.errors import SagecacheError
from sagecache.project.settings import DataSettings, SplitSettings
from sagecache.store.files import write_whole
from sagecache.strict import at_least

if TYPE_CHECKING:
    from sagecache.project.project import Project

SEED_STEP = 1000  # between the render seeds of a split's draws: pages count their splits' seeds by ones


@dataclass(frozen=True)
class Draw:
    """Number of the repetition, and how many images each labeled split has in it (None: as its page says).

    splits: those whose images are the draw's own.
    """

    number: int = 0
    labels: int | None = None
    splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least("the draw's number", self.number, 0)
        if self.labels is not None:
            at_least("the number of labeled images", self.labels, 1)

    @property
    def name(self) -> str:
        """Of its folders; '' for the project as it is."""
        return "draw" + self.text.replace(":", "_") if self.text else ""

    @property
    def text(self) -> str:
        """As ``--draw`` takes it: '3', '3:100'; '' for the project as it is."""
        if self.labels is not None:
            return f"{self.number}:{self.labels}"
        return str(self.number) if self.number else ""

    @classmethod
    def parse(cls, text: str) -> Draw:
        match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
        if match is None:
            raise SagecacheError(
                f"'{text}' is no draw", file="--draw", fix="Write 3, or 3:100 for 100 labels."
            )
        return cls(int(match[1]), None if match[2] is None else int(match[2]))


def redrawn_splits(data: DataSettings, draw: Draw) -> dict[str, SplitSettings]:
    """The labeled splits as the draw has them; those that it leaves as they are are not among them."""
    root, own = data.cache_root / draw.name, {}
    for name in data.stats_splits:
        split = data.splits[name]
        if split.render is not None:
            folder, render = root / "data" / name, split.render
            seed, count = render.seed + SEED_STEP * draw.number, draw.labels or render.count
            own[name] = replace(
                split,
                images=folder / "images",
                annotations=folder / "annotations.json",
                render=replace(render, seed=seed, count=count),
            )
        elif draw.labels is not None:
            own[name] = replace(split, annotations=root / f"{name}.json")
    for name, split in own.items():
        _refuse_pictures_of_another_split(name, split, data)
    return own


def _refuse_pictures_of_another_split(name: str, split: SplitSettings, data: DataSettings) -> None:
    for other, settings in data.splits.items():
        pictures = settings.render
        if other == name or pictures is None or split.render is None:
            continue
        if (pictures.look, pictures.seed) == (split.render.look, split.render.seed):
            raise SagecacheError(
                f"this draw of '{name}' would render the pictures of '{other}' (seed {pictures.seed})",
                file="data.py",
                fix="Give that split another seed, or ask for fewer draws.",
            )


def write_label_lists(project: Project, whole: Project) -> None:
    """Write the COCO files of the draw's splits of own data, unless they are there and up to date.

    whole: the project as it is. Raises SagecacheError where it has fewer labeled images.
    """
    for name in project.draw.splits:
        if project.split(name).render is not None:
            continue
        source, target = (
            whole.path(whole.split(name).annotations),
            project.path(project.split(name).annotations),
        )
        found = source.stat()
        made_from = dict(file=str(source), bytes=found.st_size, written_ns=found.st_mtime_ns)
        if target.is_file() and json.loads(target.read_text()).get("info", {}).get("drawn_from") == made_from:
            continue
        content = load_coco(source)
        drawn = subset(content, draw_images(content, project.draw.labels, project.draw.number))
        info = drawn.get("info")
        drawn["info"] = dict(info if isinstance(info, dict) else {}, drawn_from=made_from)
        write_whole(target, json.dumps(drawn).encode())
