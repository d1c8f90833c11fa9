"""The demo adapters against the networks; mirrored crops give mirrored maps; boxes land where they should."""

import numpy as np
import pytest
import torch
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.models.convnet import GeometryNet
from sagecache.models.weights import load_geometry_net
from sagecache.teachers.base import mirror_maps
from sagecache.teachers.demo import DemoDetector, DemoGeometry, decode_boxes
from sagecache.teachers.registry import build_detector, build_teacher


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return GeometryNet().eval()


@pytest.fixture(scope="module")
def crops():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


def test_one_view_is_the_network_itself(net, crops):
    out = DemoGeometry(flip_test=False, net=net, weights_hash="x")(crops)
    with torch.no_grad():
        relief, normals, person = net(torch.from_numpy(crops).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(out["normal"], normals, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out["mask"], person.sigmoid(), atol=1e-4, rtol=1e-4)
    difference = (out["depth"] - relief).flatten(1)
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-4, rtol=0)


def test_flip_test_is_the_mean_with_the_mirror_image_and_knows_no_left_or_right(net, crops):
    one, two = (DemoGeometry(flip_test=f, net=net, weights_hash="x") for f in (False, True))
    other = np.ascontiguousarray(crops[:, :, ::-1])
    views = [one(crops), mirror_maps(one(other))]
    normal = (views[0]["normal"] + views[1]["normal"]) / 2
    out = two(crops)
    torch.testing.assert_close(out["normal"], nn.functional.normalize(normal, dim=1), atol=1e-4, rtol=1e-4)
    depth = (views[0]["depth"] + views[1]["depth"]) / 2
    torch.testing.assert_close(out["depth"], depth, atol=1e-4, rtol=1e-4)
    for name, value in mirror_maps(out).items():
        torch.testing.assert_close(two(other)[name], value, atol=1e-4, rtol=1e-4)
    # a single pass does know: the network's weights are not symmetric
    assert (one(other)["normal"] - mirror_maps(views[0])["normal"]).abs().max() > 1e-3


def test_maps_come_at_the_asked_size_with_unit_normals(net, crops):
    teacher = DemoGeometry(flip_test=False, map_size=(96, 128), net=net, weights_hash="x")
    out = teacher(crops)
    assert teacher.spec.map_size == (96, 128)
    assert out["depth"].shape == out["mask"].shape == (2, 1, 128, 96)
    torch.testing.assert_close(out["normal"].norm(dim=1), torch.ones(2, 128, 96))
    assert out["mask"].min() >= 0 and out["mask"].max() <= 1


def test_fingerprint_follows_weights_and_preprocessing(net):
    base = DemoGeometry(flip_test=True, net=net, weights_hash="a").fingerprint()
    assert DemoGeometry(flip_test=True, net=net, weights_hash="a").fingerprint() == base
    assert DemoGeometry(flip_test=False, net=net, weights_hash="a").fingerprint() != base
    assert DemoGeometry(flip_test=True, net=net, weights_hash="b").fingerprint() != base
    assert DemoGeometry(flip_test=True, map_size=(96, 128), net=net, weights_hash="a").fingerprint() != base


def test_the_committed_teacher_is_built_by_name(crops):
    teacher = build_teacher(dict(type="demo", flip_test=False))
    direct = DemoGeometry(flip_test=False, net=load_geometry_net())
    torch.testing.assert_close(teacher(crops)["normal"], direct(crops)["normal"])
    assert "sagecache" not in str(teacher.fingerprint())


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_numbers_do_not_depend_on_the_number_of_threads(threads, count):
    rng = np.random.default_rng(count)
    crops = rng.integers(0, 256, (count, 256, 192, 3), np.uint8)
    teacher, detector, found = DemoGeometry(), DemoDetector(score=0.0), []
    for number in (1, 2, 3):
        threads(number)
        maps = teacher(crops)
        assert torch.get_num_threads() == number  # the caller's own work goes on as before
        found.append([*(maps[name].numpy().tobytes() for name in sorted(maps)), str(detector(list(crops)))])
    assert found[0] == found[1] == found[2]


class OneBox(nn.Module):
    """Answers every picture with the same boxes: (row, column, logit, sides in cells)."""

    def __init__(self, *boxes):
        super().__init__()
        self.maps = torch.full((5, 40, 40), -6.0)
        for row, column, logit, sides in boxes:
            self.maps[0, row, column] = logit
            self.maps[1:, row, column] = torch.tensor(sides).log()

    def forward(self, images):
        return self.maps.expand(len(images), -1, -1, -1)


@pytest.mark.parametrize("size", [(160, 160), (320, 320), (640, 320), (200, 500)])
def test_boxes_return_to_any_image_size(size):
    width, height = size
    # cell (10, 20): centre at input pixels (82, 42); sides 3, 4, 5, 6 cells of 4 pixels
    box = np.array([82 - 12, 42 - 16, 82 + 20, 42 + 24], float)
    net = OneBox((10, 20, 3.0, (3.0, 4.0, 5.0, 6.0)))
    detector = DemoDetector(score=0.3, net=net, weights_hash="x")
    ((boxes, scores),) = detector([np.zeros((height, width, 3), np.uint8)])
    scale = min(160 / width, 160 / height)
    left, top = (160 - width * scale) // 2, (160 - height * scale) // 2
    expected = (box - [left, top, left, top]) / scale - 0.5
    expected = np.clip(expected, -0.5, [width - 0.5, height - 0.5] * 2)
    np.testing.assert_allclose(boxes, [expected], atol=1e-4)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-3.0)), rtol=1e-5)


def test_score_threshold_suppression_and_limit():
    near = (3.0, 3.0, 3.0, 3.0)
    net = OneBox((10, 10, 3.0, near), (10, 12, 1.0, near), (30, 30, 0.5, near), (20, 20, -2.0, near))
    image = [np.zeros((160, 160, 3), np.uint8)]
    ((boxes, scores),) = DemoDetector(score=0.3, nms=0.3, net=net, weights_hash="x")(image)
    assert len(boxes) == 2 and (np.diff(scores) <= 0).all()
    ((boxes, _),) = DemoDetector(score=0.3, nms=0.9, net=net, weights_hash="x")(image)
    assert len(boxes) == 3
    ((boxes, _),) = DemoDetector(score=0.05, nms=0.9, limit=1, net=net, weights_hash="x")(image)
    assert len(boxes) == 1
    ((boxes, _),) = DemoDetector(score=0.99, net=net, weights_hash="x")(image)
    assert boxes.shape == (0, 4)


def test_only_local_peaks_are_boxes():
    net = OneBox((5, 5, 2.0, (1.0,) * 4), (5, 6, 1.9, (1.0,) * 4))
    boxes, scores = decode_boxes(net.maps, 0.1)
    assert len(boxes) == 1 and scores[0] == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_detector_settings_are_checked_and_fingerprinted():
    net = OneBox()
    base = DemoDetector(net=net, weights_hash="a").fingerprint()
    assert DemoDetector(score=0.5, net=net, weights_hash="a").fingerprint() != base
    assert DemoDetector(net=net, weights_hash="b").fingerprint() != base
    with pytest.raises(SagecacheError, match="out of range"):
        DemoDetector(score=2.0, net=net)


def test_the_committed_detector_runs_on_odd_sizes():
    detector = build_detector(dict(type="demo", score=0.2))
    results = detector([np.zeros((50, 333, 3), np.uint8), np.full((7, 5, 3), 200, np.uint8)])
    assert len(results) == 2
    for boxes, scores in results:
        assert boxes.shape == (len(scores), 4) and boxes.dtype == np.float32
