"""From a recipe's ``semi`` section to pseudo labels and terms. Weight 0 is not built and costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.geometry.pose import Limits, angle_limits, limb_limits, offset_limits
from sagecache.mm.reference import check_store, labeled_reference, limb_edges
from sagecache.priors.cmgc import CMGCDepth, CMGCNormal, LimbReference
from sagecache.priors.diffusion import DiffusionGuidance, DiffusionPrior
from sagecache.priors.structural import BoneLength, JointAngle, Topology
from sagecache.project import Project, Recipe
from sagecache.semi.consistency import Consistency
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.fusion import ViewFusion
from sagecache.semi.gating import HybridGate, Plausibility, calibrate_threshold
from sagecache.semi.pseudo_labels import PseudoLabeler
from sagecache.skeleton.measure import stacked_keypoints
from sagecache.skeleton.stats import SkeletonStats
from sagecache.strict import call_with, checked


@dataclass(frozen=True)
class TermInputs:
    """What a term's builder may take beside its options. sigma: the codec's, heatmap pixels."""

    project: Project
    recipe: Recipe
    sigma: float
    prior: DiffusionPrior | None

    def flip_indices(self) -> Tensor:
        return torch.tensor(self.project.skeleton.flip_indices)

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
        return limb_limits(self._stats())

    def offset_limits(self) -> Limits:
        return offset_limits(self._stats())

    def angle_limits(self) -> Limits:
        return angle_limits(self._stats())

    def _stats(self) -> SkeletonStats:
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
        checked(self.module, rest, "recipe", f"semi.terms.{name}", given=self.given, also=("weight",))

    def build(self, name: str, inputs: TermInputs, options: Mapping[str, Any]) -> nn.Module:
        rest = {key: value for key, value in options.items() if key != "weight"}
        given = {key: source(inputs) for key, source in self.given.items()}
        return call_with(self.module, rest, "recipe", f"semi.terms.{name}", also=("weight",), **given)


TERMS = {
    "consistency": TermKind(Consistency, flip_indices=TermInputs.flip_indices, sigma=attrgetter("sigma")),
    "diffusion": TermKind(DiffusionGuidance, prior=attrgetter("prior")),
    "cmgc_depth": TermKind(
        CMGCDepth,
        edges=TermInputs.limbs,
        flip_indices=TermInputs.flip_indices,
        reference=TermInputs.reference,
    ),
    "cmgc_normal": TermKind(CMGCNormal, edges=TermInputs.tubes, flip_indices=TermInputs.flip_indices),
    "bone": TermKind(BoneLength, limits=TermInputs.limb_limits, flip_indices=TermInputs.flip_indices),
    "topology": TermKind(Topology, limits=TermInputs.offset_limits, flip_indices=TermInputs.flip_indices),
    "angle": TermKind(JointAngle, limits=TermInputs.angle_limits, flip_indices=TermInputs.flip_indices),
}


def check_semi(recipe: Recipe) -> None:
    """Raise SagecacheError for unknown terms and for options that nothing takes. Needs no files."""
    for name, options in recipe.semi.terms.items():
        if name not in TERMS:
            raise SagecacheError(
                f"unknown term '{name}' in semi.terms", file="recipe", fix=nearest(name, TERMS)
            )
        TERMS[name].check(name, options)
    labels = recipe.semi.pseudo_labels
    options = {key: value for key, value in labels.items() if key != "align"}
    given = ["num_keypoints", "visible"]
    checked(KeypointFilter, options, "recipe", "semi.pseudo_labels", given=given, also=["align"])
    checked(ViewFusion, recipe.semi.fusion, "recipe", "semi.fusion", given=["sigma"])
    checked(HybridGate, _stated(recipe.semi.gate), "recipe", "semi.gate")


def build_terms(
    project: Project, recipe: Recipe, sigma: float, prior: DiffusionPrior | None
) -> dict[str, tuple[float, nn.Module]]:
    """name -> (weight, term) of every term with a weight. Unknown names and options are errors."""
    check_semi(recipe)
    inputs = TermInputs(project, recipe, sigma, prior)
    return {
        name: (float(options.get("weight", 1.0)), TERMS[name].build(name, inputs, options))
        for name, options in recipe.terms.items()
    }


def load_prior(project: Project, recipe: Recipe) -> DiffusionPrior | None:
    """The project's diffusion prior where the recipe uses it."""
    return DiffusionPrior.load(project.prior_file, project.skeleton) if recipe.uses_prior else None


def build_labeler(project: Project, recipe: Recipe, sigma: float) -> PseudoLabeler:
    """Filter, plausibility and gate of ``semi.pseudo_labels`` and ``semi.gate``.

    gate.threshold_plausibility None (the default) is calibrated: the KPS that 95 % of the labeled poses
    reach once they err like predictions (semi.gating.calibrate_threshold), as confident as the gate asks;
    where it asks for no confidence, as the filter does of each joint.
    """
    stats = SkeletonStats.load(project.stats_file, project.skeleton)
    plausibility = Plausibility.from_stats(stats)
    joints = _keypoint_filter(recipe.semi.pseudo_labels, stats)
    options = _stated(recipe.semi.gate)
    gate = call_with(HybridGate, options, "recipe", "semi.gate")
    if "threshold_plausibility" not in options:
        confidence = gate.threshold_confidence or joints.threshold
        gate.threshold_plausibility = _calibrated(project, recipe, plausibility, confidence)
    fusion = call_with(ViewFusion, recipe.semi.fusion, "recipe", "semi.fusion", sigma=sigma)
    flip_indices = torch.tensor(project.skeleton.flip_indices)
    return PseudoLabeler(sigma, flip_indices, joints, gate, plausibility, fusion)


def _keypoint_filter(options: Mapping[str, Any], stats: SkeletonStats) -> KeypointFilter:
    """align True: the share of kept joints follows the labeled split's visible ones."""
    rest = {key: value for key, value in options.items() if key != "align"}
    visible = torch.from_numpy(stats.visible).float() if options.get("align") else None
    count = stats.skeleton.num_keypoints
    return call_with(
        KeypointFilter, rest, "recipe", "semi.pseudo_labels", num_keypoints=count, visible=visible
    )


def _calibrated(project: Project, recipe: Recipe, plausibility: Plausibility, confidence: float) -> float:
    instances = [one for split in recipe.data.labeled for one in project.instances(split, "annotations")]
    instances = [one for one in instances if one.keypoints is not None]
    keypoints = torch.from_numpy(stacked_keypoints(instances, project.skeleton).astype(np.float32))
    scale = torch.tensor([(one.bbox[2] * one.bbox[3]) ** 0.5 for one in instances])
    return calibrate_threshold(plausibility, keypoints[..., :2], keypoints[..., 2] > 0, scale, confidence)


def _stated(options: Mapping[str, Any]) -> dict[str, Any]:
    """None leaves a key to its default."""
    return {name: value for name, value in options.items() if value is not None}
