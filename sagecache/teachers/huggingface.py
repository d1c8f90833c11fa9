"""Teachers out of local Hugging Face folders: Depth-Anything, ZoeDepth, DPT and their like, Sapiens2's
normals and point maps, and segmentation networks for the mask.

What a folder is stands in its config.json; crops are normalised as its preprocessor_config.json says. Nothing
is downloaded, no code of a folder is run, and torchvision is not needed.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.models.convnet import PIXEL_MEAN, PIXEL_STD
from sagecache.models.weight_files import (
    CONFIG,
    architectures,
    read_config,
    read_json,
    safetensors_of,
    told_of_pickle,
)
from sagecache.models.weights import check_finite
from sagecache.teachers.answers import AnswerSettings, NetworkTeacher
from sagecache.teachers.base import file_hash, usable_device

PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.index.json")
PERSON = "person"
# in shares of 255, as their files say it
IMAGENET = dict(
    image_mean=tuple(level / 255 for level in PIXEL_MEAN), image_std=tuple(level / 255 for level in PIXEL_STD)
)
# model_type of config.json: kind and unit of its depth. Depth-Anything says it itself.
DEPTHS = {
    "zoedepth": ("metric", "m"),
    "glpn": ("metric", "m"),
    "dpt": ("disparity", "relative"),
    "sapiens2": ("metric", "m"),
}
NO_WEIGHTS = {"I8": "int8", "U8": "uint8", "C64": "complex64"}  # counts and indices are of more bytes
ANEW = "Download it anew."
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, see _statistics
_INDEX = re.compile(r"\d{1,9}")
INSTALL = "pip install 'sagecache[huggingface]'"


@dataclass(frozen=True)
class HuggingFaceSettings(AnswerSettings):
    """Which folders; the other settings are those of AnswerSettings.

    files: output -> folder that save_pretrained wrote, or a download of one: 'depth' (a network for depth
    estimation, or Sapiens2's point maps), 'normal' (Sapiens2's), 'mask' (semantic segmentation: its class
    'person', else whatever is not its first class).
    mean, std, depth_kind, unit: None takes the folder's own. input_size: (width, height) in multiples of the
    network's patches, 14 pixels for Depth-Anything, 16 for Sapiens2, 32 for the others.
    """

    files: dict[str, str] = field(default_factory=dict)
    input_size: tuple[int, int] = (504, 672)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    depth_kind: str | None = None
    unit: str | None = None
    normal_axes: str = "opengl"

    def __post_init__(self) -> None:
        if not self.files:
            raise SagecacheError(
                "a Hugging Face teacher needs 'files'", fix="For example files=dict(depth='folder')."
            )
        if None not in (self.mean, self.std, self.depth_kind, self.unit):
            super().__post_init__()

    @property
    def returned(self) -> tuple[str, ...]:
        return tuple(self.files)


class HuggingFaceTeacher(NetworkTeacher):
    """Teacher over Hugging Face folders; see HuggingFaceSettings and NetworkTeacher."""

    def __init__(self, settings: HuggingFaceSettings) -> None:
        paths = {name: Path(path) for name, path in settings.files.items()}
        super().__init__(
            "huggingface", resolve(settings), paths, {name: folder_hash(path) for name, path in paths.items()}
        )

    def load(self, output: str, path: Path) -> nn.Module:
        device = usable_device(self.settings.device)
        return load_folder(path, output).to(device)


class Reader(nn.Module):
    """A network of transformers whose forward gives one map instead of a dictionary."""

    def __init__(self, network: nn.Module, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.network, self.read = network, read

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.network(pixel_values=images))


def resolve(settings: HuggingFaceSettings) -> HuggingFaceSettings:
    """The settings with every None replaced by what the folders say. Raises SagecacheError."""
    folders = {name: Path(path) for name, path in settings.files.items()}
    kind, unit = "affine", "relative"
    if "depth" in folders and None in (settings.depth_kind, settings.unit):
        kind, unit = _depth_of(folders["depth"])
    if None in (settings.mean, settings.std):
        mean, std = _common({folder: _statistics(folder) for folder in folders.values()})
        settings = replace(settings, mean=settings.mean or mean, std=settings.std or std)
    return replace(
        settings,
        depth_kind=settings.depth_kind or kind,
        unit=settings.unit or unit,
    )


def _common(statistics: Mapping[Path, Statistics | None]) -> Statistics:
    """What all folders want. Raises SagecacheError where one doesn't say it, or they don't agree."""
    silent = next((folder for folder, said in statistics.items() if said is None), None)
    if silent is not None:
        raise SagecacheError(
            "is missing, and nothing else says how the network's images are normalised",
            file=silent / PREPROCESSOR,
            fix="Download it too, or set mean and std in data.py.",
        )
    if len(set(statistics.values())) > 1:
        raise SagecacheError(
            "the folders want images normalised in different ways, and one batch serves them all",
            file=", ".join(map(str, statistics)),
            fix="Give one to a second project's teacher, and join its store: more_targets of data.py.",
        )
    return next(iter(statistics.values()))


def load_folder(folder: Path, output: str) -> Reader:
    """The network of a folder as a reader of one output, in evaluation mode. Raises SagecacheError."""
    read = reader_of(folder, output)
    return Reader(load_network(folder), read)


def load_network(folder: Path) -> nn.Module:
    """The network of a folder, float32, in evaluation mode, nothing left random. Raises SagecacheError."""
    network, report = load_with_report(folder)
    gaps = [f"{what.replace('_', ' ')} {', '.join(names[:3])}" for what, names in report.items()]
    if gaps:
        raise SagecacheError(
            f"its weights don't fit {type(network).__name__}: {'; '.join(gaps)}",
            file=folder,
            fix="Download it anew.",
        )
    return network


def load_with_report(folder: Path) -> tuple[nn.Module, dict[str, list[str]]]:
    """As `load_network`, whatever the names; beside it {'missing_keys', …: names}, {} where all match."""
    name, transformers = architecture(folder), import_transformers()
    try:
        _refuse_quantised(folder)
        with _silent(transformers):
            network, report = getattr(transformers, name).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they stand in the report
                dtype=torch.float32,
            )
    except SagecacheError:
        raise
    except Exception as error:  # transformers raises what its parts raise
        raise told_of(error, "transformers can't load it", folder) from error
    gaps = {what: sorted(map(_named, keys)) for what, keys in report.items() if keys}
    if not gaps:
        check_finite(dict(network.named_parameters()), folder)
    return network.eval(), gaps


def _refuse_quantised(folder: Path) -> None:
    """Raise SagecacheError for tensors of a folder that transformers would silently turn into floats."""
    for file in safetensors_of(folder):
        with safe_open(file, framework="pt") as held:
            for name in held.keys():
                kind = held.get_slice(name).get_dtype()
                if kind in NO_WEIGHTS:
                    raise SagecacheError(
                        f"is {NO_WEIGHTS[kind]}, which is no precision of weights",
                        file=file,
                        record=name,
                        fix="Take the folder as it was before it was quantised.",
                    )


def _named(key: object) -> str:
    """A name of a report; with the shapes of the file and of the network where they differ."""
    if isinstance(key, tuple) and len(key) == 3:
        return f"{key[0]} is {tuple(key[1])}, not {tuple(key[2])}"
    return str(key)


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """Without warnings, and without the pages that transformers logs: what they tell becomes our errors."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def told_of(error: Exception, what: str, file: Path) -> SagecacheError:
    """An error of transformers in a line; where it wanted to run code of a folder, that this is not done."""
    if "trust_remote_code" in str(error):
        return _own_code(file)
    if told := told_of_pickle(error):
        return SagecacheError(told, file=file, fix=ANEW)
    first = str(error).strip().split("\n")[0]
    return SagecacheError(f"{what}: {first}", file=file, fix=ANEW)


def reader_of(folder: Path, output: str) -> Callable[[Any], Tensor]:
    """How an architecture's answer becomes the raw map of one output; told before anything is loaded.

    Raises SagecacheError for an architecture that doesn't give it.
    """
    name = architecture(folder)
    if output == "depth" and name == "DepthProForDepthEstimation":
        raise SagecacheError(
            "DepthPro answers in inverse depths of its own field of view",
            file=folder,
            fix="Take another network.",
        )
    if output == "depth" and name.endswith("ForDepthEstimation"):
        return lambda answer: answer.predicted_depth
    if output == "depth" and name == "Sapiens2ForPointmapEstimation":
        return _depth_of_points
    if output == "normal" and name.endswith("ForNormalEstimation"):
        return lambda answer: answer.normals
    if output == "mask" and name.endswith("ForSemanticSegmentation"):
        return _person_logits(folder)
    raise SagecacheError(
        f"a {name} gives no {output}",
        file=folder,
        fix="Depth: …ForDepthEstimation, Sapiens2ForPointmapEstimation; normal: …ForNormalEstimation; "
        "mask: …ForSemanticSegmentation.",
    )


def architecture(folder: Path) -> str:
    """The class of transformers that config.json names. Raises SagecacheError where it names none it has."""
    config, transformers = read_config(folder), import_transformers()
    named = architectures(folder)
    found = getattr(transformers, named[0], None) if len(named) == 1 else None
    # an Auto… class is no network: it would look up code in the folder's auto_map
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return named[0]
    if config.get("auto_map"):
        raise _own_code(folder)
    raise SagecacheError(
        f"config.json names {', '.join(named) or 'no architecture'}, no network of transformers",
        file=folder,
        fix="Take a folder that save_pretrained wrote, or a newer transformers.",
    )


def import_transformers():
    """transformers, or a SagecacheError that says how to get it."""
    try:
        import transformers
    except ImportError as error:
        raise SagecacheError("transformers is not installed", fix=INSTALL) from error
    transformers.utils.logging.disable_progress_bar()  # of reading weights; ours is about the split
    # Where trust_remote_code does not reach (a network's own backbone) it asks on stdin; at 0 it refuses.
    transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    return transformers


def class_indices(folder: Path) -> dict[str, int]:
    """{class, in small letters: index} of config.json's id2label, {} without. Raises SagecacheError."""
    said = read_config(folder).get("id2label") or {}
    if not isinstance(said, Mapping) or not all(_INDEX.fullmatch(index) for index in said):
        raise SagecacheError("'id2label' is no object of names by index", file=folder / CONFIG, fix=ANEW)
    return {str(name).lower(): int(index) for index, name in said.items()}


def folder_hash(folder: Path) -> str:
    """sha256 over config.json and the weights' files, by name. Raises SagecacheError where there are none."""
    read_config(folder)
    files = [folder / "config.json", *sorted({one for pattern in WEIGHTS for one in folder.glob(pattern)})]
    if len(files) == 1:
        raise SagecacheError("holds no weights", file=folder, fix="Download model.safetensors too.")
    listing = [[one.name, file_hash(one)] for one in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def load_processor(folder: Path) -> Any:
    """The preprocessing of a folder, as transformers builds it. Raises SagecacheError where it can't."""
    transformers = import_transformers()
    try:
        with _silent(transformers):
            return transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers raises what its parts raise
        raise told_of(error, "its preprocessing can't be built", folder / PREPROCESSOR) from error


def _statistics(folder: Path) -> Statistics | None:
    """Mean and std of a folder's images, in grey levels: pixels are (grey level - mean) / std.

    What its processor does; if transformers can't build that (Sapiens2's needs torchvision), what its file
    says, ImageNet's where that leaves something open. None without a file.
    """
    page = folder / PREPROCESSOR
    stated = _stated(read_json(page), page) if page.is_file() else None
    try:
        processor = load_processor(folder)
    except SagecacheError:
        return stated
    return _probed(processor, page)


def _stated(said: Mapping[str, Any], page: Path) -> Statistics:
    scale = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    if not _is_number(scale) or scale <= 0:
        raise SagecacheError(
            f"'rescale_factor' is {str(scale)[:40]}, no number above zero", file=page, fix=ANEW
        )
    mean, std = (_three(said, key, page) for key in IMAGENET)
    if min(std) <= 0:
        raise SagecacheError(f"'image_std' is {said['image_std']}, not above zero", file=page, fix=ANEW)
    if said.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return _rounded(one / scale for one in mean), _rounded(one / scale for one in std)


def _probed(processor: Any, page: Path) -> Statistics:
    """What a processor does to pictures of one colour. Raises SagecacheError for anything but a shift and a
    scale of each of RGB's channels.
    """
    colours = [(0, 0, 0), (255, 255, 255), (96, 96, 96), (255, 0, 0)]
    pictures = [np.full((64, 64, 3), colour, np.uint8) for colour in colours]
    try:
        made = processor(images=pictures, do_resize=False, return_tensors="np")["pixel_values"]
        # in the middle: a crop, or what is added around a picture, is not asked about
        black, white, grey, red = (
            np.asarray(one, float)[:, one.shape[1] // 2, one.shape[2] // 2] for one in made
        )
    except Exception as error:
        raise told_of(error, "its preprocessing fails on plain pictures", page) from error
    slope = (white - black) / 255
    wanted = np.stack([black + 96 * slope, [white[0], *black[1:]]])
    if not ((slope > 0).all() and np.allclose([grey, red], wanted, atol=1e-3 * abs(white - black).max())):
        raise SagecacheError(
            "its preprocessing is no shift and scale of RGB's channels",
            file=page,
            fix="Set mean and std in data.py, or export the network with its preprocessing to TorchScript.",
        )
    return _rounded(-black / slope), _rounded(1 / slope)


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    """Of float32's noise, so that a fingerprint is of what was meant."""
    return tuple(round(float(value), 3) + 0.0 for value in values)


def _three(said: Mapping[str, Any], key: str, page: Path) -> tuple[float, ...]:
    """Three numbers, ImageNet's where nothing is said."""
    value = IMAGENET[key] if said.get(key) is None else said[key]
    if not (isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_number, value))):
        raise SagecacheError(f"'{key}' is {str(value)[:40]}, no list of three numbers", file=page, fix=ANEW)
    return tuple(map(float, value))


def _is_number(value: object) -> bool:
    """A plain number: JSON as Python reads it also has NaN, Infinity and integers beyond any float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _own_code(file: Path) -> SagecacheError:
    return SagecacheError(
        "it brings code of its own ('auto_map'), which is not run",
        file=file,
        fix="Take a folder whose classes transformers has itself.",
    )


def _depth_of(folder: Path) -> tuple[str, str]:
    """(depth_kind, unit) of a folder. Raises SagecacheError where nobody knows."""
    config = read_config(folder)
    kind = str(config.get("model_type"))
    if "depth_estimation_type" in config or kind == "depth_anything":
        metric = config.get("depth_estimation_type", "relative") == "metric"
        return ("metric", "m") if metric else ("disparity", "relative")
    backbone = config.get("backbone_config")
    if kind == "dpt" and isinstance(backbone, Mapping) and "dinov2" in str(backbone.get("model_type")):
        kind = "dpt on DINOv2"  # published ones give metres; nothing in the folder says so
    if kind not in DEPTHS:
        reader_of(folder, "depth")  # which says it of a network that gives none
        raise SagecacheError(
            f"nothing says what kind of depth a '{kind}' gives",
            file=folder,
            fix="Set depth_kind='metric', 'affine' or 'disparity', and unit, in data.py.",
        )
    return DEPTHS[kind]


def _depth_of_points(answer: Any) -> Tensor:
    """Sapiens2's points (B, 3, h, w) in camera axes, z away; its scale brings them to metres."""
    depth = answer.pointmaps[:, 2:]
    return depth if answer.scales is None else depth / answer.scales[:, :, None, None]


def _person_logits(folder: Path) -> Callable[[Any], Tensor]:
    """Logits (B, 2, h, w) of all else and of a person; without such a class the background is first."""
    person = class_indices(folder).get(PERSON)
    if person is None:
        return lambda answer: answer.logits

    def read(answer: Any) -> Tensor:
        logits = answer.logits.float()
        if person >= logits.shape[1]:
            raise SagecacheError(
                f"its class '{PERSON}' is {person} of {logits.shape[1]}", file=folder / CONFIG, fix=ANEW
            )
        others = torch.cat([logits[:, :person], logits[:, person + 1 :]], 1)
        return torch.cat([others.logsumexp(1, keepdim=True), logits[:, person : person + 1]], 1)

    return read
