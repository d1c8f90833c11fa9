"""From a recipe's ``semi`` section to pseudo labels and terms. Weight 0 is not built and costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.mm.reference import check_store, labeled_reference, limb_edges
from sagecache.priors.cmgc import CMGCDepth, CMGCNormal
from sagecache.priors.diffusion import DiffusionGuidance, DiffusionPrior
from sagecache.project import Project, Recipe
from sagecache.semi.consistency import Consistency
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.gating import HybridGate, Plausibility, calibrate_threshold
from sagecache.semi.pseudo_labels import PseudoLabeler
from sagecache.skeleton.measure import stacked_keypoints
from sagecache.skeleton.stats import SkeletonStats
from sagecache.strict import call_with


@dataclass(frozen=True)
class TermInputs:
    """What a term's builder may take beside its options. sigma: the codec's, heatmap pixels."""

    project: Project
    recipe: Recipe
    sigma: float
    prior: DiffusionPrior | None

    @property
    def flip_indices(self) -> Tensor:
        return torch.tensor(self.project.skeleton.flip_indices)

    def check_stores(self) -> None:
        """Raise SagecacheError unless CMGC can compare with the targets of all splits of the recipe."""
        data = self.recipe.data
        for split in [*data.labeled, *([] if data.unlabeled is None else [data.unlabeled])]:
            check_store(self.project, split)


def _consistency(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    return _call(Consistency, "consistency", options, flip_indices=inputs.flip_indices, sigma=inputs.sigma)


def _diffusion(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    return _call(DiffusionGuidance, "diffusion", options, prior=inputs.prior)


def _cmgc_depth(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    inputs.check_stores()
    edges = limb_edges(inputs.project.skeleton)
    reference = labeled_reference(inputs.project, inputs.recipe.data.labeled, edges)
    given = dict(edges=edges, flip_indices=inputs.flip_indices, reference=reference)
    return _call(CMGCDepth, "cmgc_depth", options, **given)


def _cmgc_normal(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    inputs.check_stores()
    tubes = limb_edges(inputs.project.skeleton, tubes=True)
    return _call(CMGCNormal, "cmgc_normal", options, edges=tubes, flip_indices=inputs.flip_indices)


TERMS: dict[str, Callable[[TermInputs, dict[str, Any]], nn.Module]] = {
    "consistency": _consistency,
    "diffusion": _diffusion,
    "cmgc_depth": _cmgc_depth,
    "cmgc_normal": _cmgc_normal,
}


def build_terms(
    project: Project, recipe: Recipe, sigma: float, prior: DiffusionPrior | None
) -> dict[str, tuple[float, nn.Module]]:
    """name -> (weight, term) of every term with a weight. Unknown names and options are errors."""
    for name in recipe.semi.terms:
        if name not in TERMS:
            raise SagecacheError(f"unknown term '{name}'", file="semi.terms", fix=nearest(name, TERMS))
    inputs = TermInputs(project, recipe, sigma, prior)
    built = {}
    for name, options in recipe.terms.items():
        rest = {key: value for key, value in options.items() if key != "weight"}
        built[name] = (float(options.get("weight", 1.0)), TERMS[name](inputs, rest))
    return built


def load_prior(project: Project, recipe: Recipe) -> DiffusionPrior | None:
    """The project's diffusion prior where the recipe uses it."""
    return DiffusionPrior.load(project.prior_file, project.skeleton) if recipe.uses_prior else None


def build_labeler(project: Project, recipe: Recipe, sigma: float) -> PseudoLabeler:
    """Filter, plausibility and gate of ``semi.pseudo_labels`` and ``semi.gate``.

    gate.threshold_plausibility None (the default) is calibrated: the KPS that 95 % of the labeled poses
    reach once they err like predictions (semi.gating.calibrate_threshold), as confident as the gate asks;
    where it asks for no confidence, as the filter does of each joint.
    """
    plausibility = Plausibility.from_stats(SkeletonStats.load(project.stats_file, project.skeleton))
    count = project.skeleton.num_keypoints
    joints = call_with(
        KeypointFilter, recipe.semi.pseudo_labels, "recipe", "semi.pseudo_labels", num_keypoints=count
    )
    options = {name: value for name, value in recipe.semi.gate.items() if value is not None}
    gate = call_with(HybridGate, options, "recipe", "semi.gate")
    if "threshold_plausibility" not in options:
        confidence = options.get("threshold_confidence", joints.threshold)
        gate.threshold_plausibility = _calibrated(project, recipe, plausibility, confidence)
    return PseudoLabeler(sigma, torch.tensor(project.skeleton.flip_indices), joints, gate, plausibility)


def _calibrated(project: Project, recipe: Recipe, plausibility: Plausibility, confidence: float) -> float:
    instances = [one for split in recipe.data.labeled for one in project.instances(split, "annotations")]
    instances = [one for one in instances if one.keypoints is not None]
    keypoints = torch.from_numpy(stacked_keypoints(instances, project.skeleton).astype(np.float32))
    scale = torch.tensor([(one.bbox[2] * one.bbox[3]) ** 0.5 for one in instances])
    return calibrate_threshold(plausibility, keypoints[..., :2], keypoints[..., 2] > 0, scale, confidence)


def _call(builder: Callable, name: str, options: dict[str, Any], **given: Any) -> nn.Module:
    return call_with(builder, options, "recipe", f"semi.terms.{name}", also=("weight",), **given)
