"""What inspect shows of an instance, with networks whose answers are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from dots import true_joints, write_dots_project
from dots_network import PIXELS, save_checkpoint

from sagecache.cli.jobs import stats_job
from sagecache.mm.explain import explain
from sagecache.precompute.runner import run_stats
from sagecache.project import Project

HIDDEN = 8  # joints that every second person of a picture lacks: too few are left to be sure of it


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = Project.open(write_dots_project(tmp_path_factory.mktemp("dots"), hidden=HIDDEN))
    run_stats(stats_job(project))
    return project


@pytest.fixture(scope="module")
def explained(project):
    """Every unlabeled instance; the student is off by (0, 2) heatmap pixels, the EMA teacher by nothing."""
    path = save_checkpoint(project, project.folder / "dots.pth", student=(0.0, 2.0))
    return explain(project, "stage1-full", path, project.instances("unlabeled"))


@pytest.fixture(scope="module")
def truth(project):
    return {divmod(number, 10): joints for number, joints in true_joints(project.folder, "unlabeled").items()}


def test_there_is_one_answer_for_each_instance(explained, truth):
    assert explained.keys() == truth.keys() and len(truth) == 6


def test_poses_are_in_image_pixels_each_of_its_own_network(explained, truth):
    for key, joints in truth.items():
        seen = joints[:, 2] > 0
        teacher, student = explained[key]["ema_teacher"], explained[key]["student"]
        np.testing.assert_allclose(teacher[seen, :2], joints[seen, :2], atol=1.5)
        np.testing.assert_allclose(
            student[seen, :2], joints[seen, :2] + [0, 2 * PIXELS[1]], atol=1.5, err_msg=str(key)
        )
        assert explained[key]["corrected"] is None


def test_kept_are_the_joints_that_can_be_seen_unless_the_sample_is_refused(explained, truth):
    for key, joints in truth.items():
        seen = joints[:, 2] > 0
        np.testing.assert_array_equal(explained[key]["keep"], seen & explained[key]["teacher_a"])
        confidence = explained[key]["ema_teacher"][:, 2]
        assert (confidence[seen] > 0.8).all() and (confidence[~seen] < 0.1).all()


def test_the_gate_trusts_the_teacher_where_the_mean_confidence_says_so(explained, truth):
    """Nine of seventeen joints, each of confidence near 1, lie below the threshold of .7."""
    for key, joints in truth.items():
        assert explained[key]["teacher_a"] is bool((joints[:, 2] > 0).all()), key
        assert 0 < explained[key]["plausibility"] <= 1
    assert {row["teacher_a"] for row in explained.values()} == {True, False}


def test_the_recipe_decides_what_is_kept(project, explained):
    page = (project.folder / "stage1_full.py").read_text()
    (project.folder / "strict.py").write_text(page.replace("threshold=0.5", "threshold=1.0"))
    path = project.folder / "dots.pth"
    some = project.instances("unlabeled")[:1]
    strict = explain(project, "strict", path, some)[some[0].key]
    assert explained[some[0].key]["keep"].all() and not strict["keep"].any()
    np.testing.assert_allclose(strict["ema_teacher"], explained[some[0].key]["ema_teacher"], atol=1e-3)


def test_of_a_recipe_without_a_gate_the_two_poses_are_told(project, explained):
    plain = explain(project, "stage0", project.folder / "dots.pth", project.instances("unlabeled"))
    assert plain.keys() == explained.keys()
    for key, row in plain.items():
        assert row.keys() == {"student", "ema_teacher"}
        np.testing.assert_allclose(row["student"], explained[key]["student"], atol=1e-3)
        assert row["ema_teacher"].shape == (17, 3)
