"""Ablation pages: which trainings to compare, in ``ablations/NAME.py`` of a project.

A page names arms, each a recipe of the project with a few keys changed, and what is asked of them. It is read
and checked here; what trains and compares is `sagecache ablate`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from sagecache.errors import SagecacheError, nearest
from sagecache.project.project import Project, embedded_project, read_page
from sagecache.strict import build

FOLDER = "ablations"


@dataclass(frozen=True)
class Arm:
    """recipe: its name. asks: what this arm tells, in a line. overrides: dotted key -> value."""

    recipe: str
    asks: str
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """One question, and the arms that answer it: each is compared with the first."""

    asks: str
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arms' figures: {'both': 1, 'one': -1, 'other': -1, 'none': 1} is an interaction."""

    asks: str
    weights: dict[str, float]


@dataclass(frozen=True)
class Ablation:
    """What a page says.

    arms: in the order of the table. control: the arm that every other is compared with. floor, ceiling: the
    arms between which 'gap closed' counts, (arm - floor) / (ceiling - floor). groups: the questions.
    contrasts: further comparisons. evidence: plot -> arms that it shows, see `visualization.evidence`.
    """

    arms: dict[str, Arm]
    control: str
    floor: str | None = None
    ceiling: str | None = None
    groups: dict[str, Group] = field(default_factory=dict)
    contrasts: dict[str, Contrast] = field(default_factory=dict)
    evidence: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.arms:
            raise SagecacheError("it has no arms", fix="Set arms = dict(name=dict(recipe=…, asks=…)).")
        if (self.floor is None) != (self.ceiling is None):
            raise SagecacheError("the gap has two ends", fix="Set floor and ceiling, or neither.")
        named = {"control": [self.control], "floor": [self.floor], "ceiling": [self.ceiling]}
        named |= {f"groups.{name}": group.arms for name, group in self.groups.items()}
        named |= {f"contrasts.{name}": contrast.weights for name, contrast in self.contrasts.items()}
        named |= {f"evidence.{name}": arms for name, arms in self.evidence.items()}
        for where, arms in named.items():
            for arm in arms:
                if arm is not None and arm not in self.arms:
                    raise SagecacheError(f"{where}: no arm '{arm}'", fix=nearest(arm, self.arms))
        for where, group in self.groups.items():
            if len(set(group.arms)) < 2:
                raise SagecacheError(f"groups.{where} compares nothing", fix="Name two arms or more.")
        self._refuse_one_training_twice()

    def _refuse_one_training_twice(self) -> None:
        seen: dict[str, str] = {}
        for name, arm in self.arms.items():
            training = json.dumps([arm.recipe.replace("_", "-"), arm.overrides], sort_keys=True, default=str)
            if training in seen:
                raise SagecacheError(
                    f"arms '{seen[training]}' and '{name}' are the same training", fix="Remove one."
                )
            seen[training] = name


def ablation_names(project: Project) -> list[str]:
    return [path.stem.replace("_", "-") for path in sorted((project.folder / FOLDER).glob("[!_]*.py"))]


def read_ablation(project: Project, name: str) -> Ablation:
    """The page of that name. Raises SagecacheError for an unknown page, recipe or key, naming the arm."""
    page = project.folder / FOLDER / f"{name.replace('-', '_')}.py"
    if name.replace("_", "-") not in ablation_names(project):
        known = ablation_names(project)
        fix = nearest(name, known)
        template = embedded_project() / FOLDER / page.name
        if template.is_file() and not project.embedded:
            fix += f". A page can start as a copy: {template}, without arms of recipes that you lack (oracle)"
        elif not known:
            fix += f". An ablation is a page {FOLDER}/NAME.py of the project: docs/ablations.md"
        raise SagecacheError(f"no ablation '{name}'", file=page.parent, fix=fix)
    ablation = build(Ablation, read_page(page), page)
    for arm, one in ablation.arms.items():
        try:
            recipe, _ = project.recipe(one.recipe, one.overrides)
        except SagecacheError as error:
            raise SagecacheError(error.message, file=page, record=f"arm '{arm}'", fix=error.fix) from error
        if recipe.kind != "pose" or recipe.train_cfg is None:
            raise SagecacheError(f"recipe '{one.recipe}' trains no student", file=page, record=f"arm '{arm}'")
    return ablation
