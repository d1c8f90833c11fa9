"""Detectors of Hugging Face: boxes as arithmetic on the network's answers gives them, persons alone."""

import numpy as np
import pytest
import torch
from public_networks import depth_anything, detr, rt_detr, save_folder, yolos

from sagecache.errors import SagecacheError
from sagecache.teachers.huggingface_detector import _of_one_size
from sagecache.teachers.registry import build_detector

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
ALL = dict(score=0.0, nms=1.0, limit=100)


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def corners(boxes, height, width):
    """Shares (n, 4) of an image as centre and size -> xyxy in pixels whose centres are integers."""
    middle, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([middle - half, middle + half], 1) * [width, height, width, height] - 0.5


def same_boxes(found, boxes, scores, height, width):
    boxes = np.clip(corners(boxes, height, width), -0.5, np.array([width, height, width, height]) - 0.5)
    large = ((boxes[:, 2:] - boxes[:, :2]) >= 2).all(1)
    order = np.argsort(-scores[large], kind="stable")
    np.testing.assert_allclose(found[1], scores[large][order], atol=1e-5)
    np.testing.assert_allclose(found[0], boxes[large][order], atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("make", [yolos, detr])
def test_a_class_a_query(tmp_path, make):
    network = make(transformers)
    kind = dict(yolos="Yolos", detr="Detr")[make.__name__]
    size = dict(shortest_edge=64, longest_edge=96)
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(size=size)
    folder = tmp_path / "net"
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    images = [image(50, 70), image(80, 60, 1), image(50, 70, 2)]
    found = build_detector(dict(type="huggingface", path=str(folder), **ALL))(images)
    persons_of_all = 0
    for one, result in zip(images, found, strict=True):
        answer = network(pixel_values=processor(images=[one], return_tensors="pt")["pixel_values"])
        classes = answer.logits[0].softmax(-1)[:, :-1].numpy()
        persons = classes.argmax(1) == 1
        persons_of_all += persons.sum()
        same_boxes(result, answer.pred_boxes[0].numpy()[persons], classes[persons, 1], *one.shape[:2])
    assert 0 < persons_of_all < 36 + (make is detr)  # its untrained queries are much alike


@torch.no_grad()
@pytest.mark.parametrize("kind", ["RTDetr", "RTDetrV2", "DFine"])
def test_the_best_of_all_queries_and_classes(tmp_path, kind):
    network = rt_detr(transformers, kind)
    processor = transformers.RTDetrImageProcessorPil(size=dict(height=64, width=64))
    folder = tmp_path / "net"
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    one = image(50, 70)
    (found,) = build_detector(dict(type="huggingface", path=str(folder), **ALL))([one])
    answer = network(pixel_values=processor(images=[one], return_tensors="pt")["pixel_values"])
    scores = answer.logits[0].sigmoid()
    best = scores.flatten().topk(12).indices  # as many of all queries and classes as there are queries
    queries = best[best % 2 == 0] // 2
    assert len(queries)
    same_boxes(found, answer.pred_boxes[0, queries].numpy(), scores[queries, 0].numpy(), 50, 70)


def test_an_image_alone_and_among_others_has_the_same_boxes(tmp_path):
    folder = tmp_path / "net"
    yolos(transformers).save_pretrained(folder)
    transformers.YolosImageProcessorPil(size=dict(shortest_edge=64, longest_edge=96)).save_pretrained(folder)
    detector = build_detector(dict(type="huggingface", path=str(folder), **ALL))
    images = [image(50, 70), image(90, 60, 1)]
    for together, alone in zip(detector(images), (detector([one])[0] for one in images), strict=True):
        np.testing.assert_array_equal(together[0], alone[0])


def test_a_picture_that_the_preprocessing_refuses_is_an_error_of_a_line(tmp_path):
    folder = tmp_path / "net"
    yolos(transformers).save_pretrained(folder)
    transformers.YolosImageProcessorPil(size=dict(shortest_edge=64, longest_edge=96)).save_pretrained(folder)
    detector = build_detector(dict(type="huggingface", path=str(folder), **ALL))
    with pytest.raises(SagecacheError, match=r"net: the network failed on images of \[\(1, 200\)\]") as told:
        detector([image(1, 200)])
    assert "\n" not in str(told.value)


def test_devices_are_checked_by_name_when_built_and_for_good_when_loaded(tmp_path, monkeypatch):
    folder = str(tmp_path / "net")
    yolos(transformers).save_pretrained(folder)
    with pytest.raises(SagecacheError, match="unknown device 'gpu'"):
        build_detector(dict(type="huggingface", path=folder, device="gpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    detector = build_detector(dict(type="huggingface", path=folder, device="cuda"))
    with pytest.raises(SagecacheError, match="device 'cuda' is asked for, and torch sees none"):
        detector([image(50, 70)])


def test_groups_are_neighbours_of_one_size():
    images = [np.empty((2, width, 3)) for width in (4, 4, 4, 5, 4)]
    assert [[one.shape[1] for one in group] for group in _of_one_size(images, 2)] == [[4, 4], [4], [5], [4]]


def test_what_is_no_detector_of_persons_is_told(tmp_path):
    save_folder(depth_anything(transformers), tmp_path / "depth")
    with pytest.raises(SagecacheError, match="depth: has no class 'person'"):
        build_detector(dict(type="huggingface", path=str(tmp_path / "depth")))
    network = yolos(transformers)
    network.save_pretrained(tmp_path / "net")
    with pytest.raises(SagecacheError, match="[Dd]id you mean 'chair'"):
        build_detector(dict(type="huggingface", path=str(tmp_path / "net"), label="chairs"))
    with pytest.raises(SagecacheError, match="its preprocessing can't be built"):
        build_detector(dict(type="huggingface", path=str(tmp_path / "net")))([image(50, 70)])
    with pytest.raises(SagecacheError, match="out of range: score 2"):
        build_detector(dict(type="huggingface", path=str(tmp_path / "net"), score=2.0))


def test_the_fingerprint_follows_weights_rule_and_class(tmp_path):
    folder = tmp_path / "net"
    yolos(transformers).save_pretrained(folder)

    def printed(**options):
        return build_detector(dict(type="huggingface", path=str(folder), **options)).fingerprint()

    assert printed() == printed()
    assert len({str(one) for one in (printed(), printed(score=0.2), printed(label="dog"))}) == 3
