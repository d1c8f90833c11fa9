"""Disturbed crops, judged by a network that reads joints off discs: what it must find and what it can't."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from dots import write_dots_project
from dots_network import save_checkpoint

from sagecache.data.views import ViewConfig
from sagecache.errors import SagecacheError
from sagecache.mm import robustness
from sagecache.mm.robustness import Disturbed, DisturbedCrops, disturbed, hide, view_config
from sagecache.project import Project

KNOWN = {field.name for field in fields(ViewConfig)}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project.open(write_dots_project(tmp_path_factory.mktemp("dots")))


@pytest.fixture
def people(project):
    return project.instances("test", "annotations")


def judged(project, people, tmp_path, kind, strengths, shift=0.0) -> list[Disturbed]:
    checkpoint = save_checkpoint(project, tmp_path / "one.pth", ema_teacher=(0.0, shift))
    return disturbed(project, checkpoint, people, kind, strengths)


def turning_only(monkeypatch) -> None:
    """Discs of other colours are other joints: only geometry leaves them readable."""
    monkeypatch.setitem(robustness.KINDS, "strong", dict(rotation=45))


def test_a_network_that_reads_discs_finds_turned_joints(project, people, tmp_path, monkeypatch):
    """Only if truth follows the disturbance; the mirror detector of the dots' network takes part up to 40."""
    turning_only(monkeypatch)
    plain, turned = judged(project, people, tmp_path, "strong", (0.0, 0.9))
    assert plain.pck == 1.0 and plain.counted.sum() == 17 * len(people)
    assert turned.counted.sum() <= plain.counted.sum() and turned.pck > 0.95
    assert [plain.strength, turned.strength] == [0.0, 0.9]


def test_the_tolerance_is_a_share_of_the_box_in_the_crop(project, people, tmp_path, monkeypatch):
    """5 % of the diagonal of 120 x 146 is 9.45 image pixels; a heatmap pixel is 200 / 31 of them."""
    turning_only(monkeypatch)
    for shift, found in ((1.3, 1.0), (1.65, 0.0)):
        (one,) = judged(project, people, tmp_path, "strong", (0.0,), shift)
        assert one.pck == found


@pytest.mark.skipif(not {"radial", "tilt"} <= KNOWN, reason="views have no lens and no tilt")
def test_truth_follows_a_camera_s_distortion(project, people, tmp_path):
    bent = judged(project, people, tmp_path, "camera", (1.0, 2.0))
    assert all(one.counted.sum() > 12 * len(people) and one.pck > 0.9 for one in bent)


def test_joints_beneath_a_patch_are_not_found_and_the_rest_is_not_asked(project, people, tmp_path):
    (one,) = judged(project, people, tmp_path, "hidden", (0.25,))
    assert len(people) <= one.counted.sum() < 17 * len(people)
    assert one.pck < 0.5  # 1 without the patch; discs near its edge show, and it may look like a disc


def test_every_network_meets_the_same_crops(project, people):
    first, second = (DisturbedCrops(project, people, "strong", 1.5)[1] for _ in range(2))
    assert np.array_equal(first["inputs"], second["inputs"]) and np.array_equal(
        first["truth"], second["truth"]
    )
    other = DisturbedCrops(project, people, "strong", 0.5)[1]
    assert not np.array_equal(first["inputs"], other["inputs"])


def test_a_patch_covers_its_joint_and_stays_in_the_picture():
    image = np.zeros((3, 40, 30), np.uint8)
    keypoints = np.array([[2.0, 3.0], [20.0, 30.0], [22.0, 31.0], [90.0, 90.0]])
    for seed in range(8):
        seen = np.array([True, True, True, False])
        painted, beneath = hide(image, keypoints, seen, 8, np.random.default_rng(seed))
        assert not image.any() and beneath[:3].any() and not beneath[3]
        rows, columns = np.nonzero(painted[0])
        for joint in np.flatnonzero(beneath):
            x, y = keypoints[joint].astype(int)
            assert columns.min() <= x <= columns.max() and rows.min() <= y <= rows.max()
        assert beneath.tolist() in ([True, False, False, False], [False, True, True, False])
        assert painted.any() and np.ptp(rows) < 8 and np.ptp(columns) < 8
    nothing, beneath = hide(image, keypoints, np.zeros(4, bool), 8, np.random.default_rng(0))
    assert not nothing.any() and not beneath.any()


def test_strength_grows_every_key_and_probabilities_end_at_one():
    assert view_config("strong", 0.0) == ViewConfig() == view_config("hidden", 0.3)
    twice = view_config("strong", 4.0)
    assert (twice.rotation, twice.cutout, twice.colour, twice.fill) == (180, 8, 1.0, 1.0)
    with pytest.raises(SagecacheError, match="unknown disturbance 'stron'. did you mean 'strong'"):
        view_config("stron", 1.0)


def test_what_was_found_survives_json():
    one = Disturbed(0.5, *(np.array([1.0, 2.0]) * k for k in (1, 2, 3)))
    again = Disturbed.from_dict(one.as_dict())
    assert (again.strength, again.pck, again.mean_confidence) == (0.5, 0.5, 1.5)
