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
from sagecache.priors.cmgc import CMGCDepth, CMGCNormal, reference_log_ratios
from sagecache.priors.diffusion import DiffusionPrior, DiffusionTerm
from sagecache.project import Project, Recipe
from sagecache.project.strict import call_with
from sagecache.semi.consistency import Consistency
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.gating import HybridGate, Plausibility, calibrate_threshold
from sagecache.semi.pseudo_labels import PseudoLabeler
from sagecache.skeleton.stats import SkeletonStats
from sagecache.store.reader import StoreReader


@dataclass(frozen=True)
class TermInputs:
    """What a term's builder may take beside its options."""

    project: Project
    recipe: Recipe
    sigma: float
    prior: DiffusionPrior | None

    @property
    def flip_indices(self) -> Tensor:
        return torch.as_tensor(self.project.skeleton.flip_indices)


def _consistency(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    return _call(Consistency, "consistency", options, flip_indices=inputs.flip_indices, sigma=inputs.sigma)


def _diffusion(inputs: TermInputs, options: dict[str, Any]) -> nn.Module:
    return _call(DiffusionTerm, "diffusion", options, prior=inputs.prior, flip_indices=inputs.flip_indices)


TERMS: dict[str, Callable[[TermInputs, dict[str, Any]], nn.Module]] = {
    "consistency": _consistency,
    "diffusion": _diffusion,
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
        options = dict(options)
        weight = float(options.pop("weight", 1.0))
        if weight < 0:
            raise SagecacheError(f"weight {weight} of term '{name}' is negative", file="semi.terms")
        built[name] = (weight, TERMS[name](inputs, options))
    return built


def _call(builder: Callable, name: str, options: dict[str, Any], **given: Any) -> nn.Module:
    return call_with(builder, options, "recipe", f"semi.terms.{name}", **given)
