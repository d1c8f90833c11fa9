"""A trained network for elsewhere: mmpose's config, TorchScript, ONNX, a Hugging Face VitPose folder.

Each is written under a temporary name, loaded as its users load it, run against the original, and only then
put in place. Functions of pictures take (B, 3, H, W), RGB grey levels of 0..255, and normalise them.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sagecache.errors import SagecacheError, nearest
from sagecache.mm.checkpoints import load_network, save_network
from sagecache.mm.codecs import codec_of
from sagecache.mm.outputs import is_simcc
from sagecache.mm.plain_config import foreign_types, mmpose_config
from sagecache.mm.registry import build_student
from sagecache.models.public_weights import to_hugging_face
from sagecache.models.vit import VisionTransformer
from sagecache.models.weight_files import read_tensors
from sagecache.project import Project
from sagecache.project.project import EXPORTED, is_exported

FOLDER = {"config.json", "model.safetensors", "preprocessor_config.json"}  # of a Hugging Face export
TOLERANCE = 1e-4  # of the largest value: other runtimes add up in another order
SUFFIXES = {
    ".pth": "mmpose",
    ".safetensors": "mmpose",
    ".onnx": "onnx",
    ".pt": "torchscript",
    ".pt2": "torchscript",
    ".ts": "torchscript",
    "": "huggingface",
}


def export(
    project: Project,
    checkpoint: Path,
    output: Path,
    network: str,
    kind: str | None = None,
    force: bool = False,
) -> list[str]:
    """Write a checkpoint's network as kind, one of KINDS; by default by output's suffix.

    Returns what was written and how it was checked, in words. Raises SagecacheError where the architecture
    can't be written so, where what was written answers otherwise than the original, and where something
    stands in its place: force replaces a file, or a folder of an earlier export, and never the checkpoint.
    """
    if kind is None and output.suffix not in SUFFIXES:
        raise SagecacheError(
            f"no export has the suffix '{output.suffix}'",
            file=output,
            fix=f"Known: {', '.join(filter(None, SUFFIXES))}",
        )
    kind = kind or SUFFIXES[output.suffix]
    if kind not in KINDS:
        raise SagecacheError(f"unknown kind of export '{kind}'", fix=nearest(kind, KINDS))
    if output.exists() and output.samefile(checkpoint):
        raise SagecacheError("is the checkpoint itself", file=output, fix="Give another name")
    _require_free(output, kind, force)
    student = build_student(project.model, initialise=False)
    load_network(student, checkpoint, network)
    if kind == "mmpose":
        return _to_mmpose(student.eval(), project, output, force)
    if kind == "onnx":
        _require_free(_weights_of(output), kind, force)
    with _in_place(output) as temporary:
        told = KINDS[kind](student.eval(), project, temporary)
        if kind == "onnx" and not _weights_of(temporary).exists():
            _weights_of(output).unlink(missing_ok=True)  # of an earlier, larger one
    return [told]


def _require_free(output: Path, kind: str, force: bool) -> None:
    """Raise SagecacheError where a file or a folder would be lost."""
    exported = kind == "huggingface" and output.is_dir() and {one.name for one in output.iterdir()} == FOLDER
    if output.is_dir() and not exported:
        raise SagecacheError(
            "is a folder that no export has written",
            file=output,
            fix="Give another name" + (", such as pose.pth" if kind == "huggingface" else ""),
        )
    if output.exists() and not force:
        raise SagecacheError(
            "is already there", file=output, fix="Give another name, or --force to replace it"
        )


class PoseFunction(nn.Module):
    """A pose estimator as one function of pictures: images (B, 3, H, W) RGB of 0..255 -> heatmaps
    (B, K, h, w), or the two distributions of a SimCC head, (B, K, Wx) and (B, K, Wy).
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        processor = student.data_preprocessor
        self.register_buffer("mean", processor.mean.detach().float().view(1, 3, 1, 1).clone())
        self.register_buffer("std", processor.std.detach().float().view(1, 3, 1, 1).clone())
        self.backbone, self.neck, self.head = student.backbone, getattr(student, "neck", None), student.head

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.backbone((images - self.mean) / self.std)
        return self.head(features if self.neck is None else self.neck(features))


# -- plain mmpose --------------------------------------------------------------------------------------


def _to_mmpose(student: nn.Module, project: Project, output: Path, force: bool) -> list[str]:
    """The checkpoint, and beside it a config for mmpose.apis where mmpose has these networks."""
    page, foreign = output.with_suffix(".py"), foreign_types(project.model)
    if page == output:
        raise SagecacheError(
            "is where its config goes", file=output, fix="Name the weights .pth or .safetensors"
        )
    if not foreign:  # a page of the project may have this name
        if page.is_file() and not is_exported(page):
            raise SagecacheError(
                "is where its config goes, and no export has written it", file=page, fix="Give another name"
            )
        _require_free(page, "mmpose", force)
    with _in_place(output) as temporary:
        save_network(student, temporary)
        again = build_student(project.model, initialise=False)
        again.load_state_dict(read_tensors(temporary))
        error = _difference(PoseFunction(student), PoseFunction(again.eval()), _pictures(project))
    count = len(student.state_dict())
    told = [f"{output}: plain mmpose checkpoint, {count} tensors; loaded and run again: off by {error:.1e}"]
    if foreign:
        return [*told, f"no config beside it: mmpose has no {', '.join(foreign)}"]
    with _in_place(page) as temporary:
        temporary.write_text(f"{EXPORTED}\n\n{mmpose_config(project)}")
    needs = " (needs mmpretrain, for the ViT)" if isinstance(student.backbone, VisionTransformer) else ""
    return [*told, f"{page}: its config for mmpose.apis.init_model and inference_topdown{needs}"]


# -- functions of pictures -----------------------------------------------------------------------------


def _to_torchscript(student: nn.Module, project: Project, output: Path) -> str:
    function, images = PoseFunction(student), _pictures(project)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: sizes become constants, which is meant
        torch.jit.trace(function, images).save(str(output))
        loaded = torch.jit.load(str(output))
    error = _difference(function, loaded, images[:1])  # another batch than the traced one
    return f"TorchScript, {_signature(student, images)}; run against the original: off by {error:.1e}"


def _to_onnx(student: nn.Module, project: Project, output: Path) -> str:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise SagecacheError(f"{error.name} is not installed", fix="pip install 'sagecache[onnx]'") from error
    function, images = PoseFunction(student), _pictures(project)
    names = ["x", "y"] if is_simcc(student.head) else ["heatmaps"]
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            function,
            (images,),
            input_names=["images"],
            output_names=names,
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
        )
        program.save(str(output))  # from 1.5 GiB on weights go into a file beside it
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])

    def run(pictures: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(one) for one in session.run(None, {"images": pictures.numpy()}))

    error = _difference(function, run, images[:1])
    told = f"ONNX, {_signature(student, images)}; run by onnxruntime against the original: off by {error:.1e}"
    return told if not _weights_of(output).exists() else f"{told}; its weights: {_weights_of(output).name}"


def _weights_of(output: Path) -> Path:
    """Where ONNX keeps what is too large for one file."""
    return output.with_name(f"{output.name}.data")


def _to_hugging_face(student: nn.Module, project: Project, output: Path) -> str:
    """A VitPoseForPoseEstimation, with its preprocessing; normalised images in, heatmaps out."""
    transformers = _transformers()
    simple = _simple_head(student)
    state = to_hugging_face(student.state_dict())
    arch, codec = student.backbone.arch, codec_of(project.model)
    width, height = codec["input_size"]
    if arch.feedforward_channels % arch.embed_dims:
        raise SagecacheError(
            f"transformers' VitPose has no feed-forward of {arch.feedforward_channels} channels, which is no "
            f"multiple of {arch.embed_dims}",
            file="model.py",
            fix="Export it as ONNX or TorchScript, or for mmpose.",
        )
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[height, width],
        patch_size=[student.backbone.patch_size] * 2,
        hidden_size=arch.embed_dims,
        num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads,
        mlp_ratio=arch.feedforward_channels // arch.embed_dims,
        layer_norm_eps=student.backbone.ln1.eps,
        out_indices=[arch.num_layers],
    )
    names = dict(enumerate(project.skeleton.names))
    config = transformers.VitPoseConfig(
        backbone_config=backbone,
        use_simple_decoder=simple,
        id2label=names,
        edges=project.skeleton.edges.tolist(),
    )
    config.architectures = ["VitPoseForPoseEstimation"]
    output.mkdir()
    config.save_pretrained(output)
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        output / "model.safetensors",
        {"format": "pt"},
    )
    processor = student.data_preprocessor
    statistics = {
        f"image_{name}": (getattr(processor, name).flatten() / 255).tolist() for name in ("mean", "std")
    }
    transformers.VitPoseImageProcessor(size=dict(height=height, width=width), **statistics).save_pretrained(
        output
    )
    loaded = transformers.VitPoseForPoseEstimation.from_pretrained(output, local_files_only=True).eval()
    images = _pictures(project)
    mean, std = processor.mean, processor.std
    error = _difference(
        PoseFunction(student), lambda x: loaded(pixel_values=(x - mean) / std).heatmaps, images
    )
    return f"Hugging Face VitPose, {_signature(student, images)}; run by transformers: off by {error:.1e}"


def _simple_head(student: nn.Module) -> bool:
    """Whether its head is VitPose's simple decoder, not the classic one; raises for any other."""
    head, wrong = student.head, "the backbone is no ViT"
    if isinstance(student.backbone, VisionTransformer):
        widths = [layer.out_channels for layer in _modules(head, "deconv_layers", nn.ConvTranspose2d)]
        more = _modules(head, "conv_layers", nn.Conv2d)
        neck = getattr(student, "neck", None)
        if type(head).__name__ == "HeatmapHead" and not more:
            if widths == [256, 256] and neck is None and head.final_layer.kernel_size == (1, 1):
                return False
            scaled = (
                type(neck).__name__ == "FeatureMapProcessor" and neck.scale_factor == 4 and neck.apply_relu
            )
            if not widths and scaled and head.final_layer.kernel_size == (3, 3):
                return True
        wrong = f"its head is neither the classic one (deconvolutions 256, 256) nor the simple one: {widths}"
    raise SagecacheError(
        f"transformers' VitPose has no such network: {wrong}",
        file="model.py",
        fix="Export it as ONNX or TorchScript, or for mmpose.",
    )


def _modules(parent: nn.Module, name: str, kind: type) -> list:
    return [one for one in getattr(parent, name, nn.Identity()).modules() if isinstance(one, kind)]


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise SagecacheError(
            "transformers is not installed", fix="pip install 'sagecache[huggingface]'"
        ) from error
    return transformers


def _pictures(project: Project) -> Tensor:
    """Two made-up pictures of the network's size, grey levels."""
    width, height = codec_of(project.model)["input_size"]
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255


def _signature(student: nn.Module, images: Tensor) -> str:
    shape = "x".join(map(str, images.shape[1:]))
    gives = "SimCC's x and y" if is_simcc(student.head) else "heatmaps"
    return f"images (batch, {shape.replace('x', ', ')}) in, {gives} out"


@torch.no_grad()
def _difference(original: Callable, written: Callable, images: Tensor) -> float:
    """Largest difference of two functions' answers, in shares of the largest; raises if too large."""
    first, second = (
        one if isinstance(one, (tuple, list)) else (one,) for one in (original(images), written(images))
    )
    error = max(
        float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
        for a, b in zip(first, second, strict=True)
    )
    if not np.isfinite(error) or error > TOLERANCE:
        raise SagecacheError(
            f"what was written answers otherwise than the original: off by {error:.1e} of the largest value",
            fix="This architecture can't be exported so with these versions; take another kind.",
        )
    return error


@contextmanager
def _in_place(output: Path) -> Iterator[Path]:
    """A place of the same name in a folder of its own; it becomes output's when all went well.

    So does what was written beside it, which is put in place first.
    """
    _remove_leftovers(output)
    making = Path(tempfile.mkdtemp(prefix=f"{_prefix(output)}{os.getpid()}-", dir=output.parent))
    try:
        yield making / output.name
        parts = sorted(making.iterdir(), key=lambda part: part.name == output.name)
        _let_be_read(making)
        if output.is_dir() and not output.is_symlink():
            output.replace(making / f"{output.name}-before")  # a folder can't be replaced by another
        for part in parts:
            part.replace(output.with_name(part.name))
    finally:
        shutil.rmtree(making)


def _prefix(output: Path) -> str:
    return f".{output.name}.export-"


def _remove_leftovers(output: Path) -> None:
    """What killed exports to the same place have left."""
    for left in output.parent.glob(f"{glob.escape(_prefix(output))}*"):
        process = left.name.removeprefix(_prefix(output)).split("-")[0]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _let_be_read(folder: Path) -> None:
    """safetensors writes files that nobody else can read: give all the mode of new files."""
    mask = os.umask(0)
    os.umask(mask)
    for one in folder.rglob("*"):
        if one.is_file():
            one.chmod(0o666 & ~mask)


KINDS: dict[str, Callable[..., str] | None] = {
    "mmpose": None,
    "torchscript": _to_torchscript,
    "onnx": _to_onnx,
    "huggingface": _to_hugging_face,
}
