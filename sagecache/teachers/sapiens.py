"""Sapiens v1's own checkpoints as a teacher: depth, normals and segmentation, each a ViT with a dense head.

Sizes come from the weights: nothing is named twice. Its licence is CC BY-NC 4.0 (non-commercial), for the
weights and for what is made with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sagecache.errors import SagecacheError, about
from sagecache.models.sapiens import SapiensNetwork, sapiens_network
from sagecache.models.weight_files import read_tensors
from sagecache.teachers.answers import AnswerSettings, NetworkTeacher
from sagecache.teachers.base import file_hash, usable_device

# Pixels around the image before it is cut into patches, as each network was trained; the wrong one moves
# every map by two pixels and is silent.
PADDING = {"depth": 0, "normal": 2, "mask": 2}


@dataclass(frozen=True)
class SapiensSettings(AnswerSettings):
    """Which checkpoints; the other settings are those of AnswerSettings, with Sapiens' values.

    files: output -> checkpoint ('depth', 'normal', 'mask': the segmentation network), .pth or .safetensors.
    Depth is relative and grows away from the camera; normals look at the viewer, x right and y up.
    """

    files: dict[str, str] = field(default_factory=dict)
    normal_axes: str = "opengl"

    def __post_init__(self) -> None:
        if not self.files:
            raise SagecacheError(
                "a Sapiens teacher needs 'files'", fix="For example files=dict(depth='….pth')."
            )
        super().__post_init__()

    @property
    def returned(self) -> tuple[str, ...]:
        return tuple(self.files)


class SapiensTeacher(NetworkTeacher):
    """Teacher over Sapiens checkpoints; see SapiensSettings and NetworkTeacher."""

    def __init__(self, settings: SapiensSettings) -> None:
        paths = {name: Path(path) for name, path in settings.files.items()}
        for path in paths.values():
            if not path.is_file():
                raise SagecacheError("no such checkpoint", file=path, fix="Correct its path in data.py.")
        super().__init__("sapiens", settings, paths, {name: file_hash(path) for name, path in paths.items()})

    def load(self, output: str, path: Path) -> SapiensNetwork:
        return self.network(output, path, read_tensors(path))

    def network(self, output: str, path: Path, state: Mapping[str, Tensor]) -> SapiensNetwork:
        """The network of an output from a checkpoint's tensors; path names it in errors. As `load`."""
        width, height = self.settings.input_size
        with about(path):
            net = sapiens_network(state, (height, width), PADDING[output])
        return net.to(usable_device(self.settings.device))
