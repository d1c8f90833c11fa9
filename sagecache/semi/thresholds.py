"""Thresholds of confidence, joint by joint: pure functions of running statistics, and the floors below them.

Legend: B samples, K joints; confidence in [0, 1] in units of `geometry.heatmap.decode` (1 = the peak of a
perfect map); mean, variance, selected (K,): running statistics of it by joint (`filtering.JointStatistics`).
The methods were made for classes; a joint takes a class's part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def adaptive(mean: Tensor, variance: Tensor, beta: float, low: float, high: float) -> Tensor:
    """mean - beta * sd, within [low, high]; (K,).

    Of a Gaussian confidence it keeps Phi(beta): .69 at .5, .84 at 1, .98 at 2. With a plus sign, as some code
    has it, beta 2 would keep 2 %.
    """
    return (mean - beta * variance.sqrt()).clamp(low, high)


def flexmatch(threshold: float, selected: Tensor) -> Tensor:
    """FlexMatch (Zhang et al., NeurIPS 2021, eq. 5 to 8): joints learned late get a lower threshold; (K,).

    selected (K,): running share of confidences above the fixed threshold. b = selected / max(largest of
    them, share that no joint selects); threshold * b / (2 - b), the paper's convex map.
    """
    unused = 1 - selected.mean()
    beta = selected / torch.maximum(selected.amax(), unused).clamp_min(1e-6)
    return threshold * beta / (2 - beta)


def freematch(mean: Tensor, high: float = 0.95) -> Tensor:
    """FreeMatch (Wang et al., ICLR 2023, eq. 5 to 8): no threshold is given; (K,).

    The global one is the mean confidence, each joint's own is that times its share of the best joint's mean.
    """
    return mean.mean().clamp(max=high) * mean / mean.amax().clamp_min(1e-6)


def softmatch(confidence: Tensor, mean: Tensor, variance: Tensor, width: float = 2.0) -> Tensor:
    """SoftMatch (Chen et al., ICLR 2023, eq. 7): weights (B, K) instead of a threshold.

    1 above the joint's mean, below it exp(-(c - mean)^2 width^2 / (2 variance)): mean - beta * sd made soft.
    """
    below = (mean - confidence).relu()
    return torch.exp(-below.square() * width**2 / (2 * variance).clamp_min(1e-8))


def top_of_sample(confidence: Tensor, share: float) -> Tensor:
    """The ceil(share * K) most confident joints of each sample, (B, K) bool; of equals the first."""
    count = math.ceil(share * confidence.shape[-1] - 1e-9)  # .3 of 10 is 3
    kept = torch.zeros_like(confidence, dtype=torch.bool)
    return kept.scatter_(-1, confidence.topk(count, dim=-1).indices, True)


def top_of_joint(confidence: Tensor, share: float) -> Tensor:
    """The ceil(share * B) most confident samples of each joint, (B, K) bool."""
    return top_of_sample(confidence.T, share).T


def aligned(confidence: Tensor, log_factor: Tensor) -> Tensor:
    """Confidence (B, K) times exp(log_factor) (K,), at most 1."""
    return (confidence * log_factor.exp()).clamp(max=1)
