"""Memory of a training by arithmetic: the demo's against what a pass keeps, Sapiens' pages of real data."""

from pathlib import Path

import pytest
import torch

from sagecache.mm.plan import GIB, RESERVE, advice, memory_plan
from sagecache.mm.registry import build_student
from sagecache.project import Project, embedded_project

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def kept(student, images):
    """Bytes of what a real pass keeps for its backward pass, each storage once."""
    own, found = {p.untyped_storage()._cdata for p in student.parameters()}, {}

    def keep(value):
        if value.untyped_storage()._cdata not in own:
            found[value.untyped_storage()._cdata] = (value.untyped_storage().nbytes(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        student(images, None, mode="tensor")
    return sum(size for size, _ in found.values())


def test_activations_are_what_a_pass_of_the_whole_batch_keeps():
    project = Project.open(embedded_project())
    recipe, model = project.recipe("stage1-baseline")
    images = torch.randn(recipe.batch.labeled + recipe.batch.unlabeled, 3, 128, 96)
    plan = memory_plan(recipe, model)
    student = build_student(model).train()
    assert plan.activations == pytest.approx(kept(student, images), rel=0.005)
    count = sum(parameter.numel() for parameter in student.parameters())
    assert (plan.parameters, plan.student, plan.optimiser, plan.teachers) == (
        count,
        8 * count,
        8 * count,
        4 * count,
    )


def test_a_second_teacher_and_a_second_view_are_counted():
    project = Project.open(embedded_project())
    one, dual = (memory_plan(*project.recipe(name)) for name in ("stage1-baseline", "sage-pose-dual"))
    assert dual.teachers == 2 * one.teachers
    two_views = memory_plan(*project.recipe("stage1-baseline", {"views.num_strong": 2}))
    images = 16 + 32, 16 + 2 * 32
    assert two_views.activations / one.activations == pytest.approx(images[1] / images[0], rel=0.02)
    assert memory_plan(*project.recipe("stage0")).teacher_pass == 0


@pytest.mark.parametrize("project", ["nk_sapiens", "sage_pose"])
def test_pages_for_real_data_build_and_fit_a_gpu(project):
    opened = Project.open(CONFIGS / project)
    for name in opened.recipe_names():
        recipe, model = opened.recipe(name)
        if recipe.kind == "pose":
            plan = memory_plan(recipe, model)
            assert "fits into 80 GiB" in advice(plan, recipe, model, 80 * GIB)
            told = advice(plan, recipe, model, 4 * GIB)
            assert "does not fit into 4 GiB; next: " in told and "batch." in told


@pytest.mark.parametrize("size", [(768, 576), (1024, 768)])
@pytest.mark.parametrize(
    ("project", "arch"),
    [
        ("nk_sapiens", "sapiens_0.3b"),
        ("nk_sapiens", "sapiens_0.6b"),
        ("nk_sapiens", "sapiens_1b"),
        ("sage_pose", "vitpose_b"),
    ],
)
def test_each_size_of_the_pages_builds_on_the_meta_device(project, arch, size, tmp_path):
    """The two values at the top of model.py are all that changes."""
    page = (CONFIGS / project / "model.py").read_text()
    lines = page.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("arch = "))
    lines[at : at + 2] = [f'arch = "{arch}"', f"height, width = {size}"]
    namespace: dict = {}
    exec("\n".join(lines), namespace)
    with torch.device("meta"):
        student = build_student(namespace["model"], initialise=False)
    assert student.backbone.grid == (size[0] // 16, size[1] // 16)
    assert 3 * namespace["codec"]["sigma"] == pytest.approx(round(3 * namespace["codec"]["sigma"]))


def test_operations_are_forward_backward_and_the_teachers():
    project = Project.open(embedded_project())
    labels, pair, turned = (
        memory_plan(*project.recipe("stage1-baseline", words)).flops
        for words in ({"batch.unlabeled": 0}, {}, {"semi.teacher.flip": False})
    )
    image = labels / (3 * 16)  # forward, and twice that backward, of 16 labeled images
    assert pair == pytest.approx(image * (3 * (16 + 32) + 2 * 32))  # the teacher sees each twice, mirrored
    assert turned == pytest.approx(image * (3 * (16 + 32) + 32))
    opened = Project.open(CONFIGS / "sage_pose")
    plain, checkpointed = (
        memory_plan(*opened.recipe("stage0", {"model.backbone.with_cp": cp})).flops for cp in (False, True)
    )
    assert checkpointed == pytest.approx(plain * 4 / 3)


def test_the_total_is_the_sum_and_a_reserve():
    plan = memory_plan(*Project.open(embedded_project()).recipe("stage0"))
    parts = (plan.student, plan.optimiser, plan.teachers, plan.activations, plan.teacher_pass)
    assert plan.total == sum(parts) + RESERVE
