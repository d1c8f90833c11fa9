"""What a head returns, as maps (B, K, H, W) of a kind that ``geometry.heatmap.probability`` reads.

A heatmap head's output is a map already. A SimCC head (SimCC, arXiv 2107.03332; RTMPose, arXiv 2303.07399)
returns logits over the bins of x and of y; its maps are drawn from their two distributions, so that
fusion, decoding and consistency know no SimCC.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sagecache.mm.compat import activate

activate()

from mmpose.codecs import SimCCLabel  # noqa: E402

from sagecache.geometry.affine import heatmap_affine  # noqa: E402
from sagecache.geometry.precision import full_precision  # noqa: E402
from sagecache.mm.codecs import SIMCC_SIGMA, label_gain, label_widths, map_size  # noqa: E402

# Added before the logarithm: small enough that a joint whose place the network holds for impossible still
# pulls with its whole gradient, large enough for float32.
FLOOR = 1e-20


def network_maps(network: nn.Module, inputs: Tensor) -> tuple[Tensor, str]:
    """A pose estimator's maps (B, K, H, W) float32 of normalised inputs (B, 3, h, w), and their kind."""
    return head_maps(network.head, network.extract_feat(inputs))


def head_maps(head: nn.Module, features: tuple[Tensor, ...]) -> tuple[Tensor, str]:
    """A head's maps (B, K, H, W) float32 of backbone features, and their kind: 'logits' or 'heatmap'."""
    output = head(features)
    if not is_simcc(head):
        return output.float(), map_kind(head)
    codec, loss = head.decoder, head.loss_module
    gain = label_gain(codec.sigma, codec.normalize, loss.label_softmax, loss.label_beta)
    size, sigma = tuple(codec.input_size), tuple(codec.sigma.tolist())
    widths = label_widths(size, sigma, codec.simcc_split_ratio, gain)
    return simcc_maps(*output, size, codec.simcc_split_ratio, loss.beta, widths), map_kind(head)


def map_kind(head: nn.Module) -> str:
    """'logits' or 'heatmap'; stock mmpose heatmap heads give heatmaps."""
    return "logits" if is_simcc(head) else getattr(head, "map_kind", "heatmap")


def is_simcc(head: nn.Module) -> bool:
    """Whether the head returns distributions over x and over y."""
    return isinstance(getattr(head, "decoder", None), SimCCLabel)


@full_precision
def simcc_maps(
    x: Tensor,
    y: Tensor,
    input_size: tuple[int, int],
    split: float,
    beta: float,
    widths: tuple[float, float],
) -> Tensor:
    """Logarithms of maps that sum to one, (B, K, H, W), from logits x (B, K, Wx) and y (B, K, Wy).

    The distribution of each axis is softmax(beta * logits): the one that KLDiscretLoss trains, so that
    confidence is the network's own. Its bin i lies at input pixel i / split. The map is what one draws for
    a joint, in the mean over that distribution: each bin is a Gaussian on the map's pixels, of such a sigma
    that a perfect output, `widths` wide (codecs.label_widths), becomes a Gaussian of SIMCC_SIGMA. So a
    peak is read between pixels, and its height is the chance that the joint is within about that sigma.

    x and y are independent in a SimCC network's output: two places (x1, y1), (x2, y2) of a joint show as
    four. Frame: codecs.heatmap_from_input.
    """
    maps = map_size(dict(type="SimCCLabel", input_size=input_size))
    scale = heatmap_affine(input_size, maps)
    logs = []
    for axis, logits in enumerate((x, y)):
        probability = (beta * logits).softmax(-1)
        kernel = _kernel(logits, maps[axis], scale[axis, axis] / split, widths[axis])
        drawn = probability @ kernel + FLOOR
        logs.append((drawn / drawn.sum(-1, keepdim=True)).log())
    return logs[0].unsqueeze(-2) + logs[1].unsqueeze(-1)


def _kernel(logits: Tensor, pixels: int, step: float, width: float) -> Tensor:
    """(bins, pixels): each bin, `step` map pixels from the last, as a Gaussian that sums to one in view."""
    centres = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype) * step
    places = torch.arange(pixels, device=logits.device, dtype=logits.dtype)
    variance = SIMCC_SIGMA**2 - width**2
    drawn = torch.exp(-((places - centres[:, None]) ** 2) / (2 * variance))
    return drawn / drawn.sum(-1, keepdim=True)
