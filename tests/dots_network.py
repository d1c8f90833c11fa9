"""A pose network without training: it finds the coloured discs of dots.py, mirrored or not."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from dots import ANGLES, write_dots_project
from torch import nn

from sagecache.mm import run
from sagecache.mm.registry import MODELS, HeatmapHead, build_student
from sagecache.project import Project
from sagecache.skeleton.definition import COCO17

PIXELS = (
    150 / 23,
    200 / 31,
)  # image pixels of a heatmap pixel: a box of 120 x 146, 3:4 and 1.25 times as large


@MODELS.register_module(force=True)
class DotsBackbone(nn.Module):
    def forward(self, images):
        return (images,)


@MODELS.register_module(force=True)
class DotsHead(HeatmapHead):
    """A Gaussian at each disc's centre of mass; where a joint has no disc, a flat map of .01.

    shift (2,), heatmap pixels, moves all of them: it tells the two networks of a checkpoint apart.
    """

    def __init__(self, decoder: dict) -> None:
        super().__init__(in_channels=3, out_channels=17, deconv_out_channels=None, decoder=decoder)
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, feats):
        (images,) = feats  # (B, 3, H, W) RGB, 0 to 255
        red, green, blue = images.unbind(1)
        height, width = red.shape[-2:]
        nearest = (torch.atan2(green, red)[:, None] - torch.tensor(ANGLES).view(-1, 1, 1)).abs()
        seen = torch.zeros_like(nearest).scatter_(1, nearest.argmin(1, keepdim=True), 1.0)
        seen = (seen * (torch.hypot(red, green) > 150)[:, None]).float()  # (B, 17, H, W)
        mass = seen.sum((2, 3))
        x = (seen * torch.arange(width)).sum((2, 3)) / mass * (23 / 95) + self.shift[0]
        y = (seen * torch.arange(height)[:, None]).sum((2, 3)) / mass * (31 / 127) + self.shift[1]
        dx = torch.arange(24) - x[..., None, None]
        dy = torch.arange(32)[:, None] - y[..., None, None]
        maps = torch.exp(-(dx**2 + dy**2) / (2 * (4 / 3) ** 2))
        maps = torch.where((mass > 4)[..., None, None], maps, torch.tensor(0.01))
        mirrored = blue[..., : width // 2].mean((1, 2)) > blue[..., width // 2 :].mean((1, 2))
        return torch.where(mirrored.view(-1, 1, 1, 1), maps[:, list(COCO17.flip_indices)], maps)


def save_checkpoint(
    project: Project,
    path: Path,
    student: tuple[float, float] = (0, 0),
    ema_teacher: tuple[float, float] = (0, 0),
) -> Path:
    """A checkpoint as training writes it, whose networks are off by so many heatmap pixels."""
    plain = build_student(project.model).state_dict()
    state = {}
    for name, shift in (("student", student), ("ema_teacher", ema_teacher)):
        own = plain | {"head.shift": torch.tensor(shift, dtype=torch.float32)}
        state |= {f"{name}.{key}": value for key, value in own.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state}, path)
    return path


@MODELS.register_module(force=True)
class BrightDotsHead(DotsHead):
    """The same with something to learn: how far its peaks are from where they should be."""

    def __init__(self, decoder: dict) -> None:
        super().__init__(decoder)
        del self.shift
        self.shift = nn.Parameter(torch.tensor([1.0, -1.0]))
        del self.final_layer  # it would wait for a gradient that never comes


def bright_project(folder: Path) -> Project:
    """A project of dots whose student has something to learn."""
    page = write_dots_project(folder) / "model.py"
    page.write_text(page.read_text().replace("DotsHead", "BrightDotsHead"))
    return Project.open(folder)


def train(project: Project, name: str, options: run.TrainOptions, report) -> Path:
    """run.train in a second of its own: mmengine names a run by its second, and warns of a second one."""
    time.sleep(1 - time.time() % 1)
    return run.train(project, name, options, report)
