"""(f) A training step: without geometry, with cached targets, with the teacher run in the step.

The demo's student, batch sizes and recipe (stage1-cmgc: labels, consistency, both CMGC terms; stage1-baseline
is the same step without them). A step is all of it: waiting for the loader, forward, backward, optimiser,
EMA. Steps run in blocks that take turns; the first of a block are not counted, as its loader has had time to
run ahead.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import torch

from benchmarks import online, vit
from benchmarks.material import Material
from benchmarks.results import Section, Table, at_most, short
from benchmarks.scale import LARGE, title
from benchmarks.timing import Samples
from sagecache.cli.jobs import crop_rule, stats_job
from sagecache.mm.build import build_estimator
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.loaders import train_loader
from sagecache.mm.optimisers import build_optimizer
from sagecache.mm.samples import unpacked
from sagecache.precompute.runner import run_stats
from sagecache.teachers.base import Teacher

CMGC, BASELINE = "stage1-cmgc", "stage1-baseline"
LIMIT, SAME = 1.05, 1e-3
SKIPPED = 2  # steps at the begin of a block: what the loader had ready
SAPIENS = (768, 1024)


@dataclass
class Arm:
    """One way to train, and what its steps took."""

    estimator: SemiPoseEstimator
    batches: Iterator
    optimizer: object
    steps: int  # counted in a block
    skipped: int = SKIPPED
    samples: Samples = field(default_factory=Samples)

    def block(self, counted: bool) -> None:
        for _ in range(self.skipped):
            self._step()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.steps):
            self._step()
        if counted:
            self.samples.wall.append((time.perf_counter() - wall) / self.steps)
            self.samples.cpu.append((time.process_time() - cpu) / self.steps)

    def _step(self) -> None:
        self.estimator.train_step(unpacked(next(self.batches)), self.optimizer)
        self.estimator.update_ema(1000)


def measure(material: Material) -> Section:
    project, scale = material.project, material.scale
    run_stats(stats_job(project))
    material.geometry("labeled")
    teacher = material.geometry("unlabeled").teacher.teacher
    same, cached, plain, slow = _demo(material, teacher)
    ratio = cached.samples.ratio_to(plain.samples, "wall")
    tables = [_demo_table(cached, plain, slow, same)]
    goals = [
        at_most(
            "step with cached targets and CMGC / without geometry, reading included (wall)", LIMIT, ratio
        ),
        at_most("cached against online targets: depth, of the range", SAME, same["depth"], ""),
        at_most("cached against online targets: normals, 1 - cosine", SAME, same["normal"], ""),
    ]
    values = {
        "no geometry s": plain.samples.median("wall"),
        "cached s": cached.samples.median("wall"),
        "demo online s": slow.samples.median("wall"),
        "ratio": ratio,
        "cpu ratio": cached.samples.ratio_to(plain.samples, "cpu"),
    }
    if scale.vit_instances:
        table, facts = _vit(material)
        tables.append(table)
        values |= facts
    text = (
        "16 labeled and 32 unlabeled instances a step (96x128 inputs, targets of 128x96), one loader "
        "process, two cores. Online: the loader cuts the teacher's crops, the step runs the teacher on them; "
        "same images, same boxes, same terms."
    )
    return Section("Training step", text, tables, goals, values)


def _arm(material: Material, name: str, steps: int, **overrides) -> Arm:
    """An arm of the embedded student, its terms at full weight."""
    project = material.project
    torch.manual_seed(0)
    recipe, model = project.recipe(name, {"load_from": "demo", **overrides})
    estimator = build_estimator(project, recipe, model).train()
    estimator.step = recipe.semi.ramp_up
    optimizer = build_optimizer(estimator.student, recipe.optim_wrapper, amp=False)
    loader = train_loader(project, recipe, model, seed=0)
    return Arm(estimator, iter(loader), optimizer, steps)


def _online(material: Material, teacher: Teacher, split: str, steps: int, **overrides) -> Arm:
    """The arm with CMGC whose targets come from the teacher in the step."""
    project = material.project
    arm = _arm(material, CMGC, steps, **overrides)
    recipe, model = project.recipe(BASELINE, {"load_from": "demo", **overrides})
    plain = train_loader(project, recipe, model, seed=0)
    loader = online.online_loader(plain, project.instances(split), teacher.spec, crop_rule(project))
    arm.estimator = online.OnlineEstimator.of(arm.estimator, teacher)
    arm.batches = iter(loader)
    return arm


def _demo(material: Material, teacher: Teacher) -> tuple[dict[str, float], Arm, Arm, Arm]:
    scale = material.scale
    cached, plain = _arm(material, CMGC, scale.steps), _arm(material, BASELINE, scale.steps)
    slow = _online(material, teacher, "unlabeled", steps=2)
    slow.skipped = 1
    store = material.project.geometry_store("unlabeled")
    same = online.differences(store, unpacked(next(slow.batches)), teacher)
    order = random.Random(0)
    for number in range(-1, scale.step_rounds):
        for arm in order.sample([cached, plain], 2):
            arm.block(counted=number >= 0)
        if number % 3 == 0:
            slow.block(counted=True)
    return same, cached, plain, slow


def _demo_table(cached: Arm, plain: Arm, slow: Arm, same: dict[str, float]) -> Table:
    arms = {
        f"{BASELINE}: no geometry term": plain,
        f"{CMGC}: cached targets": cached,
        f"{CMGC}: demo teacher in the step": slow,
    }
    base = plain.samples.median("wall")
    rows = [
        [
            name,
            short(1e3 * arm.samples.median("wall")),
            short(1e3 * arm.samples.median("cpu")),
            short(arm.samples.median("wall") / base),
        ]
        for name, arm in arms.items()
    ]
    note = (
        "Cached / no geometry, median of the rounds' ratios: "
        f"{short(cached.samples.ratio_to(plain.samples, 'wall'))} "
        f"(wall), {short(cached.samples.ratio_to(plain.samples, 'cpu'))} (CPU of the training process). The "
        f"two arms' targets differ by at most {short(same['depth'])} of the range in depth, "
        f"{short(same['normal'])} in 1 - cosine of normals, in {short(100 * same['mask'])} % of the mask's "
        f"pixels, and lie {short(same['matrix'])} px apart."
    )
    return Table("The demo teacher", ["step", "ms, wall", "ms, CPU", "wall, no geometry = 1"], rows, note)


def _vit(material: Material) -> tuple[Table, dict]:
    """Cached against online with a ViT-L, in three rounds, and what 1024x768 would cost."""
    project, count = material.project, material.scale.vit_instances
    teacher = vit.VitTeacher(LARGE)
    material.run_teacher(teacher, project.geometry_store("few"), "few")
    options = {"data.unlabeled": "few", "batch.unlabeled": count}
    cached = _arm(material, CMGC, 4, **options)
    slow = _online(material, teacher, "few", steps=1, **options)
    slow.skipped = 0
    same = online.differences(project.geometry_store("few"), unpacked(next(slow.batches)), teacher)
    cached.block(counted=False)
    for _ in range(3):  # so that one stall of the machine is not the median
        cached.block(counted=True)
        slow.block(counted=True)
    return _vit_table(cached, slow, same, count)


def _vit_table(cached: Arm, slow: Arm, same: dict[str, float], count: int) -> tuple[Table, dict]:
    pairs = zip(slow.samples.wall, cached.samples.wall, strict=True)
    seconds = median(online_step - step for online_step, step in pairs) / count
    work, large = vit.flops(LARGE), vit.flops(SAPIENS)
    rate = work / seconds
    step, online_step = cached.samples.median("wall"), slow.samples.median("wall")
    scaled = step + count * large / rate
    ratio = slow.samples.ratio_to(cached.samples, "wall")
    cpu, online_cpu = cached.samples.median("cpu"), slow.samples.median("cpu")
    rows = [
        [f"cached targets of {title(LARGE)}", short(step), short(cpu), "1"],
        [f"ViT-L in the step, {title(LARGE)}", short(online_step), short(online_cpu), short(ratio)],
        [f"ViT-L in the step, {title(SAPIENS)}: by arithmetic", short(scaled), "", short(scaled / step)],
    ]
    note = (
        f"{count} unlabeled instances a step. {work / 1e9:,.0f} GFLOP an image at {title(LARGE)} add "
        f"{short(seconds)} s to the step: {short(rate / 1e9)} GFLOP/s. **Not measured, reckoned:** at "
        f"{title(SAPIENS)} an image is {large / 1e9:,.0f} GFLOP, {short(large / rate)} s at the same rate. "
        f"Targets of the two arms differ by at most {short(same['depth'])} (depth, of the range) and "
        f"{short(same['normal'])} (1 - cosine). Random weights, so the targets mean nothing; the step's cost "
        "does not depend on them."
    )
    values = {
        "vit cached s": step,
        "vit online s": online_step,
        "vit online s at 1024x768, reckoned": scaled,
        "vit GFLOP": work / 1e9,
        "vit GFLOP at 1024x768": large / 1e9,
        "GFLOP/s": rate / 1e9,
    }
    return Table(
        f"A ViT-L teacher at {title(LARGE)}", ["step", "s, wall", "s, CPU", "wall, cached = 1"], rows, note
    ), values
