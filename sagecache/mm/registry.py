"""Our networks and losses under names that mmpose configs can use. Importing it makes mmpose usable.

Registers: ``PoseNet`` (the demo's backbone), ``SoftmaxHeatmapHead``, ``SpatialCrossEntropyLoss``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sagecache.mm.compat import activate

activate()  # spawned loader workers import this module to unpickle what it defines, so it must come first

from mmpose.models.heads import HeatmapHead  # noqa: E402
from mmpose.registry import MODELS  # noqa: E402

from sagecache.models.convnet import PoseNet  # noqa: E402

MODELS.register_module(name="PoseNet", module=PoseNet)


@MODELS.register_module()
class SpatialCrossEntropyLoss(nn.Module):
    """Cross-entropy of a softmax over the cells of a heatmap, against a target normalised to sum 1.

    On few labels it trains several times faster than the MSE of heatmaps: every cell competes, so the
    empty background gives a gradient too (integral regression's classification form; Sun et al., ECCV
    2018 discuss the family). Mean over keypoints, weighted.
    """

    def __init__(self, use_target_weight: bool = True, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.use_target_weight, self.loss_weight = use_target_weight, loss_weight

    def forward(self, output: Tensor, target: Tensor, target_weights: Tensor | None = None) -> Tensor:
        """output logits, target >= 0 (B, K, h, w), target_weights (B, K). Joints without mass drop out."""
        log_probability = output.float().flatten(2).log_softmax(-1)  # (B, K, h*w)
        target = target.flatten(2)
        mass = target.sum(-1, keepdim=True)
        loss = -(target / mass.clamp(min=1e-6) * log_probability).sum(-1)  # (B, K)
        weights = (mass.squeeze(-1) > 0).to(loss.dtype)
        if self.use_target_weight and target_weights is not None:
            weights = weights * target_weights
        return self.loss_weight * (loss * weights).sum() / weights.numel()


@MODELS.register_module()
class SoftmaxHeatmapHead(HeatmapHead):
    """mmpose's heatmap head whose maps are logits of a softmax over the cells.

    Training: ``forward`` returns logits. Evaluation: probabilities times 2 pi sigma^2, so that an ideal
    map peaks at 1 like a map trained by MSE, and flip test, decoding and scores work unchanged.
    """

    def forward(self, feats: tuple[Tensor]) -> Tensor:
        logits = super().forward(feats)
        if self.training:
            return logits
        probability = logits.float().flatten(2).softmax(-1).view(logits.shape)
        return probability * ideal_peak_inverse(self.decoder.sigma)

    @property
    def map_kind(self) -> str:
        """How ``geometry.heatmap.probability`` should read what ``forward`` returned."""
        return "logits" if self.training else "heatmap"


def ideal_peak_inverse(sigma: float | tuple[float, float]) -> float:
    """2 pi sigma_x sigma_y: one over the peak of a Gaussian that sums to one (sigma in heatmap pixels)."""
    sigma_x, sigma_y = (sigma, sigma) if isinstance(sigma, (int, float)) else sigma
    return 2 * math.pi * sigma_x * sigma_y


def map_kind(head: nn.Module) -> str:
    """'logits' or 'heatmap'; stock mmpose heads give heatmaps."""
    return getattr(head, "map_kind", "heatmap")


def build_student(model: dict) -> nn.Module:
    """Build the mmpose pose estimator of a project's model page, initialised as its config says."""
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    from sagecache.errors import SagecacheError

    MMLogger.get_current_instance().setLevel("WARNING")  # init_weights names every parameter
    with DefaultScope.overwrite_default_scope("mmpose"):
        try:
            student = MODELS.build(model)
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise SagecacheError(
                f"mmpose can't build this model: {error}",
                file="model.py",
                fix="Check type names and arguments.",
            ) from error
    student.init_weights()
    return student


def codec_of(model: dict) -> dict:
    """The codec of a model page: its head's decoder."""
    return dict(model["head"]["decoder"])


def heatmap_from_input(codec: dict) -> Tensor:
    """(3, 3) float32: network input pixels -> heatmap pixels, by the rule of the codec.

    UDP maps corner centres to corner centres; the others divide by the stride (mmpose codecs).
    """
    from sagecache.geometry.affine import heatmap_affine

    (width, height), (map_width, map_height) = codec["input_size"], codec["heatmap_size"]
    if codec["type"].startswith("UDP"):
        matrix = heatmap_affine((width, height), (map_width, map_height))
        return torch.from_numpy(matrix).float()
    return torch.diag(torch.tensor([map_width / width, map_height / height, 1.0]))
