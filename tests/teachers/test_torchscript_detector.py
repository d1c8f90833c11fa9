"""Detectors exported to TorchScript: a network that finds one bright square, in each layout of answers."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.teachers.registry import build_detector

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
SIZE = (64, 48)  # width, height of the input
SQUARE = (20.0, 10.0, 59.0, 39.0)  # xyxy in the image, centres at integers


class Bright(nn.Module):
    """The box about bright pixels, in the layout asked for; a second, worse box overlaps it."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes, height, width = [], x.shape[2], x.shape[3]
        for one in x:
            lit = (one[0] > 0.5).nonzero()
            low, high = lit.min(0)[0], lit.max(0)[0]
            boxes.append(torch.stack([low[1], low[0], high[1] + 1, high[0] + 1]))
        first = torch.stack(boxes).float()
        box = torch.stack([first, first + 1], 1)  # (B, 2, 4) xyxy, continuous pixels
        score = torch.tensor([0.9, 0.4]).expand(len(x), 2)
        if self.layout == "classes":
            return box, torch.stack([0 * score, score], 2)
        if self.layout == "labels":
            return torch.cat([box, score[:, :, None]], 2), torch.tensor([1, 0]).expand(len(x), 2)
        if self.layout == "unit":
            middle, sides = (box[:, :, :2] + box[:, :, 2:]) / 2, box[:, :, 2:] - box[:, :, :2]
            shape = torch.tensor([width, height, width, height]).float()
            return torch.cat([middle, sides], 2) / shape, score
        return box, score


@pytest.fixture
def file(tmp_path):
    def export(module):
        torch.jit.script(module).save(str(tmp_path / "net.pt"))
        return str(tmp_path / "net.pt")

    return export


def picture(height=96, width=128):
    """Black, with a white square that stays whole under halving; mean colour at the border is dark."""
    image = np.zeros((height, width, 3), np.uint8)
    cv2.rectangle(image, (20, 10), (59, 39), (255, 255, 255), -1)
    return image


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("scores", {}),
        ("classes", dict(person=1)),
        ("labels", dict(person=1)),
        ("unit", dict(unit_boxes=True, box_layout="cxcywh")),
    ],
)
def test_the_square_is_found_in_the_pixels_of_its_image(file, layout, options):
    detector = build_detector(
        dict(type="torchscript", path=file(Bright(layout)), input_size=SIZE, nms=0.5, **options)
    )
    (boxes, scores), _ = detector([picture(), picture()])
    want = np.array(SQUARE) + [-0.5, -0.5, 0.5, 0.5]  # the box reaches to the pixels' outer edges
    np.testing.assert_allclose(boxes, [want], atol=1e-4)
    np.testing.assert_allclose(scores, [0.9], atol=1e-6)


def test_another_class_counts_where_it_is_asked_for(file):
    detector = build_detector(
        dict(type="torchscript", path=file(Bright("labels")), input_size=SIZE, person=0)
    )
    ((_, scores),) = detector([picture()])
    np.testing.assert_allclose(scores, [0.4], atol=1e-6)


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Fails(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view(7, 5, -1), x


class Raises(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[2] == 48:
            raise ValueError("not that size")
        return x, x


def test_wrong_files_are_told(file, tmp_path):
    with pytest.raises(SagecacheError, match="unknown device 'gpu'"):
        build_detector(dict(type="torchscript", path=file(Wrong()), device="gpu"))
    with pytest.raises(SagecacheError, match="gone.pt: TorchScript file not found"):
        build_detector(dict(type="torchscript", path="gone.pt"))
    with pytest.raises(SagecacheError, match="[Dd]id you mean 'cxcywh'"):
        build_detector(dict(type="torchscript", path=file(Wrong()), box_layout="cxcyw"))
    with pytest.raises(SagecacheError, match="net.pt: the file returns Tensor, expected boxes"):
        build_detector(dict(type="torchscript", path=file(Wrong()), input_size=SIZE))([picture()])
    with pytest.raises(SagecacheError, match="net.pt: the network failed on a batch"):
        build_detector(dict(type="torchscript", path=file(Fails()), input_size=SIZE))([picture()])
    with pytest.raises(SagecacheError, match="net.pt: the network failed on a batch .*not that size"):
        build_detector(dict(type="torchscript", path=file(Raises()), input_size=SIZE))([picture()])
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(SagecacheError, match="text.pt: not a readable TorchScript"):
        build_detector(dict(type="torchscript", path=str(tmp_path / "text.pt")))([picture()])


class Shapes(nn.Module):
    """Answers of any shapes, the first of the batch's size."""

    first: list[int]
    second: list[int]

    def __init__(self, first: list[int], second: list[int]) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.ones([len(x)] + self.first), torch.ones(self.second)]


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> tuple[int, Tensor, Tensor]:
        return 3, torch.ones(len(x), 2, 4), torch.ones(len(x), 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([7, 4], [1, 6]),
        ([7, 4], [2, 7]),
        ([7, 4], [7]),
        ([7, 4], [1, 6, 80]),
        ([7, 4], [1, 7, 80, 1]),
        ([7, 5], [1, 7, 80]),
        ([7, 5], []),
        ([7, 6], [1, 7]),
        ([4], [1, 4]),
    ],
)
def test_answers_of_other_shapes_are_named(file, first, second):
    detector = build_detector(dict(type="torchscript", path=file(Shapes(first, second)), input_size=SIZE))
    with pytest.raises(SagecacheError, match="net.pt: the file returns .*expected boxes") as caught:
        detector([picture()])
    assert str((1, *first)) in str(caught.value) and str(tuple(second)) in str(caught.value)


def test_answers_that_are_no_tensors_are_named(file):
    detector = build_detector(dict(type="torchscript", path=file(Numbers()), input_size=SIZE))
    with pytest.raises(SagecacheError, match=r"the file returns \['int', \(1, 2, 4\)\], expected .* B is 1"):
        detector([picture()])


@pytest.mark.parametrize("person", [2, -1])
def test_a_person_beyond_the_classes_is_told(file, person):
    options = dict(input_size=SIZE, person=person)
    detector = build_detector(dict(type="torchscript", path=file(Bright("classes")), **options))
    with pytest.raises(SagecacheError, match=f"net.pt: person is class {person}, the file has 2 classes"):
        detector([picture()])


def test_a_file_that_finds_nothing_finds_nobody(file):
    ((boxes, scores),) = build_detector(
        dict(type="torchscript", path=file(Shapes([0, 4], [1, 0])), input_size=SIZE)
    )([picture()])
    assert boxes.shape == (0, 4) and scores.shape == (0,)
