"""From a recipe's ``semi`` section to what makes pseudo labels and mixes images. What is off is not built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sagecache.data.mixing import StrongMixing
from sagecache.data.style import StyleTransfer
from sagecache.errors import RECIPE, SagecacheError
from sagecache.priors.diffusion import DiffusionPrior
from sagecache.project import Project, Recipe
from sagecache.semi.coupling import StructuralCoupling
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.fusion import ViewFusion
from sagecache.semi.gating import HybridGate, Plausibility, calibrate_threshold
from sagecache.semi.instances import InstanceGate
from sagecache.semi.pseudo_labels import PseudoLabeler
from sagecache.semi.swaps import FacingVote, SwapCheck
from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.measure import stacked_keypoints
from sagecache.skeleton.stats import SkeletonStats
from sagecache.strict import call_with, checked

# Sections of ``semi``: what is made of each, and its arguments that no recipe says.
SECTIONS: dict[str, tuple[type, tuple[str, ...]]] = {
    "fusion": (ViewFusion, ("sigma",)),
    "pseudo_labels": (KeypointFilter, ("num_keypoints", "visible")),
    "instances": (InstanceGate, ("stats", "sigma")),
    "gate": (HybridGate, ()),
    "mixing": (StrongMixing, ("skeleton",)),
    "style": (StyleTransfer, ()),
    "swaps": (SwapCheck, ("flip_indices",)),
}
ALSO = {"pseudo_labels": ("align",)}  # keys that are read here
# Keys that are read under one value of another key alone: section, keys, that key, its default, the values.
# Not pseudo_labels.threshold: pages inherit it, and a rule that doesn't read it is one word on such a page.
DEPENDENT = (
    ("pseudo_labels", ("beta", "limits"), "rule", "fixed", ("adaptive",)),
    ("fusion", ("disagreement",), "on_disagreement", "best", ("best", "drop")),
    ("gate", ("weight_b", "keep_b"), "teacher_b", "none", ("diffusion",)),
)


def check_labeling(recipe: Recipe) -> None:
    """Raise SagecacheError for options that nothing takes. Needs no files."""
    for name, (made, given) in SECTIONS.items():
        options = _options(recipe, name)
        checked(made, options, RECIPE, f"semi.{name}", given=given, also=ALSO.get(name, ()))
    for name, keys, master, default, values in DEPENDENT:
        options = _options(recipe, name)
        value, useless = options.get(master, default), [key for key in keys if key in options]
        if useless and value not in values:
            raise SagecacheError(
                f"semi.{name}.{useless[0]} has no effect with {master} '{value}'",
                file=RECIPE,
                fix=f"Set semi.{name}.{master}='{values[0]}', or {useless[0]} to None.",
            )


def _build(recipe: Recipe, name: str, **given: Any) -> Any:
    made, _ = SECTIONS[name]
    options, also = _options(recipe, name), ALSO.get(name, ())
    return call_with(made, options, RECIPE, f"semi.{name}", also=also, **given)


def _options(recipe: Recipe, name: str) -> dict[str, Any]:
    """A section without the keys that are read here; None leaves a key to its default."""
    section: Mapping[str, Any] = getattr(recipe.semi, name)
    also = ALSO.get(name, ())
    return {key: value for key, value in section.items() if key not in also and value is not None}


def load_prior(project: Project, recipe: Recipe) -> DiffusionPrior | None:
    """The project's diffusion prior where the recipe uses it."""
    return DiffusionPrior.load(project.prior_file, project.skeleton) if recipe.uses_prior else None


def check_torso(recipe: Recipe, skeleton: Skeleton) -> None:
    """Raise SagecacheError where the recipe asks for the sides of a skeleton that names no torso."""
    if recipe.semi.swaps and skeleton.torso_joints is None:
        sides = " semi.terms.sides.weight=0" if "sides" in recipe.terms else ""
        raise SagecacheError(
            f"the skeleton '{skeleton.name}' names no shoulders and hips, and semi.swaps needs a torso",
            file=RECIPE,
            fix=f"Switch off what needs one, here or in the page: semi.swaps=None{sides}",
        )


def build_labeler(project: Project, recipe: Recipe, sigma: float) -> PseudoLabeler:
    """All that stands between the teachers' maps and `PseudoLabels`; needs the labeled statistics.

    pseudo_labels.align True: the share of kept joints follows the labeled split's visible ones.

    gate.threshold_plausibility None (the default) is calibrated: the KPS that 95 % of the labeled poses
    reach once they err like predictions (semi.gating.calibrate_threshold), as confident as the gate asks;
    where it asks for no confidence, as the filter does of each joint (`KeypointFilter.least`).
    """
    check_torso(recipe, project.skeleton)
    stats = SkeletonStats.load(project.stats_file, project.skeleton)
    plausibility, semi = Plausibility.from_stats(stats), recipe.semi
    visible = torch.from_numpy(stats.visible).float() if semi.pseudo_labels.get("align") else None
    count = project.skeleton.num_keypoints
    joints = _build(recipe, "pseudo_labels", num_keypoints=count, visible=visible)
    gate = _build(recipe, "gate")
    if semi.gate.get("threshold_plausibility") is None:
        confidence = gate.threshold_confidence or joints.least
        gate.threshold_plausibility = _calibrated(project, recipe, plausibility, confidence)
    return PseudoLabeler(
        sigma,
        torch.tensor(project.skeleton.flip_indices),
        joints,
        gate,
        plausibility,
        _build(recipe, "fusion", sigma=sigma),
        _build(recipe, "instances", stats=stats, sigma=sigma) if semi.instances else None,
        StructuralCoupling(stats, semi.coupling) if semi.coupling else None,
        _build_swaps(project, recipe, sigma) if semi.swaps else None,
    )


def _build_swaps(project: Project, recipe: Recipe, sigma: float) -> tuple[FacingVote, SwapCheck]:
    skeleton = project.skeleton
    facing = FacingVote(torch.tensor(skeleton.mirrored_joints), torch.tensor(skeleton.torso_joints), sigma)
    return facing, _build(recipe, "swaps", flip_indices=torch.tensor(skeleton.flip_indices))


def build_mixing(project: Project, recipe: Recipe) -> nn.Module | None:
    """What hides and exchanges limbs of strong views, where anything is asked for."""
    mixing = _build(recipe, "mixing", skeleton=project.skeleton)
    return mixing if mixing.kinds else None


def build_style(recipe: Recipe) -> nn.Module | None:
    """What gives labeled images the look of unlabeled ones, where anything is asked for."""
    style = _build(recipe, "style")
    return style if style.fda or style.colour else None


def _calibrated(project: Project, recipe: Recipe, plausibility: Plausibility, confidence: float) -> float:
    """The plausibility that labeled poses reach, see ``calibrate_threshold``."""
    instances = [one for split in recipe.data.labeled for one in project.instances(split, "annotations")]
    instances = [one for one in instances if one.keypoints is not None]
    keypoints = torch.from_numpy(stacked_keypoints(instances, project.skeleton).astype(np.float32))
    scale = torch.tensor([(one.bbox[2] * one.bbox[3]) ** 0.5 for one in instances])
    return calibrate_threshold(plausibility, keypoints[..., :2], keypoints[..., 2] > 0, scale, confidence)
