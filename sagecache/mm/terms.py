"""From a recipe's ``semi`` section to pseudo labels and terms. Weight 0 is not built and costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagecache.data.targets import dequantise
from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.affine import transform_points
from sagecache.priors.cmgc import CMGCDepth, CMGCNormal, LimbReference, reference_log_ratios
from sagecache.priors.diffusion import DiffusionGuidance, DiffusionPrior
from sagecache.project import Project, Recipe
from sagecache.semi.consistency import Consistency
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.gating import HybridGate, Plausibility, calibrate_threshold
from sagecache.semi.pseudo_labels import PseudoLabeler
from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.stats import SkeletonStats
from sagecache.store.reader import StoreReader
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


def _consistency(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    return _call(Consistency, "consistency", options, flip_indices=inputs.flip_indices, sigma=inputs.sigma)


def _diffusion(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    return _call(DiffusionGuidance, "diffusion", options, prior=inputs.prior)


def _cmgc_depth(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    edges = torch.tensor(inputs.project.skeleton.limb_edges)
    given = dict(edges=edges, flip_indices=inputs.flip_indices, reference=_labeled_reference(inputs, edges))
    return _call(CMGCDepth, "cmgc_depth", options, **given)


def _cmgc_normal(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    skeleton = inputs.project.skeleton
    tubes = torch.tensor(skeleton.limb_edges[_tubes(skeleton)])
    return _call(CMGCNormal, "cmgc_normal", options, edges=tubes, flip_indices=inputs.flip_indices)


def _tubes(skeleton: Skeleton) -> np.ndarray:
    """(L,) bool: limbs whose two ends lie on one side of the body. Arms and legs are near cylinders, and the
    edges of the trunk are not; a skeleton names its trunk's corners by torso_joints."""
    trunk = set() if skeleton.torso_joints is None else set(skeleton.torso_joints.ravel().tolist())
    return np.array([not {int(a), int(b)} <= trunk for a, b in skeleton.limb_edges])


def _labeled_reference(inputs: TermInputs, edges: Tensor) -> LimbReference:
    """Limb ratios of the labeled bodies in their own cached depth: the same teacher, the same function."""
    keypoints, seen, rows = [], [], []
    for split in inputs.recipe.data.labeled:
        reader = StoreReader(inputs.project.geometry_store(split))
        kept = [one for one in inputs.project.instances(split) if one.key in reader]
        raw = reader.read_many([one.key for one in kept])
        rows.append({name: torch.from_numpy(value) for name, value in raw.items()})
        keypoints += [one.keypoints[:, :2] for one in kept]
        seen += [one.keypoints[:, 2] == 2 for one in kept]
    raw = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    maps = dequantise(raw)
    points = torch.from_numpy(np.stack(keypoints)).float()
    points = transform_points(raw["target_from_image"].float(), points)
    weights = torch.from_numpy(np.stack(seen)).float()
    return reference_log_ratios(points, weights, maps["depth"], maps["normal"], maps["mask"], edges)


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
        weight = float(options.get("weight", 1.0))
        if weight < 0:
            raise SagecacheError(f"weight {weight} of term '{name}' is negative", file="semi.terms")
        rest = {key: value for key, value in options.items() if key != "weight"}
        built[name] = (weight, TERMS[name](inputs, rest))
    return built


def load_prior(project: Project, recipe: Recipe) -> DiffusionPrior | None:
    """The project's diffusion prior where the recipe uses it."""
    return DiffusionPrior.load(project.prior_file, project.skeleton) if recipe.uses_prior else None


def build_labeler(project: Project, recipe: Recipe, sigma: float) -> PseudoLabeler:
    """Filter, plausibility and gate of ``semi.pseudo_labels`` and ``semi.gate``.

    gate.threshold_plausibility None (the default) is calibrated: the KPS that 95 % of the labeled poses
    reach once they err like predictions (semi.gating.calibrate_threshold).
    """
    plausibility = Plausibility.from_stats(SkeletonStats.load(project.stats_file, project.skeleton))
    gate = dict(recipe.semi.gate)
    if gate.get("threshold_plausibility") is None:
        confidence = gate.get("threshold_confidence", 0.5)
        gate["threshold_plausibility"] = _calibrated(project, recipe, plausibility, confidence)
    return PseudoLabeler(
        sigma,
        torch.tensor(project.skeleton.flip_indices),
        call_with(
            KeypointFilter,
            recipe.semi.pseudo_labels,
            "recipe",
            "semi.pseudo_labels",
            num_keypoints=project.skeleton.num_keypoints,
        ),
        call_with(HybridGate, gate, "recipe", "semi.gate"),
        plausibility,
    )


def _calibrated(project: Project, recipe: Recipe, plausibility: Plausibility, confidence: float) -> float:
    instances = [one for split in recipe.data.labeled for one in project.instances(split, "annotations")]
    keypoints = torch.from_numpy(np.stack([one.keypoints for one in instances])).float()
    scale = torch.tensor([(one.bbox[2] * one.bbox[3]) ** 0.5 for one in instances])
    return calibrate_threshold(plausibility, keypoints[..., :2], keypoints[..., 2] > 0, scale, confidence)


def _call(builder: Callable, name: str, options: dict[str, Any], **given: Any) -> nn.Module:
    return call_with(builder, options, "recipe", f"semi.terms.{name}", **given)
