"""Our networks and losses under names that mmpose configs can use. Importing it makes mmpose usable.

Registers: ``PoseNet`` (the demo's backbone), ``SoftmaxHeatmapHead``, ``SpatialCrossEntropyLoss``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sagecache.mm.compat import activate

activate()  # spawned loader workers import this module to unpickle what it defines, so it must come first

from mmengine.model import ImgDataPreprocessor  # noqa: E402
from mmpose.models.heads import HeatmapHead  # noqa: E402
from mmpose.registry import MODELS  # noqa: E402

from sagecache.errors import SagecacheError  # noqa: E402
from sagecache.geometry.affine import heatmap_affine  # noqa: E402
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

    codec = codec_of(model)  # refuses what neither training nor evaluation could use
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
    if not isinstance(student.data_preprocessor, ImgDataPreprocessor):
        raise SagecacheError(
            "no data_preprocessor that normalises images",
            file="model.py",
            fix="Set data_preprocessor=dict(type='PoseDataPreprocessor', mean=…, std=…, bgr_to_rgb=True).",
        )
    _require_maps(student, codec)
    student.init_weights()
    return student


@torch.no_grad()
def _require_maps(student: nn.Module, codec: dict) -> None:
    """Raise SagecacheError unless the network turns input_size into maps of heatmap_size.

    Shapes only, on torch's meta device: nothing is computed. A network that can't run there is let through.
    """
    (width, height), (across, down) = codec["input_size"], codec["heatmap_size"]
    state = {name: value.to("meta") for name, value in student.state_dict().items()}
    image = torch.empty(1, 3, height, width, device="meta")
    training = student.training
    try:
        maps = functional_call(student.eval(), state, (image, None), dict(mode="tensor"))
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
    found = tuple(getattr(maps, "shape", ()))
    if found[2:] != (down, across):
        raise SagecacheError(
            f"the head's maps are {found}, and the decoder's heatmap_size (width, height) is {across}x{down}",
            file="model.py",
            fix="Make them agree.",
        )


def codec_of(model: dict) -> dict:
    """The codec of a model page: its head's decoder, which must be mmpose's UDPHeatmap.

    Views, evaluation crops and the teacher's mirrored maps (x' = w - 1 - x) all map corner pixels to corner
    pixels. Codecs that divide by the stride (MSRAHeatmap) would put a mirrored map off by 1 - 1/stride
    heatmap pixels, and those without maps (SimCC, regression) give the teacher nothing to decode.
    Raises SagecacheError that names the codec.
    """
    head = model.get("head")
    decoder = head.get("decoder") if isinstance(head, Mapping) else None
    codec = dict(decoder) if isinstance(decoder, Mapping) else {}
    kind = codec.get("type", "none")
    if kind != "UDPHeatmap" or codec.get("heatmap_type", "gaussian") != "gaussian":
        kind = kind if kind != "UDPHeatmap" else f"{kind} of type '{codec['heatmap_type']}'"
        raise SagecacheError(
            f"the head's decoder is {kind}, and only UDPHeatmap with Gaussian maps serves",
            file="model.py",
            fix="Set decoder=dict(type='UDPHeatmap', input_size=…, heatmap_size=…, sigma=…).",
        )
    missing = [key for key in ("input_size", "heatmap_size", "sigma") if key not in codec]
    if missing:
        raise SagecacheError(f"the head's decoder has no '{missing[0]}'", file="model.py", fix="Add it.")
    for key in ("input_size", "heatmap_size"):
        sides = codec[key]
        whole = isinstance(sides, (list, tuple)) and all(isinstance(s, int) and _is_number(s) for s in sides)
        if not (whole and len(sides) == 2):
            raise SagecacheError(
                f"the decoder's {key} is {sides!r}", file="model.py", fix="Give (width, height)."
            )
    if not _is_number(codec["sigma"]):
        raise SagecacheError(
            f"the decoder's sigma is {codec['sigma']!r}", file="model.py", fix="Give heatmap pixels, > 0."
        )
    if abs(3 * codec["sigma"] - round(3 * codec["sigma"])) > 1e-6:
        raise SagecacheError(
            f"with sigma {codec['sigma']:g} mmpose draws labels near the left and top edges one pixel off",
            file="model.py",
            fix="Choose a sigma of which three times is whole: 1, 4 / 3, 5 / 3, 2, …",
        )
    if (model.get("test_cfg") or {}).get("shift_heatmap"):
        raise SagecacheError(
            "test_cfg.shift_heatmap would move mirrored maps that UDPHeatmap has in place already",
            file="model.py",
            fix="Set shift_heatmap=False.",
        )
    return codec


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def heatmap_from_input(codec: dict) -> Tensor:
    """(3, 3) float32: network input pixels -> heatmap pixels, corner centres to corner centres (UDP).

    codec: as `codec_of` returns it.
    """
    matrix = heatmap_affine(tuple(codec["input_size"]), tuple(codec["heatmap_size"]))
    return torch.from_numpy(matrix).float()
