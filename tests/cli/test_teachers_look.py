"""What a network says of one person: crops of the right place, boxes where they are, broken numbers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from dots import SIZE, write_dots_project

from sagecache.cli.teachers_look import Person, look_at_boxes, look_at_maps, person_of
from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.teachers.base import TeacherSpec

BOX = (40.0, 20.0, 60.0, 80.0)


@pytest.fixture
def person():
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[20:100, 40:100] = (200, 100, 50)
    return Person(pixels, BOX, 1.0)


class Teacher:
    """Depth of 1 to the left and of 3 to the right, normals at the camera or away from it."""

    def __init__(self, facing: float = -1.0, broken: bool = False, mask_from: str = "everything") -> None:
        outputs = ("depth", "normal", "mask")
        self.spec = TeacherSpec("made up", (48, 64), (24, 32), outputs, "metric", "m", mask_from)
        self.facing, self.broken = facing, broken

    def __call__(self, crops):
        depth = torch.ones(len(crops), 1, 32, 24)
        depth[..., 12:] = torch.nan if self.broken else 3.0
        normal = torch.zeros(len(crops), 3, 32, 24)
        normal[:, 2] = self.facing
        mask = torch.zeros(len(crops), 1, 32, 24)
        mask[..., :16, :] = 1
        return dict(depth=depth, normal=normal, mask=mask)


def test_a_crop_holds_the_box(person):
    crop, inside = person.crop((48, 64))  # the box has the crop's aspect: nothing beside it
    assert crop.shape == (64, 48, 3) and inside[1:-1, 1:-1].all()
    assert (crop[5:-5, 5:-5] == (200, 100, 50)).all()
    wide, around = Person(person.pixels, BOX, 2.0).crop((48, 64))
    assert 0.2 < around.mean() < 0.3 and (wide[~around] == 0).mean() > 0.9


def test_persons_of_splits_and_pictures(tmp_path):
    project = Project.open(write_dots_project(tmp_path / "mine"))
    person = person_of(project, None, None)
    assert person.bbox == (10.0, 30.0, 120.0, 146.0) and person.pixels.shape[:2] == SIZE[::-1]
    cv2.imwrite(str(tmp_path / "me.png"), np.full((30, 20, 3), (1, 2, 3), np.uint8))
    whole = person_of(project, str(tmp_path / "me.png"), None)
    assert whole.bbox == (-0.5, -0.5, 20.0, 30.0) and (whole.pixels == (3, 2, 1)).all()


def test_the_demo_renders_one_infant_and_no_split(tmp_path, monkeypatch):
    pytest.importorskip("embreex", reason="renders infants")
    monkeypatch.chdir(tmp_path)
    person = person_of(Project.demo(), None, None)
    x, y, width, height = person.bbox
    assert person.pixels.shape == (384, 384, 3) and 0 < width <= 384 - x and 0 < height <= 384 - y
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("sagecache.cli.teachers_look.find_spec", lambda name: None)
    with pytest.raises(SagecacheError, match="without embreex.*--image FILE"):
        person_of(Project.demo(), None, None)


def test_maps_are_told_and_shown(person, tmp_path):
    told, finite = look_at_maps(Teacher(), person, tmp_path / "a.png", "opencv")
    assert finite and told["depth"] == "metric, m; from 1 to 3"
    assert told["normals"] == "100 % look at the camera with normal_axes='opencv'" and "mask" not in told
    width = cv2.imread(str(tmp_path / "a.png")).shape[1]
    told, _ = look_at_maps(Teacher(1.0, mask_from="network"), person, tmp_path / "b.png", "opencv")
    assert "these axes are wrong" in told["normals"] and told["mask"] == "50 % of the crop"
    assert cv2.imread(str(tmp_path / "b.png")).shape[1] > width


def test_numbers_that_are_none_are_told(person, tmp_path):
    told, finite = look_at_maps(Teacher(broken=True), person, tmp_path / "a.png", "opencv")
    assert not finite and told["broken"] == "not every number of depth is finite"


def detector(*boxes):
    corners = np.array([box[:4] for box in boxes], np.float32).reshape(-1, 4)
    scores = np.array([box[4] for box in boxes], np.float32)
    return lambda images: [(corners, scores) for _ in images]


def test_boxes_are_counted_and_drawn_where_they_are(person, tmp_path):
    told, found = look_at_boxes(detector((40, 20, 100, 100, 0.75)), person, tmp_path / "a.png")
    assert told == {"looked at": "an image of 160x120", "persons": "1 box, scores 0.75 to 0.75"}
    assert found == [dict(bbox=[40.0, 20.0, 60.0, 80.0], score=0.75)]
    _, nobody = look_at_boxes(detector(), person, tmp_path / "b.png")
    with_box, without = (cv2.imread(str(tmp_path / f"{name}.png")) for name in "ab")
    rows, columns = np.nonzero(np.abs(with_box.astype(int) - without).max(2)[40:-40] > 40)
    scale = 640 / 160  # the sheet shows the image as large as it may
    assert nobody == [] and columns.min() / scale > 40 and columns.max() / scale < 106
    assert rows.size > 100


def test_a_picture_that_can_not_be_written(person, tmp_path):
    for name in ("gone/a.png", "a.nothing"):
        with pytest.raises(SagecacheError, match="can't be written"):
            look_at_boxes(detector(), person, tmp_path / name)
