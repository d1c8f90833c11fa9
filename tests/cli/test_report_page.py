"""What the page tells of a run, against the values that it was made of."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from dots import write_dots_project

from sagecache.cli.report_page import FILTERS, TEACHERS, figures, page_of, steps_of
from sagecache.data.dataset import UnlabeledViews
from sagecache.data.views import ViewConfig
from sagecache.geometry.affine import apply_affine, crop_affine
from sagecache.mm.gallery import Gallery, Judged, views_of
from sagecache.project import Project
from sagecache.project.recipe import SemiSettings, TeacherSettings
from sagecache.project.run_log import Curve, RunLog
from sagecache.project.trained import TrainedRun

FATES = ("kept", "low_confidence", "refused", "by_prior", "too_blurred")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project.open(write_dots_project(tmp_path_factory.mktemp("dots")))


@pytest.fixture(scope="module")
def run(project) -> TrainedRun:
    recipe, model = project.recipe("stage1-full")
    folder = project.work_dir("stage1-full")
    checkpoint = folder / "best_keypoints_PCK@0.05_iter_20.pth"
    return TrainedRun("stage1-full", folder, recipe, model, "", checkpoint, 30, "sagecache train stage1-full")


@pytest.fixture(scope="module")
def gallery(project) -> Gallery:
    instances = project.instances("unlabeled")
    rng = np.random.default_rng(3)
    judged = []
    for index, one in enumerate(instances):
        fates = tuple(rng.choice(FATES, 17).tolist())
        learned = np.isin(fates, ("kept", "by_prior"))
        points = one.keypoints[:, :2] + rng.normal(0, 8, (17, 2))
        errors = np.linalg.norm(points - one.keypoints[:, :2], axis=1) / np.hypot(*one.bbox[2:])
        errors[rng.random(17) < 0.2] = np.nan
        confidence = rng.random(17)
        judged.append(
            Judged(
                index,
                one,
                points,
                points + 1,
                confidence,
                learned * 0.5,
                fates,
                0.75,
                "A",
                errors,
                rng.integers(0, 255, (1, 3, 128, 96), np.uint8),
                learned[None],
            )
        )
    views = UnlabeledViews(instances, None, (96, 128), 1.25, ViewConfig(), ViewConfig(rotation=20, flip=0.5))
    return Gallery(judged, 40, views)


def log(**curves) -> RunLog:
    named = {name.replace("__", "/"): Curve(np.array(s), np.array(v)) for name, (s, v) in curves.items()}
    return RunLog(named, datetime(2026, 11, 21, 22, 9))


EMPTY = RunLog({}, None)


def test_figures_are_those_of_the_checkpoints_own_step(run):
    told = RunLog({"keypoints/AP": Curve(np.array([10, 20, 30]), np.array([0.1, 0.2, 0.9]))}, None)
    assert figures(run, told) == {"PCK@0.05": None, "PCK@0.1": None, "AP": 0.2}
    assert figures(replace(run, checkpoint=None), told)["AP"] is None
    nothing = RunLog({"keypoints/AP": Curve(np.array([20]), np.array([np.nan]))}, None)
    assert figures(run, nothing)["AP"] is None


def test_steps_are_of_the_runs_end_else_of_its_log_else_of_its_checkpoint(run):
    told, cut = log(lr=([5, 25], [1.0, 1.0])), replace(run, iterations=None)
    assert [steps_of(run, told), steps_of(cut, told), steps_of(cut, EMPTY)] == [30, 25, 20]
    assert steps_of(replace(cut, checkpoint=None), EMPTY) is None


def test_what_a_reader_must_know_first_is_noted(project, run):
    told = log(lr=([5], [1.0]))
    assert page_of(project, run, told, None).notes == []
    doubtful = replace(run, doubt="trained otherwise", iterations=None, checkpoint=None)
    notes = " ".join(page_of(project, doubtful, EMPTY, None).notes)
    for words in ("trained otherwise", "cut off", "no checkpoint", "no scalars"):
        assert words in notes


def test_joints_are_counted_as_a_loop_counts_them(project, run, gallery):
    table = page_of(project, run, EMPTY, gallery).joints
    columns = {column.title: column.values for column in table.columns}
    assert table.names[1] == "left eye"
    for k in range(17):
        kept = [one for one in gallery.judged if one.fates[k] in ("kept", "by_prior")]
        assert columns["kept"][k] == pytest.approx(len(kept) / len(gallery.judged))
        known = [one.errors[k] for one in kept if not np.isnan(one.errors[k])]
        share = sum(error <= 0.05 for error in known) / len(known) if known else None
        assert columns["right, kept"][k] == (None if share is None else pytest.approx(share))


def test_columns_are_those_that_have_values(project, run, gallery):
    told = log(joints__threshold__nose=([5, 10], [0.1, 0.625]), probe__precision__left_eye=([5], [0.5]))
    page = page_of(project, run, told, None)
    assert [column.title for column in page.joints.columns] == ["threshold", "right, probe"]
    assert page.joints.columns[0].values[:2] == [0.625, None]
    assert page_of(project, run, EMPTY, None).joints is None
    unknown = [replace(one, errors=np.full(17, np.nan)) for one in gallery.judged]
    page = page_of(project, run, EMPTY, Gallery(unknown, 6, gallery.views))
    assert [column.title for column in page.joints.columns] == ["kept", "confidence"]
    assert all(row.right is None for row in page.fates) and "True" not in page.gallery_text
    assert "plausibility times" in page.sections[0].text


def test_fates_add_up_and_unknown_ones_are_told_by_name(project, run, gallery):
    rows = page_of(project, run, EMPTY, gallery).fates
    assert sum(row.joints for row in rows) == 17 * len(gallery.judged)
    assert sum(row.share for row in rows) == pytest.approx(1)
    counted = {row.style.words: row.joints for row in rows}
    assert counted["too blurred"] == sum(one.fates.count("too_blurred") for one in gallery.judged)


def test_a_card_shows_the_person_each_view_and_each_joint(project, run, gallery):
    sections = page_of(project, run, EMPTY, gallery).sections
    cards = [card for section in sections for card in section.cards]
    assert len({card.title for card in cards}) == len(cards)
    for card in cards:
        (one,) = (
            j
            for j in gallery.judged
            if card.title == f"image {j.instance.image_id}, person {j.instance.instance}"
        )
        titles = [view.title for view in card.views]
        assert titles == ["person and target", "weak view, teacher", "strong view, student"]
        assert [bar.style.learned for bar in card.bars] == one.learned.tolist()
        assert [bar.error is None for bar in card.bars] == np.isnan(one.errors).tolist()
        assert sum(count for _, count in card.counts) == 17
        shown = {mark.title.split(":")[0] for mark in card.views[2].marks}
        learned = {bar.joint for bar in card.bars if bar.style.learned}
        assert shown <= learned, "the student learns no other joint"


def test_marks_are_where_the_target_is_in_the_source_image(project, run, gallery):
    card = page_of(project, run, EMPTY, gallery).sections[0].cards[0]
    (one,) = (
        j
        for j in gallery.judged
        if card.title.startswith(f"image {j.instance.image_id}, person {j.instance.instance}")
    )
    shown_from_image = crop_affine(one.instance.bbox, (240, 320), 1.25 * 1.15)
    points = apply_affine(shown_from_image, one.target)
    marks = {mark.title.split(":")[0]: (mark.x, mark.y) for mark in card.views[0].marks}
    for name, point in zip(project.skeleton.names, points, strict=True):
        if name.replace("_", " ") in marks:
            np.testing.assert_allclose(marks[name.replace("_", " ")], point, atol=0.06)
    assert len(card.views[0].truth) == 17 and len(marks) > 10
    (strong,) = (view for view in views_of(gallery.views, one) if view.learned is not None)
    points = apply_affine(strong.view_from_image, one.target)
    assert len(card.views[2].marks) > 2
    for mark in card.views[2].marks:
        k = project.skeleton.names.index(mark.title.split(":")[0].replace(" ", "_"))
        np.testing.assert_allclose((mark.x, mark.y), points[k], atol=0.06)


def test_a_split_without_persons_and_a_run_without_a_gallery(project, run, gallery):
    empty = page_of(project, run, EMPTY, Gallery([], 0, gallery.views))
    assert "has no person" in empty.gallery_text and not empty.sections and not empty.fates
    assert page_of(project, run, EMPTY, None).gallery_text == ""


def test_the_run_is_told_with_its_terms(project, run):
    page = page_of(project, run, log(loss_consistency=([5], [0.5]), time=([5, 6], [0.5, 1.5])), None)
    told = {fact.label: fact.value for fact in page.details}
    assert page.terms == [("consistency", "1", "")], "a term of weight 0 is none"
    assert told["started from"] == "stage0" and told["keypoint filter"] == "threshold 0.5"
    assert told["unlabeled images"] == "3 a step, from unlabeled, 1 strong view each"
    assert told["teacher"] == "one, on the weak view" and "mixing" not in told
    assert ("seconds a step", "1.00") in [(fact.label, fact.value) for fact in page.figures]
    assert page.subtitle == f"2026-11-21 22:09, {run.work_dir}" and Path(run.work_dir).name in page.subtitle


def test_every_section_of_options_and_every_mode_has_words(project, run):
    sections = {one.name for one in fields(SemiSettings) if getattr(SemiSettings(), one.name) == {}}
    assert sections - {"terms"} == set(FILTERS)
    assert set(get_args(get_type_hints(TeacherSettings)["mode"])) == set(TEACHERS)
    semi = replace(run.recipe.semi, mixing=dict(hide=2), coupling=0.5, refresh=1)
    facts = page_of(project, replace(run, recipe=replace(run.recipe, semi=semi)), EMPTY, None).details
    told = {fact.label: fact.value for fact in facts}
    assert (told["mixing"], told["coupling"], told["refresh"]) == ("hide 2", "0.5", "after 1 epoch")


def test_the_page_says_whose_labels_it_shows(project, run, gallery):
    semi = replace(run.recipe.semi, refresh=1)
    anew = replace(run, recipe=replace(run.recipe, semi=semi))

    def told(of, shown):
        page = page_of(project, of, EMPTY, shown)
        return page.gallery_text, page.joints_text

    each, joints = told(run, gallery)
    assert "EMA teacher and the recipe's filters" in each and "refresh" not in each + joints
    gone, _ = told(anew, gallery)
    assert "learned from labels of a refresh, which it did not keep" in gone
    stored, joints = told(anew, replace(gallery, stored=12))
    assert "the refresh at iteration 12" in stored and "stored at iteration 12" in joints
    assert "EMA teacher" not in stored + joints
