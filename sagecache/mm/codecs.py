"""What the codec of a model page means for us: which codecs serve, and the frames of their maps and outputs.

Three of mmpose's codecs serve, through the same maps: UDPHeatmap (corner pixels to corner pixels),
MSRAHeatmap (divided by the stride) and SimCCLabel (one distribution for each axis, which ``mm.outputs``
draws as maps). Reads configs only; builds no network. Convention of matrices: geometry.affine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import Size, heatmap_affine

SERVING = "UDPHeatmap with Gaussian maps, MSRAHeatmap and SimCCLabel with Gaussian labels"
NEEDED = {
    "UDPHeatmap": ("input_size", "heatmap_size", "sigma"),
    "MSRAHeatmap": ("input_size", "heatmap_size", "sigma"),
    "SimCCLabel": ("input_size", "sigma"),
}
# SimCC's maps: a quarter of the input, and its joints drawn with sigma 2, as mmpose draws heatmaps for crops
# of 192x256. A perfect output then reads as a confidence of .93 or more wherever the joint lies between
# pixels (at sigma 1.5: .89), to .005 map pixels.
SIMCC_STRIDE = 4
SIMCC_SIGMA = 2.0
MIN_KERNEL = 1.0  # map pixels: with a narrower one a joint between two pixels would show in neither
MIN_PEAK_MASS = 0.9


def codec_of(model: Mapping) -> dict:
    """The codec of a model page: its head's decoder, as mmpose takes it.

    Other codecs have no maps, or none whose peak is a joint: the EMA teacher would have nothing to decode.
    Raises SagecacheError that names the codec and those that serve.
    """
    head = model.get("head")
    decoder = head.get("decoder") if isinstance(head, Mapping) else None
    codec = dict(decoder) if isinstance(decoder, Mapping) else {}
    kind = _require_type(codec)
    missing = [key for key in NEEDED[kind] if key not in codec]
    if missing:
        raise _bad(f"the head's decoder has no '{missing[0]}'", "Add it.")
    for key in NEEDED[kind][:-1]:
        sides = codec[key]
        whole = isinstance(sides, (list, tuple)) and all(isinstance(s, int) and _is_number(s) for s in sides)
        if not (whole and len(sides) == 2 and min(sides) > 1):
            raise _bad(f"the decoder's {key} is {sides!r}", "Give (width, height), 2 or more.")
    if kind == "SimCCLabel":
        _check_simcc(codec, head.get("loss") or {})
    else:
        _check_sigma(codec)
        _check_flip_test(codec, model.get("test_cfg") or {})
    return codec


def map_size(codec: Mapping) -> Size:
    """(width, height) of the maps that training sees: of the codec, or of SimCC's distributions drawn."""
    if codec["type"] != "SimCCLabel":
        return tuple(codec["heatmap_size"])
    return tuple(max(2, round(side / SIMCC_STRIDE)) for side in codec["input_size"])


def map_sigma(codec: Mapping) -> float:
    """Sigma of a perfect map's Gaussian, map pixels: the unit of confidence (geometry.heatmap.decode)."""
    return SIMCC_SIGMA if codec["type"] == "SimCCLabel" else float(codec["sigma"])


def heatmap_from_input(codec: Mapping) -> Tensor:
    """(3, 3) float32: network input pixels -> map pixels, under the codec's own convention (MATHS 1).

    UDPHeatmap x (w' - 1) / (w - 1), MSRAHeatmap x w' / w. SimCC's bins are drawn where we like: as UDP.
    codec: as `codec_of` returns it, here and below.
    """
    return torch.from_numpy(_heatmap_from_input(codec)).float()


def mirror_in_heatmap(codec: Mapping) -> Tensor:
    """(3, 3) float32: map pixels of the mirrored input -> map pixels of the input; its own inverse.

    The input is mirrored by x' = w - 1 - x. UDP and SimCC: x' = w' - 1 - x in the map as well. MSRA:
    x' = w' - 1/stride - x, so that maps turned by ``flip(-1)`` lie 1 - 1/stride pixels too far left.
    """
    scale = _heatmap_from_input(codec)
    return torch.from_numpy(scale @ _mirror(codec["input_size"][0]) @ np.linalg.inv(scale)).float()


class MapFrame(NamedTuple):
    """What a training knows of a codec. from_input (3, 3): `heatmap_from_input`; sigma: `map_sigma`; mirror
    (3, 3): `mirror_in_heatmap`, or None where turning a map's columns is the same.
    """

    from_input: Tensor
    sigma: float
    mirror: Tensor | None = None


def map_frame(codec: dict) -> MapFrame:
    mirror = None if flips_in_place(codec) else mirror_in_heatmap(codec)
    return MapFrame(heatmap_from_input(codec), map_sigma(codec), mirror)


def flips_in_place(codec: Mapping) -> bool:
    """Whether ``flip(-1)`` of a mirrored input's maps is `mirror_in_heatmap`: no resampling is needed."""
    plain = torch.from_numpy(_mirror(map_size(codec)[0])).float()
    return torch.allclose(mirror_in_heatmap(codec), plain, rtol=0, atol=1e-4)


def decoded_from_input(codec: Mapping, test_cfg: Mapping) -> np.ndarray:
    """(3, 3) float64: a joint's place in the input -> what mmpose's predict decodes, still in the crop.

    mmpose 1.3.2 decodes UDPHeatmap to x w / (w - 1), the others to x. Its flip test turns maps by
    ``flip(-1)``, for MSRA with shift_heatmap then one pixel to the right where 1 - 1/stride are due, and
    SimCC's bins by Wx - 1 - i where split (w - 1) - i is due: the mean of both passes lies aside by half
    of the rest.
    """
    matrix = np.eye(3)
    if codec["type"] == "UDPHeatmap":
        size = np.array(codec["input_size"], dtype=float)
        matrix[[0, 1], [0, 1]] = size / (size - 1)
    elif test_cfg.get("flip_test"):
        matrix[0, 2] = _right_by_flip_test(codec, test_cfg) / 2
    return matrix


def label_widths(
    input_size: Size, sigma: float | Sequence[float], split: float, gain: float
) -> tuple[float, float]:
    """Sigmas (x, y), map pixels, of the distribution that a SimCC network learns for a joint.

    sigma in bins. gain: softmax(gain * exp(-d^2 / 2 sigma^2)) is near its peak a Gaussian of sigma /
    sqrt(gain) (KLDiscretLoss with label_softmax); 1 without.
    """
    pair = (sigma, sigma) if _is_number(sigma) else tuple(float(one) for one in sigma)
    scale = heatmap_affine(input_size, map_size(dict(type="SimCCLabel", input_size=input_size)))
    return tuple(scale[axis, axis] * pair[axis] / split / math.sqrt(gain) for axis in (0, 1))


def label_gain(
    sigma: float | Sequence[float], normalize: bool, label_softmax: bool, label_beta: float
) -> float:
    """What KLDiscretLoss multiplies a label by in its exponent: label_beta times the label's peak; else 1."""
    if not label_softmax:
        return 1.0
    peak = 1 / (math.sqrt(2 * math.pi) * max(np.atleast_1d(sigma))) if normalize else 1.0
    return label_beta * peak


def _heatmap_from_input(codec: Mapping) -> np.ndarray:
    size, maps = tuple(codec["input_size"]), map_size(codec)
    if codec["type"] == "MSRAHeatmap":
        return np.diag([maps[0] / size[0], maps[1] / size[1], 1.0])
    return heatmap_affine(size, maps)


def _mirror(width: int) -> np.ndarray:
    return np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def _right_by_flip_test(codec: Mapping, test_cfg: Mapping) -> float:
    """How far right of the plain pass mmpose puts the mirrored one, input pixels."""
    if codec["type"] == "SimCCLabel":
        split = codec.get("simcc_split_ratio", 2.0)
        return (split - 1) / split
    stride = codec["input_size"][0] / codec["heatmap_size"][0]
    return 1 - stride + (stride if test_cfg.get("shift_heatmap") else 0)


# --- what is refused -----------------------------------------------------------------------------


def _require_type(codec: Mapping) -> str:
    kind = codec.get("type", "none")
    told = kind
    if kind == "UDPHeatmap" and codec.get("heatmap_type", "gaussian") != "gaussian":
        told = f"{kind} of type '{codec['heatmap_type']}'"
    if kind == "SimCCLabel" and codec.get("smoothing_type", "gaussian") != "gaussian":
        told = f"{kind} of smoothing_type '{codec['smoothing_type']}'"
    if told not in NEEDED:
        raise _bad(
            f"the head's decoder is {told}, and only {SERVING} serve",
            "Set decoder=dict(type='UDPHeatmap', input_size=…, heatmap_size=…, sigma=…).",
        )
    return kind


def _check_sigma(codec: Mapping) -> None:
    sigma = codec["sigma"]
    if not _is_number(sigma):
        raise _bad(f"the decoder's sigma is {sigma!r}", "Give heatmap pixels, > 0.")
    cut_out = codec["type"] == "UDPHeatmap" or not codec.get("unbiased")  # else drawn over the whole map
    if cut_out and abs(3 * sigma - round(3 * sigma)) > 1e-6:
        raise _bad(
            f"with sigma {sigma:g} mmpose draws labels near the left and top edges one pixel off",
            "Choose a sigma of which three times is whole: 1, 4 / 3, 5 / 3, 2, …",
        )


def _check_flip_test(codec: Mapping, test_cfg: Mapping) -> None:
    shift = bool(test_cfg.get("shift_heatmap"))
    if codec["type"] == "UDPHeatmap":
        if shift:
            raise _bad(
                "test_cfg.shift_heatmap would move mirrored maps that UDPHeatmap has in place already",
                "Set shift_heatmap=False.",
            )
        return
    stride = codec["input_size"][0] / codec["heatmap_size"][0]
    if test_cfg.get("flip_test") and shift != (stride >= 2):
        aside = 1 / stride if shift else 1 - 1 / stride
        raise _bad(
            f"with shift_heatmap={shift} the flip test puts mirrored maps of MSRAHeatmap at stride "
            f"{stride:g} {aside:.2g} pixels aside",
            f"Set test_cfg's shift_heatmap={not shift}; the half input pixel that it leaves is taken off.",
        )


def _check_simcc(codec: Mapping, loss: Mapping) -> None:
    """Refuse what would leave no peak in the maps, or a loss whose distribution we can't know."""
    sigma, split = codec["sigma"], codec.get("simcc_split_ratio", 2.0)
    pair = sigma if isinstance(sigma, (list, tuple)) else (sigma, sigma)
    if not (len(pair) == 2 and all(map(_is_number, pair))):
        raise _bad(
            f"the decoder's sigma is {sigma!r}", "Give bins, > 0: one number, or one for each of x and y."
        )
    if not _is_number(split):
        raise _bad(f"the decoder's simcc_split_ratio is {split!r}", "Give bins per input pixel, > 0.")
    if loss.get("type", "KLDiscretLoss") != "KLDiscretLoss":
        raise _bad(
            f"the SimCC head's loss is {loss['type']}, and only KLDiscretLoss tells what its outputs mean",
            "Set loss=dict(type='KLDiscretLoss', use_target_weight=True, beta=10.0, label_softmax=True).",
        )
    softmax, label_beta = bool(loss.get("label_softmax", False)), loss.get("label_beta", 10.0)
    gain = label_gain(pair, codec.get("normalize", True), softmax, label_beta)
    bins = max(codec["input_size"]) * split
    if softmax and (mass := _peak_mass(gain, max(pair), bins)) < MIN_PEAK_MASS:
        raise _bad(
            f"label_softmax leaves {mass:.0%} of a SimCC label in its peak: a perfect network is unsure",
            "Set the decoder's normalize=False, or label_softmax=False.",
        )
    widths = label_widths(tuple(codec["input_size"]), pair, split, gain)
    if max(widths) ** 2 > SIMCC_SIGMA**2 - MIN_KERNEL**2:
        raise _bad(
            f"the decoder's sigma {sigma!r} is {max(widths):.2g} pixels of a map at a quarter of the input",
            f"Choose bins that make {math.sqrt(SIMCC_SIGMA**2 - MIN_KERNEL**2):.2g} pixels or less.",
        )


def _peak_mass(gain: float, sigma: float, bins: float) -> float:
    """Share of softmax(gain * Gaussian of sigma bins) that is above its uniform ground."""
    offsets = np.arange(-round(bins / 2), round(bins / 2))
    weights = np.exp(gain * np.exp(-(offsets**2) / (2 * sigma**2)))
    return float((weights - 1).sum() / weights.sum())


def _bad(message: str, fix: str) -> SagecacheError:
    return SagecacheError(message, file="model.py", fix=fix)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
