"""Find a project, read its pages, and say where everything of it lies and what a recipe still needs.

Pages are mmengine configs: ``data.py``, ``model.py`` and one page a recipe. Reads and names; makes nothing.
"""

from __future__ import annotations

import ast
import copy
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sagecache.data.coco import (
    instances_from_annotations,
    instances_from_detections,
    load_coco,
    load_detections,
)
from sagecache.errors import SagecacheError, nearest
from sagecache.project.draws import Draw, redrawn_splits
from sagecache.project.recipe import Recipe
from sagecache.project.runs import finished_run, newest_work_dir, standing_checkpoint
from sagecache.project.settings import DataSettings, SplitSettings
from sagecache.skeleton.definition import COCO17, Skeleton
from sagecache.store.files import open_root
from sagecache.store.joined import JoinedReader
from sagecache.store.reader import Kept, StoreReader
from sagecache.strict import build
from sagecache.structures import Instance

PAGES = ("data", "model")
EXPORTED = "# Written by sagecache export"  # begins a config that stands beside exported weights


def embedded_project() -> Path:
    """Folder of the demo project: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "configs" / "demo", package.parent / "configs" / "demo"]
    for folder in candidates:
        if (folder / "data.py").is_file():
            return folder
    raise SagecacheError("the embedded project is missing", file=candidates[0], fix="Reinstall sagecache.")


def is_exported(page: Path) -> bool:
    """Whether a page is an export's config for mmpose, no page of a project."""
    with page.open(errors="replace") as file:
        return file.readline().startswith(EXPORTED)


@dataclass(frozen=True)
class Requirement:
    """Something that a command needs. ``command`` makes it; ``present`` looks again at every call."""

    kind: str
    what: str
    command: str
    present: Callable[[], bool]


class Project:
    """A folder of configs. ``Project.open()`` is the demo, or $SAGECACHE_PROJECT.

    draw: which repetition of the experiment it is, see `redrawn`.
    """

    def __init__(self, folder: Path, data: DataSettings, model: dict[str, Any], embedded: bool) -> None:
        self.folder, self.data, self.model, self.embedded = folder, data, model, embedded
        self.draw = Draw()

    @classmethod
    def open(cls, folder: str | Path | None = None) -> Project:
        folder = folder or os.environ.get("SAGECACHE_PROJECT")
        if not folder:
            return cls.demo()
        return cls._read(Path(folder).expanduser().resolve(), embedded=False)

    @classmethod
    def demo(cls) -> Project:
        """The embedded project, whatever $SAGECACHE_PROJECT says."""
        return cls._read(embedded_project(), embedded=True)

    @classmethod
    def _read(cls, folder: Path, embedded: bool) -> Project:
        page = folder / "data.py"
        if not page.is_file():
            raise SagecacheError(
                "no data.py, so this is no project", file=folder, fix="Make one: sagecache init DIR."
            )
        data = build(DataSettings, read_page(page), page)
        model = read_page(folder / "model.py")
        if not isinstance(model.get("model"), Mapping):
            raise SagecacheError(
                "no 'model' in it that is a dict", file=folder / "model.py", fix="Set model = dict(type=…)."
            )
        project = cls(folder, data, model["model"], embedded)
        project.data = replace(
            data, teacher=project._with_paths(data.teacher), detector=project._with_paths(data.detector)
        )
        return project

    def redrawn(self, number: int, labels: int | None = None) -> Project:
        """Repetition ``number`` of the experiment: other labeled images, and other seeds in the recipes.

        Each of stats_splits that is rendered gets pictures of its own; one of own data, ``labels`` images
        drawn from its annotations (without labels it stays). What is made of them, and all runs, lie in
        folders of the draw; every other split is shared. Draw 0 without labels is the project as it is.
        """
        draw = Draw(number, labels)
        if draw == Draw():
            return self
        project = copy.copy(self)
        own = redrawn_splits(self.data, draw)
        project.data = replace(self.data, splits={**self.data.splits, **own})
        project.draw = replace(draw, splits=tuple(own))
        return project

    # -- pages ---------------------------------------------------------------------------------
    def recipe_names(self) -> list[str]:
        """Of all pages but PAGES, configs of exports, and names that begin with _ or are none in Python."""
        return [
            path.stem.replace("_", "-")
            for path in sorted(self.folder.glob("*.py"))
            if path.stem.isidentifier()
            and path.stem not in PAGES
            and not path.stem.startswith("_")
            and not is_exported(path)
        ]

    def recipe(self, name: str, overrides: Mapping[str, Any] | None = None) -> tuple[Recipe, dict[str, Any]]:
        """The recipe of that name and the model it trains, after ``--cfg-options`` style overrides.

        overrides maps dotted keys to values; ``model.…`` changes the model page, the rest the recipe.
        """
        page = self.recipe_page(name)
        if name.replace("_", "-") not in self.recipe_names():
            raise SagecacheError(
                f"no recipe '{name}'", file=self.folder, fix=nearest(name, self.recipe_names())
            )
        pages = {"model": self.model, "recipe": read_page(page)}
        if self.draw.number:
            pages["recipe"]["seed"] = pages["recipe"].get("seed", 0) + self.draw.number
        known = {field.name for field in fields(Recipe)}
        for key, value in (overrides or {}).items():
            head = key.split(".")[0]
            if head != "model" and head not in known:
                raise SagecacheError(
                    f"unknown key '{key}'", file="--cfg-options", fix=nearest(head, known | {"model"})
                )
            path = key if head == "model" else f"recipe.{key}"
            try:
                pages = _override(pages, path.split("."), value)
            except (TypeError, ValueError, IndexError) as error:
                raise SagecacheError(
                    f"can't set '{key}': {error}", file="--cfg-options", fix="Name a key of the page's dicts."
                ) from error
        self._check_joints(pages["model"])
        return build(Recipe, pages["recipe"], page), pages["model"]

    def recipe_page(self, name: str) -> Path:
        return self.folder / f"{name.replace('-', '_')}.py"

    def _check_joints(self, model: Mapping[str, Any]) -> None:
        head = model.get("head")
        maps = head.get("out_channels") if isinstance(head, Mapping) else None
        if maps not in (None, self.skeleton.num_keypoints):
            raise SagecacheError(
                f"the head draws {maps} maps, and the skeleton has {self.skeleton.num_keypoints} joints",
                file=self.folder / "model.py",
                fix=f"Set out_channels={self.skeleton.num_keypoints}.",
            )

    # -- what the data is ------------------------------------------------------------------------
    @cached_property
    def skeleton(self) -> Skeleton:
        if self.data.dataset_info == "coco":
            return COCO17
        return read_skeleton(self.path(self.data.dataset_info))

    def split(self, name: str) -> SplitSettings:
        if name not in self.data.splits:
            raise SagecacheError(
                f"no split '{name}'", file=self.folder / "data.py", fix=nearest(name, self.data.splits)
            )
        return self.data.splits[name]

    def instances(
        self, name: str, boxes: str | None = None, detections: Path | None = None
    ) -> list[Instance]:
        """Instances of a split, ordered by (image_id, instance).

        boxes: 'annotations' | 'detections' overrides the split's own box source; detections: the file to
        read them from instead of the split's own.
        """
        split = self.split(name)
        annotations, images = self.path(split.annotations), self.path(split.images)
        if (boxes or split.boxes) == "annotations":
            return instances_from_annotations(load_coco(annotations), images, file=annotations)
        detections = detections or self.detections(name)
        return instances_from_detections(
            load_detections(detections),
            load_coco(annotations),
            images,
            score_threshold=split.min_score,
            max_per_image=split.max_per_image,
            file=detections,
        )

    # -- where it lies ----------------------------------------------------------------------------
    def path(self, path: str | Path) -> Path:
        """Absolute path of what data.py names: from the project folder; from here in the demo."""
        return (Path.cwd() if self.embedded else self.folder) / Path(path).expanduser()

    def _with_paths(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A teacher's or detector's config with absolute paths; everything else as it is."""
        config = dict(config)
        if isinstance(config.get("path"), str):
            config["path"] = str(self.path(config["path"]))
        if isinstance(config.get("files"), Mapping):
            named = config["files"].items()  # what is no text is told of where the teacher is built
            config["files"] = {
                k: str(self.path(file)) if isinstance(file, str) else file for k, file in named
            }
        return config

    @property
    def cache_root(self) -> Path:
        return self.path(self.data.cache_root)

    @property
    def stats_file(self) -> Path:
        return self._labels_root / "skeleton_stats.json"

    @property
    def prior_file(self) -> Path:
        return self._labels_root / "ddp_prior.safetensors"

    @property
    def _labels_root(self) -> Path:
        """The folder of what is made of the labels."""
        return self.cache_root / self.draw.name if self.draw.splits else self.cache_root

    @property
    def work_root(self) -> Path:
        """The folder of all runs."""
        return self.path(self.data.work_root) / self.draw.name

    def detections(self, split: str) -> Path:
        """The detection JSON of a split: the one data.py names, else the one precompute detect writes."""
        boxes = self.split(split).boxes
        own = boxes in ("annotations", "detect")
        return self.split_folder(split) / "detections.json" if own else self.path(boxes)

    def split_files(self, split: str) -> list[Path]:
        """The JSON files that a split is read from; that of detections may not be there."""
        return [self.path(self.split(split).annotations), self.detections(split)]

    def split_folder(self, split: str) -> Path:
        """The folder of what is made of a split's images; a store_root elsewhere holds its targets."""
        return self.cache_root / self._drawn(split)

    def geometry_store(self, split: str) -> Path:
        """The folder of a split's target store, on a disk or in an object store."""
        root = self.data.store_root
        if root is None:
            return self.split_folder(split) / "geo"
        return open_root(root if "://" in root else self.path(root)) / self._drawn(split) / "geo"

    def _drawn(self, split: str) -> str:
        return f"{self.draw.name}/{split}" if split in self.draw.splits else split

    @property
    def shard_folder(self) -> Path:
        """Where shards of stores in object stores are kept."""
        folder = self.data.shard_cache.folder
        return self.path(folder) if folder else self.cache_root / "shards"

    def targets(self, split: str, partial: bool = False) -> StoreReader:
        """Reads a split's own store; shards of an object store are kept here, as data.py says."""
        return self._reader(self.geometry_store(split), partial)

    def joined_targets(self, split: str) -> StoreReader | JoinedReader:
        """What training reads of a split: its own store, and the further ones that data.py names."""
        own, more = self.targets(split), self.data.more_targets.get(split, ())
        if not more:
            return own
        others = (open_root(root if "://" in root else self.path(root)) for root in more)
        return JoinedReader([own, *map(self._reader, others)])

    def _reader(self, root: Path, partial: bool = False) -> StoreReader:
        gigabytes = self.data.shard_cache.gigabytes
        kept = Kept(self.shard_folder, int(gigabytes * 1e9)) if gigabytes else None
        return StoreReader(root, partial=partial, kept=kept)

    def work_dir(self, recipe: str) -> Path:
        return self.work_root / recipe.replace("-", "_")

    def checkpoint(self, recipe: str | None = None) -> Path | None:
        """The checkpoint that stands for a recipe's run, finished or not; without a name, for the newest."""
        work_dir = self.work_dir(recipe) if recipe else newest_work_dir(self.work_root)
        return standing_checkpoint(work_dir) if work_dir else None

    # -- what is missing --------------------------------------------------------------------------
    def requirements(self, recipe: Recipe) -> list[Requirement]:
        """What training a recipe needs, in the order in which it can be made."""
        needs: dict[tuple[str, str], Requirement] = {}
        labeled = list(recipe.data.labeled)
        unlabeled = recipe.data.unlabeled if recipe.uses_unlabeled else None
        for name in dict.fromkeys([*labeled, recipe.data.val, recipe.probe, unlabeled]):
            if name is not None:
                self._need_boxes(needs, name)
        if recipe.uses_unlabeled:
            splits = ", ".join(self.data.stats_splits)
            self._need(needs, "stats", splits, "sagecache precompute stats", self.stats_file)
            for name in recipe.geometry_splits:
                self._need_geometry(needs, name)
        if recipe.uses_unlabeled and recipe.uses_prior:
            self._need(needs, "recipe", "ddp-prior", "sagecache train ddp-prior", self.prior_file)
        if recipe.load_from in self.recipe_names():
            name = recipe.load_from
            needs[("recipe", name)] = Requirement(
                "recipe",
                name,
                self.train_command(name),
                lambda: finished_run(self.work_dir(name)) is not None,
            )
        return list(needs.values())

    def precomputed_splits(self) -> list[str]:
        """Splits whose targets the recipes with unlabeled images read: those of ``precompute all``."""
        names: dict[str, None] = {}
        for recipe, _ in map(self.recipe, self.recipe_names()):
            if recipe.uses_unlabeled:
                names |= dict.fromkeys([*recipe.data.labeled, recipe.data.unlabeled])
        return [name for name in names if name in self.data.splits]

    def split_requirements(self, name: str, geometry: bool = False) -> list[Requirement]:
        """What reading a split needs: its files, its boxes, with ``geometry`` its targets too."""
        needs: dict[tuple[str, str], Requirement] = {}
        self._need_geometry(needs, name) if geometry else self._need_boxes(needs, name)
        return list(needs.values())

    def _need_boxes(self, needs: dict, name: str) -> None:
        split = self.split(name)
        command = f"sagecache data synth --split {name}" if split.render else "sagecache data check"
        self._need(needs, "split", name, command, self.path(split.annotations))
        if split.boxes != "annotations":
            own = split.boxes == "detect"  # another's file is not made here, only looked for
            command = f"sagecache precompute detect --split {name}" if own else "sagecache data check"
            self._need(needs, "boxes", name, command, self.detections(name))

    def _need_geometry(self, needs: dict, name: str) -> None:
        self._need_boxes(needs, name)
        complete = self.geometry_store(name) / "complete.json"
        self._need(needs, "geo", name, f"sagecache precompute geo --split {name}", complete)

    def _need(self, needs: dict, kind: str, what: str, command: str, file: Path) -> None:
        needs[(kind, what)] = Requirement(kind, what, self.command(command), file.is_file)

    def train_command(self, recipe: str) -> str:
        """How to train a recipe; a run that was cut off goes on."""
        resume = " --resume" if self.checkpoint(recipe) and not finished_run(self.work_dir(recipe)) else ""
        return self.command(f"sagecache train {recipe}{resume}")

    def command(self, text: str) -> str:
        """The text with each sagecache command as it must be typed from any folder."""
        options = [] if self.embedded else ["--project", shlex.quote(str(self.folder))]
        options += ["--draw", self.draw.text] if self.draw.text else []
        return _OWN_COMMAND.sub(" ".join(["sagecache", *options, ""]), text)


# Commands that act on a project; one that names its project already does not match.
_OWN_COMMAND = re.compile(
    r"\bsagecache (?=(?:data|precompute|cache|train|eval|predict|export|inspect|report|teachers|ablate)\b)"
)


def read_skeleton(path: Path) -> Skeleton:
    """The skeleton of an mmpose dataset_info page. Raises SagecacheError where it is none."""
    page = read_page(path)
    if "dataset_info" not in page:
        raise SagecacheError(
            "no 'dataset_info' in it", file=path, fix="Use a page of mmpose's configs/_base_/datasets."
        )
    return Skeleton.from_dataset_info(page["dataset_info"])


def read_page(path: Path) -> dict[str, Any]:
    """A config page as plain dicts; names with a leading underscore are the page's own."""
    from mmengine.config import Config

    if not path.is_file():
        raise SagecacheError(
            "no such page", file=path, fix="A project has data.py, model.py and one page a recipe."
        )
    try:
        ast.parse(path.read_text(encoding="utf-8"), str(path))  # mmengine would name a temporary copy
        page = Config.fromfile(path, lazy_import=False).to_dict()
    except SagecacheError:
        raise
    except Exception as error:  # a page is user code: whatever it raises is the user's to mend
        raise SagecacheError(f"can't be read: {type(error).__name__}: {error}", file=path) from error
    return {key: value for key, value in page.items() if not key.startswith("_")}


def _override(page: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested dicts with one leaf changed; lists are indexed by number."""
    head, rest = keys[0], keys[1:]
    if isinstance(page, (list, tuple)):
        items = list(page)
        items[int(head)] = _override(items[int(head)], rest, value) if rest else value
        return items
    copy = dict(page)
    inner = {} if copy.get(head) is None else copy[head]
    copy[head] = _override(inner, rest, value) if rest else value
    return copy
