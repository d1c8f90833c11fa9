"""Pseudo-labels to look at, of networks whose answers are known beforehand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dots import true_joints, write_dots_project
from dots_network import PIXELS, save_checkpoint

from sagecache.cli.jobs import stats_job
from sagecache.data.views import ViewConfig
from sagecache.geometry.affine import apply_affine
from sagecache.mm.explain import explain
from sagecache.mm.gallery import Judged, Picked, _steps, look, views_of
from sagecache.precompute.runner import run_stats
from sagecache.project import Project
from sagecache.project.recipe import TeacherSettings
from sagecache.project.trained import TrainedRun, trained_run

HIDDEN = 8
DIAGONAL = np.hypot(120, 146)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = Project.open(write_dots_project(tmp_path_factory.mktemp("dots"), hidden=HIDDEN))
    page = project.folder / "stage1_full.py"
    page.write_text(page.read_text() + "views = dict(num_strong=2, strong=dict(rotation=30, flip=0.5))\n")
    run_stats(stats_job(project))
    path = project.work_dir("stage1-full") / "best_iter_4.pth"
    save_checkpoint(project, path, student=(9.0, 9.0), ema_teacher=(0.0, 2.0))
    return project


@pytest.fixture(scope="module")
def run(project) -> TrainedRun:
    return trained_run(project, "stage1-full")


@pytest.fixture(scope="module")
def gallery(project, run):
    return look(project, run, 100)


@pytest.fixture(scope="module")
def truth(project):
    return {divmod(number, 10): joints for number, joints in true_joints(project.folder, "unlabeled").items()}


def test_it_says_what_inspect_says(project, run, gallery):
    told = explain(project, "stage1-full", run.checkpoint, project.instances("unlabeled"))
    assert [one.instance.key for one in gallery.judged] == list(told) and gallery.total == len(told) == 6
    for one in gallery.judged:
        said = told[one.instance.key]
        np.testing.assert_allclose(one.keypoints, said["ema_teacher"][:, :2], atol=1e-3)
        np.testing.assert_array_equal(one.learned, said["keep"])
        assert one.plausibility == pytest.approx(said["plausibility"], abs=1e-5)
        assert one.teacher == ("A" if said["teacher_a"] else "nobody")


def test_errors_are_those_that_the_teacher_was_given(gallery, truth):
    for one in gallery.judged:
        seen = truth[one.instance.key][:, 2] > 0
        np.testing.assert_allclose(one.errors[seen], 2 * PIXELS[1] / DIAGONAL, atol=1.5 / DIAGONAL)
        assert np.isnan(one.errors[~seen]).all()


def test_every_joint_has_a_fate_that_fits_what_is_learned(gallery, truth):
    told = {fate for one in gallery.judged for fate in one.fates}
    assert told <= {"kept", "refused", "low_confidence"} and {"kept", "refused"} <= told
    for one in gallery.judged:
        np.testing.assert_array_equal([fate == "kept" for fate in one.fates], one.learned)


def test_views_are_those_of_a_step_and_joints_follow_into_them(project, run, gallery, truth):
    one = gallery.judged[0]
    seen = views_of(gallery.views, one)
    assert [view.title for view in seen] == ["weak view", "strong view 1", "strong view 2"]
    assert [view.learned is None for view in seen] == [True, False, False]
    again = views_of(look(project, run, 100).views, one)
    for view, same in zip(seen, again, strict=True):
        np.testing.assert_array_equal(view.image, same.image)
        points = apply_affine(view.view_from_image, truth[one.instance.key][:, :2])
        inside = ((points > 3) & (points < [92, 124])).all(1)
        x, y = points[inside].round().astype(int).T
        bright = view.image[y, x, :2].max(-1)
        assert inside.sum() > 5 and (bright > 120).mean() > 0.9, "a disc lies where its joint is"
    assert not np.array_equal(seen[1].image, seen[2].image)


def test_joints_follow_into_bent_views_and_both_views_of_two_are_shown(project, run, truth):
    """By the pixels: in a bent view too a disc lies where its joint is said to be."""
    views = replace(
        run.recipe.views,
        strong=ViewConfig(radial=0.3, tilt=0.3, bend=0.05),
        appearance=ViewConfig(colour=0.2),
    )
    semi = replace(run.recipe.semi, teacher=TeacherSettings("single_two_view"))
    gallery = look(project, replace(run, recipe=replace(run.recipe, views=views, semi=semi)), 100)
    moved = 0.0
    for one in gallery.judged:
        seen = views_of(gallery.views, one)
        assert [view.title for view in seen][:3] == ["weak view", "appearance view", "strong view 1"]
        assert seen[1].learned is None and not np.array_equal(seen[0].image, seen[1].image)
        joints = truth[one.instance.key]
        for view in seen[2:]:
            points = view.follow(joints[:, :2])
            inside = ((points > 3) & (points < [92, 124])).all(1) & (joints[:, 2] > 0)
            x, y = points[inside].round().astype(int).T
            assert inside.sum() > 3 and (view.image[y, x, :2].max(-1) > 120).mean() > 0.9
            straight = apply_affine(view.view_from_image, joints[:, :2])
            moved = max(moved, np.abs(points - straight)[inside].max())
    assert moved > 4, "otherwise a matrix would have done"


def test_strong_views_are_mixed_as_in_a_step_and_hidden_joints_are_not_learned(project, run):
    semi = replace(run.recipe.semi, mixing=dict(hide=3, covered="drop"))
    mixed = look(project, replace(run, recipe=replace(run.recipe, semi=semi)), 100)
    one, plain = mixed.judged[0], look(project, run, 100).judged[0]
    assert one.instance == plain.instance and one.learned.all()
    dropped = ~one.strong_learned
    assert 0 < dropped.sum() and (dropped.sum(1) <= 17).all() and plain.strong_learned.all()
    for view, hidden, before in zip(views_of(mixed.views, one)[1:], dropped, plain.strong, strict=True):
        points = apply_affine(view.view_from_image, one.keypoints)
        for k in np.flatnonzero(hidden):
            x, y = points[k].round().astype(int)
            patch = np.s_[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            assert (view.image[patch] != before.transpose(1, 2, 0)[patch]).any()


def test_detected_boxes_are_measured_by_the_annotations_that_they_show(project, run):
    x, y, w, h = 168.0, 32.0, 118.0, 140.0
    detections = [dict(image_id=201, category_id=1, bbox=[x, y, w, h], score=0.9)]
    file = project.folder / "boxes.json"
    file.write_text(json.dumps(detections))
    split = replace(project.data.splits["unlabeled"], boxes=str(file))
    data = replace(project.data, splits=project.data.splits | {"unlabeled": split})
    other = Project(project.folder, data, project.model, False)
    (one,) = look(other, run, 100).judged
    assert one.instance.annotation_id == 2011 and one.instance.bbox == (x, y, w, h)
    assert np.isfinite(one.errors).sum() == 17 - HIDDEN


def test_statistics_of_the_filter_come_with_the_checkpoint(project, run):
    from sagecache.mm.explain import trained_estimator

    state = torch.load(run.checkpoint, weights_only=True)
    own = trained_estimator(project, run.recipe, run.model, run.checkpoint).labeler.state_dict()
    (name,) = [key for key in own if key.endswith("statistics.mean")]
    assert own[name].eq(0).all()
    state["state_dict"][f"labeler.{name}"] = torch.linspace(0, 1, 17)
    path = project.folder / "with_statistics.pth"
    torch.save(state, path)
    estimator = trained_estimator(project, run.recipe, run.model, path)
    assert estimator.labeler.state_dict()[name].equal(torch.linspace(0, 1, 17)) and not estimator.training


def test_filters_stand_at_the_optimiser_step_of_the_checkpoint(run):
    assert _steps(run) == 4
    halved = replace(run, recipe=replace(run.recipe, optim_wrapper=dict(accumulative_counts=2)))
    assert _steps(halved) == 2
    named = replace(run, checkpoint=run.checkpoint.with_name("mine.pth"))
    assert _steps(named) == 0 and _steps(replace(named, iterations=7)) == 7


def test_progress_counts_persons(project, run):
    told = []
    look(project, run, 3, lambda done, total: told.append((done, total)))
    assert told == [(3, 3)]


# --- who is shown ----------------------------------------------------------------------------------


def person(index: int, learned: int = 5, error: float = np.nan, score: float = 0.5) -> Judged:
    weights = np.arange(5) < learned
    zeros = np.zeros((5, 2))
    confidence, errors = np.full(5, score), np.full(5, error)
    return Judged(index, None, zeros, zeros, confidence, weights, ("kept",) * 5, 1.0, "A", errors, None, None)


def indices(judged) -> list[int]:
    return [one.index for one in judged]


def test_worst_and_best_are_by_error_where_the_truth_is_known():
    judged = [person(k, error=0.1 * ((k * 3) % 7)) for k in range(7)]
    picked = Picked(judged, 2)
    assert picked.by_error and indices(picked.worst) == [2, 4] and indices(picked.best) == [0, 5]
    assert picked.silent == []
    assert 9 not in indices(Picked([*judged, person(9)], 9).worst), "nobody knows how wrong"


def test_without_truth_the_teachers_own_opinion_ranks():
    picked = Picked([person(k, score=s) for k, s in enumerate((0.5, 0.9, 0.1, 0.3))], 9)
    assert not picked.by_error and indices(picked.worst) == [2, 3] and indices(picked.best) == [1, 0]


def test_nobody_is_shown_twice_and_the_silent_stand_apart():
    judged = [person(0, learned=0, score=0.2), person(1, error=0.3), person(2, learned=2, score=0.1)]
    picked = Picked(judged, 4)
    assert indices(picked.worst) == [1] and picked.best == [] and indices(picked.silent) == [2, 0]
    empty = Picked([], 4)
    assert (empty.worst, empty.best, empty.silent, empty.by_error) == ([], [], [], False)


def test_the_error_is_of_joints_that_are_learned_from():
    one = replace(person(0, learned=2), errors=np.array([0.1, 0.3, 9.0, np.nan, 9.0]))
    assert one.error == pytest.approx(0.2)
    assert np.isnan(replace(one, errors=np.array([np.nan, np.nan, 1.0, 1, 1])).error)
