"""What a weight file is: which network, for what, whether its names are complete, and how to name it here.

Looks at names and shapes, builds the network that they describe without memory, and compares. Nothing of a
file runs.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sagecache.errors import SagecacheError, about, counted
from sagecache.models.public_weights import POSITIONS, from_public, grid_of, unwrapped
from sagecache.models.sapiens import SapiensNetwork, dense_head_of
from sagecache.models.vit import ARCHS, Arch, VisionTransformer, arch_of_state, ranked
from sagecache.models.weight_files import CONFIG, architectures, read_config, read_tensors

SAPIENS = "Sapiens v1: CC BY-NC 4.0, weights and what is made with them; no commercial use"
OTHERS = {
    "sapiens2": "Sapiens2's own licence, see the folder's LICENSE",
    "depth_pro": "Apple's, see its model card",
}
DENSE = {1: "depth", 3: "normal"}  # output by channels of a dense head; others are classes, for the mask
TRAINED = ("student.", "ema_teacher.")
TASKS = {  # suffix of an architecture: (what it serves as, output of a teacher)
    "ForDepthEstimation": ("teacher", "depth"),
    "ForPointmapEstimation": ("teacher", "depth"),
    "ForNormalEstimation": ("teacher", "normal"),
    "ForSemanticSegmentation": ("teacher", "mask"),
    "ForObjectDetection": ("detector", None),
    "ForPoseEstimation": ("student", None),
}


@dataclass(frozen=True)
class Identity:
    """what: in words. role: 'teacher', 'detector', 'program' (TorchScript: a run tells which of the two),
    'student' (whole), 'start' (a backbone), 'training' (a checkpoint of this project) or None (nobody here
    knows it). output: of a teacher.

    tensors, parameters: how many the file holds. gaps: names that are missing, left over or misshapen, () if
    all fit, None where there was nothing to compare with. done: what is changed when it is loaded.
    licence: what is known of it. settings: how data.py or model.py names it.
    """

    what: str
    role: str | None = None
    output: str | None = None
    tensors: int = 0
    parameters: int = 0
    gaps: tuple[str, ...] | None = None
    done: tuple[str, ...] = ()
    licence: str | None = None
    settings: Mapping[str, object] | None = None


def identify(path: Path) -> Identity:
    """Raises SagecacheError for a file that can't be read, that is cut, or that holds code, for shapes that
    no network has, and for a folder without config.json whose names nobody knows.
    """
    return identify_with_state(path)[0]


def identify_with_state(path: Path) -> tuple[Identity, dict[str, Tensor]]:
    """As `identify`; beside it the tensors as `read_tensors` gave them, {} of an archive with code."""
    path = Path(path)
    with about(path):
        return _identify(path)


def _identify(path: Path) -> tuple[Identity, dict[str, Tensor]]:
    if (archive := _archive(path)) is not None:
        return archive, {}
    state = read_tensors(path)
    if path.is_dir() and (path / CONFIG).is_file():
        return _folder(path, state), state
    found = _file(path, unwrapped(state))
    if path.is_dir() and (found.role is None or found.gaps):  # a backbone's names may be there, among others
        raise SagecacheError(
            f"holds weights and no {CONFIG}, which says what they are", file=path, fix="Download it too."
        )
    return found, state


def _file(path: Path, state: Mapping[str, Tensor]) -> Identity:
    """A checkpoint by its tensors and its name."""
    count = dict(tensors=len(state), parameters=sum(value.numel() for value in state.values()))
    if any(name.startswith(TRAINED) for name in state):
        return Identity("a checkpoint of sagecache's training, student and EMA teacher", "training", **count)
    state, done = from_public(state)
    own = SAPIENS if "decode_head.conv_seg.weight" in state else None
    return replace(_network(state, path), **count, done=tuple(done), licence=licence_of(path) or own)


def licence_of(path: Path) -> str | None:
    """What is known of a licence by the file's or folder's own name; the folders around it say nothing.

    Sapiens2 has its own. ('sapiens_2b' is v1, of two billion parameters.)
    """
    name = path.name.lower()
    return OTHERS["sapiens2"] if "sapiens2" in name else SAPIENS if "sapiens" in name else None


def _network(state: Mapping[str, Tensor], path: Path, heads: object = None) -> Identity:
    """A network by the names of its tensors. heads: of attention, where they are known."""
    if "backbone.patch_embed.projection.weight" not in state:
        parts = sorted({name.split(".")[0] for name in state})
        if "head.final_layer.weight" in state or "head.cls_x.weight" in state:
            return Identity(
                f"a pose network of mmpose with another backbone than a ViT ({', '.join(parts)})", "student"
            )
        return Identity(f"nothing that is known here: its names begin with {', '.join(parts[:6])}")
    arch = arch_of_state(state)
    known = isinstance(heads, int) and heads > 0 and arch.embed_dims % heads == 0
    arch = replace(arch, num_heads=heads) if known else arch
    name = _name_of(arch, path, known)
    if "decode_head.conv_seg.weight" in state:
        channels = ranked(state, "decode_head.conv_seg.weight", 4).shape[0]
        output = DENSE.get(channels, "mask")
        told = f"{channels} classes" if output == "mask" else {"normal": "normals"}.get(output, output)
        settings = dict(type="sapiens", files={output: str(path)})
        return Identity(
            f"Sapiens v1, {told}, {name}",
            "teacher",
            output,
            gaps=_gaps(state, _dense(state, arch)),
            settings=settings,
        )
    if "head.final_layer.weight" in state:
        joints = ranked(state, "head.final_layer.weight", 4).shape[0]
        settings = dict(backbone=_backbone(state, arch, name), head=_head(state))
        own = _backbone_shapes(state, arch) | _head_shapes(state)
        return Identity(
            f"a pose network of {joints} keypoints, {name}",
            "student",
            gaps=_gaps(state, own),
            settings=settings,
        )
    settings = dict(backbone=_backbone(state, arch, name))
    return Identity(
        f"a backbone, {name}", "start", gaps=_gaps(state, _backbone_shapes(state, arch)), settings=settings
    )


def _name_of(arch: Arch, path: Path, heads_known: bool) -> str:
    """Sapiens' or ViTPose's size; some are the same network, and then the file's name decides."""
    names = [name for name, known in ARCHS.items() if known == arch]
    if len(names) > 1:
        prefix = "sapiens" if licence_of(path) == SAPIENS else "vitpose"
        names = [name for name in names if name.startswith(prefix)]
    if names:
        return names[0]
    heads = f"{counted(arch.num_heads, 'head')}{'' if heads_known else ' supposed'}"
    return f"{arch.num_layers} blocks of {arch.embed_dims}, {heads}"


def _img_size(state: Mapping[str, Tensor]) -> tuple[int, int]:
    positions = ranked(state, POSITIONS, 3)
    found = None if positions is None else grid_of(positions.shape[1])
    height, width = found[0] if found else (16, 12)
    return 16 * height, 16 * width


def _backbone(state: Mapping[str, Tensor], arch: Arch, name: str) -> dict[str, object]:
    named = name if name in ARCHS else vars(arch)
    size = _img_size(state)
    return dict(type="VisionTransformer", arch=named, img_size=size, patch_cfg=dict(padding=2))


def _head(state: Mapping[str, Tensor]) -> dict[str, object]:
    """mmpose's HeatmapHead as its weights describe it, without loss and decoder."""
    deconvs, convs = _layers(state, "head.deconv_layers."), _layers(state, "head.conv_layers.")
    final = state["head.final_layer.weight"]
    first = deconvs[0].shape[0] if deconvs else (convs[0] if convs else final).shape[1]
    head: dict[str, object] = dict(type="HeatmapHead", in_channels=first, out_channels=final.shape[0])
    head["deconv_out_channels"] = tuple(weight.shape[1] for weight in deconvs)
    head["deconv_kernel_sizes"] = tuple(weight.shape[2] for weight in deconvs)
    if convs:
        head["conv_out_channels"] = tuple(weight.shape[0] for weight in convs)
        head["conv_kernel_sizes"] = tuple(weight.shape[2] for weight in convs)
    if final.shape[2] != 1:
        head["final_layer"] = dict(kernel_size=final.shape[2], padding=final.shape[2] // 2)
    return head


def _layers(state: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    """Weights of numbered convolutions, in their order."""
    number = re.compile(re.escape(prefix) + r"(\d{1,9})\.weight")
    found = {int(hit.group(1)): value for name, value in state.items() if (hit := number.fullmatch(name))}
    return [value for _, value in sorted(found.items()) if value.ndim == 4]


def _backbone_shapes(state: Mapping[str, Tensor], arch: Arch) -> dict[str, torch.Size]:
    with torch.device("meta"):
        net = VisionTransformer(arch, _img_size(state))
    return {f"backbone.{name}": value.shape for name, value in net.state_dict().items()}


def _dense(state: Mapping[str, Tensor], arch: Arch) -> dict[str, torch.Size]:
    with torch.device("meta"):
        net = SapiensNetwork(VisionTransformer(arch, _img_size(state)), dense_head_of(state))
    return {name: value.shape for name, value in net.state_dict().items()}


def _head_shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Names that mmpose's HeatmapHead has for these layers: all but the last have a batch norm."""
    shapes = {}
    for kind, width in (("deconv", 1), ("conv", 0)):
        for index, weight in enumerate(_layers(state, f"head.{kind}_layers.")):
            channels = torch.Size([weight.shape[width]])
            shapes[f"head.{kind}_layers.{3 * index}.weight"] = weight.shape
            if kind == "conv":
                shapes[f"head.conv_layers.{3 * index}.bias"] = channels
            norm = f"head.{kind}_layers.{3 * index + 1}"
            shapes |= {f"{norm}.{one}": channels for one in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{norm}.num_batches_tracked"] = torch.Size([])
    final = state["head.final_layer.weight"]
    shapes["head.final_layer.weight"] = final.shape
    return shapes | {"head.final_layer.bias": torch.Size([final.shape[0]])}


def _gaps(state: Mapping[str, Tensor], own: Mapping[str, torch.Size]) -> tuple[str, ...]:
    gaps = [f"missing {name}" for name in own if name not in state]
    gaps += [f"unexpected {name}" for name in state if name not in own]
    return tuple(gaps) + tuple(
        f"{name} is {tuple(state[name].shape)}, not {tuple(shape)}"
        for name, shape in own.items()
        if name in state
        and state[name].shape != shape
        and not (name == POSITIONS and _has_grid(state[name], shape))
    )


def _has_grid(positions: Tensor, shape: torch.Size) -> bool:
    return positions.shape[::2] == shape[::2] and grid_of(positions.shape[1]) is not None


def _archive(path: Path) -> Identity | None:
    """TorchScript and torch.export write zips with code beside the weights; None for any other file."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()]
    except zipfile.BadZipFile:
        return None  # who reads its tensors says what is wrong
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return Identity("a TorchScript file", "program", licence=licence_of(path))
    if any(name.startswith(("serialized_exported_program", "models/")) for name in names):
        return Identity(
            "a program of torch.export, which is not run here: take the publisher's TorchScript file"
        )
    return None


def _folder(path: Path, state: Mapping[str, Tensor]) -> Identity:
    """A Hugging Face folder by its config.json; transformers compares names, when it loads them."""
    config = read_config(path)
    named = ", ".join(architectures(path)) or "no architecture"
    role, output = next((found for suffix, found in TASKS.items() if named.endswith(suffix)), (None, None))
    count = dict(tensors=len(state), parameters=sum(value.numel() for value in state.values()))
    licence = OTHERS.get(str(config.get("model_type"))) or licence_of(path)
    if named == "VitPoseForPoseEstimation":
        state, done = from_public(unwrapped(state))
        heads = (config.get("backbone_config") or {}).get("num_attention_heads")
        return replace(_network(state, path, heads), **count, done=tuple(done), licence=licence)
    if role == "teacher":
        settings = dict(type="huggingface", files={output: str(path)})
        return Identity(f"Hugging Face {named}", role, output, **count, licence=licence, settings=settings)
    if role == "detector":
        return Identity(
            f"Hugging Face {named}",
            role,
            **count,
            licence=licence,
            settings=dict(type="huggingface", path=str(path)),
        )
    told = "which no student here is built from" if role == "student" else "which serves nobody here"
    return Identity(f"Hugging Face {named}, {told}", **count, licence=licence)


def network_of(
    state: Mapping[str, Tensor], size: tuple[int, int] | None = None
) -> tuple[Callable[[], SapiensNetwork], tuple[int, int]]:
    """(build, (width, height)) of the dense network of a file's tensors, for its own size or another."""
    state, _ = from_public(unwrapped(state))
    height, width = (size[1], size[0]) if size else _img_size(state)
    arch = arch_of_state(state)
    return lambda: SapiensNetwork(VisionTransformer(arch, (height, width)), dense_head_of(state)), (
        width,
        height,
    )
