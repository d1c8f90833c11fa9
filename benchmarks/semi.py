"""(g) What semi-supervision costs beside its network passes, and two of its parts alone.

A step: EMA teacher on the weak views and their mirror images, fusion, decoding, filters, gate, what is mixed
on the device, student on labeled and strong views in one forward pass, targets, losses, scalars, backward,
optimiser, EMA. Its unavoidable passes: the teacher's forward, the student's forward and its backward from a
gradient at the maps, the optimiser. Both take one batch that is loaded before; the passes take it normalised.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from kornia.geometry.transform import warp_affine
from torch import Tensor, nn

from benchmarks.material import Material
from benchmarks.results import Goal, Section, Table, at_most, short
from benchmarks.timing import Samples, interleaved
from benchmarks.vit import Block
from sagecache.cli.jobs import stats_job
from sagecache.geometry.affine import augment_affine
from sagecache.geometry.heatmap import gaussian
from sagecache.geometry.sampling import warp_heatmaps
from sagecache.mm.build import build_estimator
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.loaders import train_loader
from sagecache.mm.optimisers import build_optimizer
from sagecache.mm.samples import unpacked
from sagecache.precompute.runner import run_stats
from sagecache.semi.ema import initialise_ema, update_ema

BASELINE, SAGE = "stage1-baseline", "sage-pose"
STEP, PASSES = "step", "passes"
STEP_LIMIT, WARP_LIMIT, SAME, EMA_LIMIT = 1.1, 1.0, 1e-5, 1.5
WARPED, SIGMA = (64, 17, 64, 48), 2.0
EMA_BLOCKS = 8  # of 12.6 million parameters
LARGE_ROUNDS = 5
LARGE_CODEC = dict(type="UDPHeatmap", input_size=(192, 256), heatmap_size=(48, 64), sigma=2)


@dataclass(frozen=True)
class Figure:
    """One step beside its passes. name: for tables."""

    name: str
    step: Samples
    passes: Samples

    def ratio(self, clock: str) -> float:
        return self.step.ratio_to(self.passes, clock)

    def values(self) -> dict[str, float]:
        return {
            "step s": self.step.median("wall"),
            "passes s": self.passes.median("wall"),
            "ratio": self.ratio("wall"),
            "cpu ratio": self.ratio("cpu"),
        }


def measure(material: Material) -> Section:
    run_stats(stats_job(material.project))
    rounds = material.scale.step_rounds
    demo = _figure(material, f"{BASELINE}, the demo's student", BASELINE, rounds)
    figures = [demo, _figure(material, f"{SAGE}, the demo's student", SAGE, rounds)]
    goals = [at_most(f"{BASELINE}: a step / its network passes alone (wall)", STEP_LIMIT, demo.ratio("wall"))]
    if material.scale.everything:
        few = {"load_from": None, "batch.labeled": 2, "batch.unlabeled": 4}
        large = _figure(
            material, f"{BASELINE}, ResNet-50 at 256x192, 2 + 4 images", BASELINE, LARGE_ROUNDS, _resnet, few
        )
        figures.append(large)
        goals.append(
            at_most(
                f"{BASELINE} with a ResNet-50: a step / its network passes alone (wall)",
                STEP_LIMIT,
                large.ratio("wall"),
            )
        )
    warp_table, warp_goals, warp_values = _warp(rounds)
    ema_table, ema_goal, ema_values = _ema(rounds)
    text = (
        "One batch, loaded before; no loader runs. The demo's student takes 16 labeled and 32 unlabeled "
        f"images of 128x96. The teacher's passes: every view and its mirror image, one view in {BASELINE}, "
        f"two in {SAGE}. All else that a step does is the difference."
    )
    values = {"steps": {one.name: one.values() for one in figures}} | warp_values | ema_values
    tables = [_step_table(figures), warp_table, ema_table]
    return Section("Semi-supervised step", text, tables, [*goals, *warp_goals, ema_goal], values)


# --- a step and its passes -----------------------------------------------------------------------


def _figure(
    material: Material,
    title: str,
    recipe_name: str,
    rounds: int,
    change_model: Callable[[dict], dict] = lambda model: model,
    overrides: dict | None = None,
) -> Figure:
    torch.manual_seed(0)
    recipe, model = material.project.recipe(recipe_name, {"load_from": "demo"} | (overrides or {}))
    model = change_model(model)
    estimator = build_estimator(material.project, recipe, model).train()
    estimator.step = recipe.semi.ramp_up  # terms at full weight
    batch = unpacked(next(iter(train_loader(material.project, recipe, model, seed=0))))
    twin = copy.deepcopy(estimator)  # its weights go their own way
    optimizers = [build_optimizer(one.student, recipe.optim_wrapper, amp=False) for one in (estimator, twin)]

    def step() -> int:
        estimator.train_step(batch, optimizers[0])
        estimator.update_ema(1000)
        return 1

    samples = interleaved({STEP: step, PASSES: passes_of(twin, batch, optimizers[1])}, rounds)
    return Figure(title, samples[STEP], samples[PASSES])


def passes_of(estimator: SemiPoseEstimator, batch: dict, optimizer) -> Callable[[], int]:
    """The network passes of a step of an estimator with one EMA teacher."""
    student, teacher = estimator.student, estimator.ema_teacher
    labeled, unlabeled = batch["labeled"], batch["unlabeled"]
    views = [unlabeled[name] for name in ("appearance", "weak") if name in unlabeled]
    weak = estimator.normalise(torch.cat(views))
    weak = torch.cat([weak, weak.flip(-1)]) if estimator.flip else weak
    images = estimator.normalise(torch.cat([labeled["image"], unlabeled["strong"].flatten(0, 1)]))
    with torch.no_grad():
        gradient = 1e-4 * torch.randn_like(teacher.head(teacher.extract_feat(images)))

    def passes() -> int:
        with torch.no_grad():
            teacher.head(teacher.extract_feat(weak))
        maps = student.head(student.extract_feat(images))
        optimizer.zero_grad()
        maps.backward(gradient)
        optimizer.step()
        return 1

    return passes


def _resnet(model: dict) -> dict:
    """The demo's model page with SimpleBaseline's network (Xiao et al. 2018) in its place; random weights."""
    head = model["head"] | dict(in_channels=2048, deconv_out_channels=(256, 256, 256), decoder=LARGE_CODEC)
    return model | dict(backbone=dict(type="ResNet", depth=50), head=head)


def _step_table(figures: list[Figure]) -> Table:
    rows = [
        [
            one.name,
            short(1e3 * one.passes.median("wall")),
            short(1e3 * one.step.median("wall")),
            short(one.ratio("wall")),
            short(one.ratio("cpu")),
        ]
        for one in figures
    ]
    columns = ["step", "ms, passes alone", "ms, step", "step, passes = 1, wall", "the same, CPU"]
    return Table("A step and its network passes", columns, rows)


# --- parts alone ---------------------------------------------------------------------------------


def _warp(rounds: int) -> tuple[Table, list[Goal], dict]:
    maps, matrices = _maps(), _matrices()
    difference = _difference(maps, matrices)
    samples = interleaved(
        {
            "warp_heatmaps": _times(4, lambda: warp_heatmaps(maps, matrices)),
            "kornia's warp_affine": _times(4, lambda: _kornia(maps, matrices)),
        },
        rounds,
    )
    mine, theirs = samples.values()
    ratio = mine.ratio_to(theirs, "wall")
    goals = [
        at_most("warp_heatmaps / kornia's warp_affine, 64x17 maps of 64x48 (wall)", WARP_LIMIT, ratio),
        at_most("warp_heatmaps against kornia's: largest difference", SAME, difference, ""),
    ]
    bright, exact = maps * (2 * math.pi * SIGMA**2), (maps.double(), matrices.double())
    note = (
        "Maps that sum to one, Gaussians of sigma 2, under turns, zooms, shifts and mirrors; zeros outside, "
        f"corners aligned. The two differ by at most {short(difference)}; with peaks of 1 by "
        f"{short(_difference(bright, matrices))}, the rounding of places in float32; in float64 the "
        f"same maps by {short(_difference(*exact))}."
    )
    values = {
        "warp ratio": ratio,
        "warp cpu ratio": mine.ratio_to(theirs, "cpu"),
        "warp difference": difference,
    }
    return _pair_table("Warping heatmaps", samples, note), goals, values


def _kornia(maps: Tensor, matrices: Tensor) -> Tensor:
    return warp_affine(maps, matrices[:, :2], maps.shape[2:], padding_mode="zeros", align_corners=True)


def _difference(maps: Tensor, matrices: Tensor) -> float:
    return float((warp_heatmaps(maps, matrices) - _kornia(maps, matrices)).abs().max())


def _ema(rounds: int) -> tuple[Table, Goal, dict]:
    model = nn.Sequential(*(Block() for _ in range(EMA_BLOCKS)))
    average = initialise_ema(model)
    weights = [parameter.detach() for parameter in model.parameters()]
    copies = [torch.empty_like(weight) for weight in weights]
    count = sum(weight.numel() for weight in weights)
    samples = interleaved(
        {
            "EMA update": _times(2, lambda: update_ema(average, model, 0.999)),
            "a copy of the weights": _times(2, lambda: torch._foreach_copy_(copies, weights)),
        },
        rounds,
    )
    update, copied = samples.values()
    ratio = update.ratio_to(copied, "wall")
    goal = at_most("EMA update of 100 million parameters / a copy of them (wall)", EMA_LIMIT, ratio)
    note = f"{count / 1e6:,.1f} million float32 parameters in {len(weights)} tensors."
    values = {"ema ratio": ratio, "ema cpu ratio": update.ratio_to(copied, "cpu")}
    return _pair_table("EMA update", samples, note), goal, values


def _pair_table(title: str, samples: dict[str, Samples], note: str) -> Table:
    base = list(samples.values())[-1]
    rows = [
        [
            name,
            short(1e3 * one.median("wall")),
            short(1e3 * one.median("cpu")),
            short(one.ratio_to(base, "wall")),
            short(one.ratio_to(base, "cpu")),
        ]
        for name, one in samples.items()
    ]
    return Table(title, ["what", "ms, wall", "ms, CPU", "last = 1, wall", "last = 1, CPU"], rows, note)


def _times(count: int, work: Callable[[], object]) -> Callable[[], int]:
    """A case that does some short work several times."""

    def case() -> int:
        for _ in range(count):
            work()
        return count

    return case


def _maps() -> Tensor:
    """Gaussians that sum to one at random places, (B, K, h, w)."""
    batch, joints, height, width = WARPED
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(batch, joints, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    return gaussian(places, (width, height), SIGMA)


def _matrices() -> Tensor:
    """Views as strong augmentation draws them, every other one mirrored, (B, 3, 3)."""
    batch, _, height, width = WARPED
    random = np.random.default_rng(0)
    drawn = (
        augment_affine(
            (width, height),
            random.uniform(-45, 45),
            random.uniform(0.7, 1.3),
            tuple(random.uniform(-0.08, 0.08, 2)),
            flip=bool(number % 2),
        )
        for number in range(batch)
    )
    return torch.from_numpy(np.stack(list(drawn))).float()
