"""Teachers out of local Hugging Face folders: Depth-Anything, ZoeDepth, DPT and their like, Sapiens2's
normals and point maps, and segmentation networks for the mask.

What a folder is stands in its config.json; crops are normalised as its preprocessor_config.json says. Nothing
is downloaded, no code of a folder is run, and torchvision is not needed.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.models.weight_files import read_config
from sagecache.teachers.answers import AnswerSettings, NetworkTeacher
from sagecache.teachers.base import file_hash

PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.index.json")
PERSON = "person"
IMAGENET = dict(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))
# model_type of config.json: kind and unit of its depth. Depth-Anything says it itself.
DEPTHS = {
    "zoedepth": ("metric", "m"),
    "glpn": ("metric", "m"),
    "dpt": ("disparity", "relative"),
    "sapiens2": ("metric", "m"),
}
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
        return load_folder(path, output).to(self.settings.device)


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
    statistics = {_statistics(folder) for folder in folders.values()}
    if len(statistics) > 1 and None in (settings.mean, settings.std):
        raise SagecacheError(
            "the folders want images normalised in different ways, and one batch serves them all",
            file=", ".join(map(str, folders.values())),
            fix="Give them to different teachers: --name of precompute geo keeps a store beside the other.",
        )
    mean, std = next(iter(statistics))
    kind, unit = "affine", "relative"
    if "depth" in folders and None in (settings.depth_kind, settings.unit):
        kind, unit = _depth_of(folders["depth"])
    return replace(
        settings,
        mean=settings.mean or mean,
        std=settings.std or std,
        depth_kind=settings.depth_kind or kind,
        unit=settings.unit or unit,
    )


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
    name = architecture(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network, report = getattr(import_transformers(), name).from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # transformers raises what its parts raise
        told = str(error).strip().split("\n")[0]
        raise SagecacheError(
            f"transformers can't load it: {told}", file=folder, fix="Download it anew."
        ) from error
    return network.eval(), {what: sorted(map(str, keys)) for what, keys in report.items() if keys}


def reader_of(folder: Path, output: str) -> Callable[[Any], Tensor]:
    """How an architecture's answer becomes the raw map of one output; told before anything is loaded.

    Raises SagecacheError for an architecture that doesn't give it.
    """
    name, config = architecture(folder), read_config(folder)
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
        return _person_logits(config)
    raise SagecacheError(
        f"a {name} gives no {output}",
        file=folder,
        fix="Depth: …ForDepthEstimation, Sapiens2ForPointmapEstimation; normal: …ForNormalEstimation; "
        "mask: …ForSemanticSegmentation.",
    )


def architecture(folder: Path) -> str:
    """The class of transformers that config.json names. Raises SagecacheError where it names none it has."""
    named = read_config(folder).get("architectures") or []
    if len(named) != 1 or not hasattr(import_transformers(), str(named[0])):
        raise SagecacheError(
            f"config.json names {', '.join(map(str, named)) or 'no architecture'}, none of transformers'",
            file=folder,
            fix="Take a folder that save_pretrained wrote, or a newer transformers.",
        )
    return str(named[0])


def import_transformers():
    """transformers, or a SagecacheError that says how to get it."""
    try:
        import transformers
    except ImportError as error:
        raise SagecacheError("transformers is not installed", fix=INSTALL) from error
    transformers.utils.logging.disable_progress_bar()  # of reading weights; ours is about the split
    return transformers


def folder_hash(folder: Path) -> str:
    """sha256 over config.json and the weights' files, by name. Raises SagecacheError where there are none."""
    read_config(folder)
    files = [folder / "config.json", *sorted({one for pattern in WEIGHTS for one in folder.glob(pattern)})]
    if len(files) == 1:
        raise SagecacheError("holds no weights", file=folder, fix="Download model.safetensors too.")
    listing = [[one.name, file_hash(one)] for one in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a folder's images, in grey levels; ImageNet's where it says nothing."""
    page = folder / PREPROCESSOR
    said = json.loads(page.read_text()) if page.is_file() else {}
    if said.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    values = (said.get(key) or default for key, default in IMAGENET.items())
    mean, std = (tuple(round(255 * float(one), 3) for one in value) for value in values)
    return mean, std


def _depth_of(folder: Path) -> tuple[str, str]:
    """(depth_kind, unit) of a folder. Raises SagecacheError where nobody knows."""
    config = read_config(folder)
    kind = str(config.get("model_type"))
    if "depth_estimation_type" in config or kind == "depth_anything":
        metric = config.get("depth_estimation_type", "relative") == "metric"
        return ("metric", "m") if metric else ("disparity", "relative")
    if kind not in DEPTHS:
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


def _person_logits(config: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """Logits (B, 2, h, w) of all else and of a person; without such a class the background is first."""
    labels = {str(name).lower(): int(index) for index, name in (config.get("id2label") or {}).items()}
    person = labels.get(PERSON)
    if person is None:
        return lambda answer: answer.logits

    def read(answer: Any) -> Tensor:
        logits = answer.logits.float()
        others = torch.cat([logits[:, :person], logits[:, person + 1 :]], 1)
        return torch.cat([others.logsumexp(1, keepdim=True), logits[:, person : person + 1]], 1)

    return read
