"""The recipes under configs/: each is read, checked, and what it asks for can be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagecache.mm.codecs import codec_of, map_frame
from sagecache.mm.registry import build_student
from sagecache.mm.terms import check_semi
from sagecache.project import Project

CONFIGS = Path(__file__).parents[2] / "configs"
REAL = Project.open(CONFIGS / "sage_pose")
DEMO = Project.demo()


@pytest.mark.parametrize("name", REAL.recipe_names())
def test_pages_for_real_data_are_sound(name):
    recipe, model = REAL.recipe(name)
    check_semi(recipe)
    assert recipe.kind == "pose" and recipe.train_cfg.max_iters >= 1_000
    assert recipe.semi.ramp_up <= recipe.optimiser_steps / 5  # most of the training has its terms' weights
    assert map_frame(codec_of(model)).sigma == 2


def test_the_student_for_real_data_is_one_that_mmpose_builds():
    student = build_student(REAL.model)
    assert sum(p.numel() for p in student.parameters()) == pytest.approx(90e6, rel=0.01)  # ViTPose-B's


@pytest.mark.parametrize("project", [DEMO, REAL], ids=["demo", "real"])
def test_the_three_recipes_are_what_they_are_called(project):
    single, dual, unsup = (project.recipe(name)[0] for name in ("sage-pose", "sage-pose-dual", "unsup-only"))
    assert single.semi.teacher.mode == "single_two_view" and single.batch.labeled > 0
    assert dual.semi.teacher.mode == "dual" and dual.views.num_strong == 2
    assert dual.semi.teacher.appearance.decay not in (None, dual.ema_decay)
    assert unsup.batch.labeled == 0 and unsup.semi == single.semi
    assert all(recipe.uses_unlabeled for recipe in (single, dual, unsup))
