"""Our networks and losses under names that mmpose configs can use. Importing it makes mmpose usable.

Registers: ``PoseNet`` (the demo's backbone), ``VisionTransformer`` (Sapiens, ViTPose),
``SoftmaxHeatmapHead``, ``SpatialCrossEntropyLoss``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sagecache.mm.compat import activate

activate()  # spawned loader workers import this module to unpickle what it defines, so it must come first

from mmengine.model import ImgDataPreprocessor  # noqa: E402
from mmpose.models.heads import HeatmapHead  # noqa: E402
from mmpose.registry import MODELS  # noqa: E402

from sagecache.errors import SagecacheError  # noqa: E402
from sagecache.mm.codecs import codec_of  # noqa: E402
from sagecache.mm.stock_pages import known_types  # noqa: E402
from sagecache.mm.vit import VisionTransformer  # noqa: E402
from sagecache.models.convnet import PoseNet  # noqa: E402

MODELS.register_module(name="PoseNet", module=PoseNet)
MODELS.register_module(name="VisionTransformer", module=VisionTransformer)


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


def build_student(model: dict, initialise: bool = True) -> nn.Module:
    """Build the mmpose pose estimator of a project's model page, initialised as its config says.

    initialise False leaves that out, and reads no weights: for a count, on torch's meta device.
    """
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    codec = codec_of(model)  # refuses what neither training nor evaluation could use
    MMLogger.get_current_instance().setLevel("WARNING")  # init_weights names every parameter
    with DefaultScope.overwrite_default_scope("mmpose"):
        try:
            student = MODELS.build(known_types(model))
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise SagecacheError(
                f"mmpose can't build this model: {error}",
                file="model.py",
                fix="Check type names and arguments.",
            ) from error
    if not isinstance(student.data_preprocessor, ImgDataPreprocessor):
        raise SagecacheError(
            "no data_preprocessor that normalises images",
            file="model.py",
            fix="Set data_preprocessor=dict(type='PoseDataPreprocessor', mean=…, std=…, bgr_to_rgb=True).",
        )
    _require_maps(student, codec)
    if initialise:
        student.init_weights()
    return student


@torch.no_grad()
def _require_maps(student: nn.Module, codec: dict) -> None:
    """Raise SagecacheError unless the network turns input_size into the maps, or bins, of its codec.

    Shapes only, on torch's meta device: nothing is computed. A network that can't run there is let through.
    """
    width, height = codec["input_size"]
    state = {name: value.to("meta") for name, value in student.state_dict().items()}
    image = torch.empty(1, 3, height, width, device="meta")
    training = student.training
    try:
        output = functional_call(student.eval(), state, (image, None), dict(mode="tensor"))
    except NotImplementedError:
        return
    except Exception as error:  # layers assert, index and multiply what does not fit, each in its own way
        if "meta" in str(error).lower():
            return
        told = str(error).split("\n")[0] or type(error).__name__
        raise SagecacheError(
            f"the network can't take images of {width}x{height}: {told}",
            file="model.py",
            fix="Make its parts and the decoder's input_size agree.",
        ) from error
    finally:
        student.train(training)
    _require_shape(output, codec)


def _require_shape(output: object, codec: dict) -> None:
    shapes = [tuple(getattr(one, "shape", ())) for one in (output if isinstance(output, tuple) else [output])]
    if codec["type"] == "SimCCLabel":
        bins = [round(side * codec.get("simcc_split_ratio", 2.0)) for side in codec["input_size"]]
        right = [shape[2:] for shape in shapes] == [(bins[0],), (bins[1],)]
        expected = f"input_size times simcc_split_ratio is {bins[0]} and {bins[1]} bins"
    else:
        across, down = codec["heatmap_size"]
        right = len(shapes) == 1 and shapes[0][2:] == (down, across)
        expected = f"heatmap_size (width, height) is {across}x{down}"
    if not right:
        raise SagecacheError(
            f"the head's maps are {', '.join(map(str, shapes))}, and the decoder's {expected}",
            file="model.py",
            fix="Make them agree.",
        )
