"""From a recipe's ``semi.terms`` to terms. Weight 0 is not built and costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from sagecache.errors import RECIPE, SagecacheError, nearest
from sagecache.geometry.pose import Limits, angle_limits, limb_limits, offset_limits
from sagecache.mm.labeling import build_style, check_labeling, check_torso
from sagecache.mm.reference import check_fields, check_store, labeled_reference, limb_edges
from sagecache.priors.cmgc import CMGCDepth, CMGCNormal, LimbReference
from sagecache.priors.diffusion import DiffusionGuidance, DiffusionPrior
from sagecache.priors.distillation import GeometryDistillation
from sagecache.priors.structural import BoneLength, JointAngle, Topology
from sagecache.project import Project, Recipe
from sagecache.project.recipe import TERM_NEEDS, SemiSettings
from sagecache.semi.consistency import Consistency
from sagecache.semi.sides import SideAgnostic
from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.stats import MIN_COUNT, SkeletonStats, Summary
from sagecache.strict import call_with, checked


@dataclass(frozen=True)
class TermInputs:
    """What a term's builder may take beside its options. sigma: the codec's, heatmap pixels. head: the
    student's.
    """

    project: Project
    recipe: Recipe
    sigma: float
    prior: DiffusionPrior | None
    head: nn.Module | None = None

    def teacher_b(self) -> bool:
        return self.recipe.semi.has_teacher_b

    def channels(self) -> int:
        """Of the features that the head reads."""
        channels = getattr(self.head, "in_channels", None)
        if not isinstance(channels, int):
            raise SagecacheError(
                f"the term 'geometry' reads one map of features, in_channels of this head is {channels}",
                file="model.py",
                fix="Take a head of one input, or set semi.terms.geometry.weight=0.",
            )
        return channels

    def flip_indices(self) -> Tensor:
        return torch.tensor(self.project.skeleton.flip_indices)

    def mirror_pairs(self) -> Tensor:
        return torch.tensor(self.project.skeleton.mirrored_joints)

    def limbs(self) -> Tensor:
        self._check_stores()
        return limb_edges(self.project.skeleton)

    def tubes(self) -> Tensor:
        self._check_stores()
        return limb_edges(self.project.skeleton, tubes=True)

    def reference(self) -> LimbReference:
        edges = limb_edges(self.project.skeleton)
        return labeled_reference(self.project, self.recipe.data.labeled, edges)

    def limb_limits(self) -> Limits:
        return limb_limits(self.stats)

    def offset_limits(self) -> Limits:
        return offset_limits(self.stats)

    def angle_limits(self) -> Limits:
        return angle_limits(self.stats)

    @cached_property
    def stats(self) -> SkeletonStats:
        return SkeletonStats.load(self.project.stats_file, self.project.skeleton)

    def _check_stores(self) -> None:
        """Raise SagecacheError unless CMGC can compare with the targets of all splits of the recipe."""
        data = self.recipe.data
        for split in [*data.labeled, *([] if data.unlabeled is None else [data.unlabeled])]:
            check_store(self.project, split)


class TermKind:
    """A module, and where its arguments come from that no recipe says."""

    def __init__(self, module: type[nn.Module], **given: Callable[[TermInputs], Any]) -> None:
        self.module, self.given = module, given

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise SagecacheError for options that the module doesn't take."""
        rest = {key: value for key, value in options.items() if key != "weight"}
        checked(self.module, rest, RECIPE, f"semi.terms.{name}", given=self.given, also=("weight",))

    def build(self, name: str, inputs: TermInputs, options: Mapping[str, Any]) -> nn.Module:
        rest = {key: value for key, value in options.items() if key != "weight"}
        given = {key: source(inputs) for key, source in self.given.items()}
        return call_with(self.module, rest, RECIPE, f"semi.terms.{name}", also=("weight",), **given)


TERMS = {
    "consistency": TermKind(
        Consistency,
        flip_indices=TermInputs.flip_indices,
        sigma=attrgetter("sigma"),
        teacher_b=TermInputs.teacher_b,
    ),
    "diffusion": TermKind(DiffusionGuidance, prior=attrgetter("prior")),
    "cmgc_depth": TermKind(
        CMGCDepth,
        edges=TermInputs.limbs,
        flip_indices=TermInputs.flip_indices,
        reference=TermInputs.reference,
    ),
    "cmgc_normal": TermKind(CMGCNormal, edges=TermInputs.tubes, flip_indices=TermInputs.flip_indices),
    "geometry": TermKind(GeometryDistillation, channels=TermInputs.channels),
    "sides": TermKind(SideAgnostic, pairs=TermInputs.mirror_pairs, sigma=attrgetter("sigma")),
    "bone": TermKind(BoneLength, limits=TermInputs.limb_limits, flip_indices=TermInputs.flip_indices),
    "topology": TermKind(Topology, limits=TermInputs.offset_limits, flip_indices=TermInputs.flip_indices),
    "angle": TermKind(JointAngle, limits=TermInputs.angle_limits, flip_indices=TermInputs.flip_indices),
}


OF_TARGETS = [name for name, needs in TERM_NEEDS.items() if "targets" in needs]


def check_semi(recipe: Recipe, skeleton: Skeleton | None = None) -> None:
    """Raise SagecacheError for unknown terms, for options that nothing takes and, where a skeleton is given,
    for what it can't serve. Needs no files.
    """
    for name, options in recipe.semi.terms.items():
        if name not in TERMS:
            raise SagecacheError(
                f"unknown term '{name}' in semi.terms", file=RECIPE, fix=nearest(name, TERMS)
            )
        TERMS[name].check(name, options)
    if "sides" in recipe.terms and not recipe.semi.swaps:
        raise SagecacheError(
            "semi.terms.sides learns from pairs that semi.swaps has silenced, and there is no semi.swaps",
            file=RECIPE,
            fix="Set semi.swaps = dict(front=0.2), or semi.terms.sides.weight=0.",
        )
    bent = [name for name in recipe.terms if name in OF_TARGETS and recipe.views.strong.distorts]
    if bent:
        raise SagecacheError(
            f"{bent[0]} compares with cached depth and normals, and views.strong bends the picture: "
            "lengths and directions no longer fit",
            file=RECIPE,
            fix="Set views.strong.radial, tilt and bend to 0, or the weights of these terms.",
        )
    _check_ramp(recipe)
    check_labeling(recipe)
    _refuse_keys_without_effect(recipe.semi)
    if skeleton is not None:
        check_torso(recipe, skeleton)
    if not recipe.batch.labeled and build_style(recipe) is not None:
        raise SagecacheError(
            "semi.style gives labeled images the look of unlabeled ones, and batch.labeled is 0",
            file=RECIPE,
            fix="Set batch.labeled, or semi.style.fda and semi.style.colour to 0.",
        )


def _refuse_keys_without_effect(semi: SemiSettings) -> None:
    """None leaves a key to its default: so says a page whose _base_ sets it."""
    style, mixing, consistency = semi.style, semi.mixing, semi.terms.get("consistency", {})
    for key, value, needed, there in (
        ("style.fda_size", style.get("fda_size"), "style.fda", style.get("fda")),
        (
            "mixing.radius",
            mixing.get("radius"),
            "mixing.limbs or mixing.cutmix",
            mixing.get("limbs") or mixing.get("cutmix"),
        ),
        (
            "terms.consistency.soft_sigma",
            consistency.get("soft_sigma"),
            "gate.teacher_b='diffusion'",
            semi.has_teacher_b,
        ),
    ):
        if value and not there:  # of a bad value its own check tells more
            raise SagecacheError(
                f"semi.{key} has no effect without semi.{needed}",
                file=RECIPE,
                fix=f"Leave it out (None where its _base_ sets it), or set semi.{needed}.",
            )


def _check_ramp(recipe: Recipe) -> None:
    ramp, steps = recipe.semi.ramp_up, recipe.optimiser_steps
    if recipe.uses_unlabeled and ramp and steps is not None and ramp >= steps:
        raise SagecacheError(
            f"semi.ramp_up is {ramp} optimiser steps, and there are {steps} of them (train_cfg.max_iters "
            f"{recipe.train_cfg.max_iters}, {recipe.accumulation} to a step): no term would reach its weight",
            file=RECIPE,
            fix=f"Set semi.ramp_up={steps // 10}, a tenth, or train longer.",
        )


# What labeled bodies must show of a structural term's quantities.
COMPARED: dict[str, Callable[[SkeletonStats], Summary]] = {
    "bone": lambda stats: stats.limb("sqrt_area"),
    "topology": attrgetter("offsets"),
    "angle": attrgetter("angles"),
}


def _require_enough_bodies(inputs: TermInputs) -> None:
    """Raise SagecacheError for all terms at once that no labeled range would let say anything."""
    asked = [name for name in inputs.recipe.terms if name in COMPARED]
    if not asked:
        return
    stats = inputs.stats
    shown = {name: COMPARED[name](stats) for name in asked}
    silent = {name: int(one.count.max(initial=0)) for name, one in shown.items() if not one.enough.any()}
    if silent:
        needed, labeled = stats.counts.get("min_count", MIN_COUNT), stats.counts["instances"]
        counts = ", ".join(f"{name} {count}" for name, count in silent.items())
        raise SagecacheError(
            f"too few labeled bodies show what semi.terms compare with: {needed} must show one and the same "
            f"limb, joint or angle, and at most so many do: {counts} (of {labeled})",
            file=RECIPE,
            fix="Label more persons and run 'sagecache precompute stats --force', or switch the terms off: "
            + " ".join(f"semi.terms.{name}.weight=0" for name in silent),
        )


def build_terms(
    project: Project,
    recipe: Recipe,
    sigma: float,
    prior: DiffusionPrior | None,
    head: nn.Module | None = None,
) -> dict[str, tuple[float, nn.Module]]:
    """name -> (weight, term) of every term with a weight. Unknown names and options are errors."""
    check_semi(recipe, project.skeleton)
    inputs = TermInputs(project, recipe, sigma, prior, head)
    _require_enough_bodies(inputs)
    terms = {
        name: (float(options.get("weight", 1.0)), TERMS[name].build(name, inputs, options))
        for name, options in recipe.terms.items()
    }
    if "geometry" in terms:
        check_fields(project, recipe.data.unlabeled, list(terms["geometry"][1].weights))
    return terms
