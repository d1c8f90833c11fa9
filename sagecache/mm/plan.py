"""What a training needs of a GPU, by arithmetic: weights, moments, teachers, kept activations, operations.

Activations are counted by a pass of fake tensors (``models.footprint``), so every network is counted as it is
built, with its checkpointing and freezing. No GPU is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sagecache.mm.codecs import codec_of
from sagecache.mm.memory import ladder
from sagecache.mm.registry import build_student
from sagecache.models.footprint import footprint
from sagecache.project.recipe import Recipe

GIB = 2**30
MOMENTS = {"SGD": 1, "RMSprop": 1}  # float32 numbers that an optimiser keeps for each trained one; others 2
RESERVE = 1.5 * GIB  # CUDA's context, cuBLAS' workspace, fragments
TEACHERS = {"single": 1, "single_two_view": 1, "dual": 2}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on a device, by what for. parameters, trained: numbers of the student. flops: floating-point
    operations of one pass of training: a forward pass, twice that backward, once more where activations are
    checkpointed, and the teachers' forward passes.
    """

    parameters: int
    trained: int
    student: int
    optimiser: int
    teachers: int
    activations: int
    teacher_pass: int
    flops: int

    @property
    def total(self) -> int:
        parts = (self.student, self.optimiser, self.teachers, self.activations, self.teacher_pass)
        return int(sum(parts) + RESERVE)


def memory_plan(recipe: Recipe, model: Mapping[str, Any]) -> MemoryPlan:
    """Of one pass of a recipe's training on one device. Raises SagecacheError for a wrong model.py."""
    width, height = codec_of(model)["input_size"]
    unlabeled = recipe.batch.unlabeled if recipe.uses_unlabeled else 0
    images = recipe.batch.labeled + unlabeled * recipe.views.num_strong

    def build() -> nn.Module:
        return _Maps(build_student(dict(model), initialise=False))

    # one image and two: batch norm's and casts' constants don't grow with the batch
    one, two = (footprint(build, (count, 3, height, width), recipe.amp) for count in (2, 3))
    each = two.saved - one.saved
    kind = str(recipe.optim_wrapper.get("optimizer", {}).get("type"))
    views = 1 if recipe.semi.teacher.mode == "single" else 2
    forward = two.flops - one.flops
    taught = unlabeled * views * (1 + recipe.semi.teacher.flip)
    passes = 4 if model["backbone"].get("with_cp") else 3
    return MemoryPlan(
        parameters=one.parameters,
        trained=one.trained,
        student=4 * (one.parameters + one.trained),
        optimiser=4 * MOMENTS.get(kind, 2) * one.trained,
        teachers=4 * TEACHERS[recipe.semi.teacher.mode] * one.parameters,
        activations=one.saved + (images - 2) * each,
        teacher_pass=views * unlabeled * one.widest // 2,
        flops=forward * (images * passes + taught),
    )


def advice(plan: MemoryPlan, recipe: Recipe, model: Mapping[str, Any], available: float) -> str:
    """Whether it fits into available bytes, and if not the next rung of the ladder, as words to type."""
    if plan.total <= available:
        return f"fits into {available / GIB:.0f} GiB"
    step = next((rung.advice for rung in ladder(recipe, model) if rung.advice), "a smaller backbone")
    return f"does not fit into {available / GIB:.0f} GiB; next: {step}"


class _Maps(nn.Module):
    """An mmpose estimator as a function of images alone."""

    def __init__(self, estimator: nn.Module) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, images: Tensor) -> Any:
        return self.estimator(images, None, mode="tensor")
