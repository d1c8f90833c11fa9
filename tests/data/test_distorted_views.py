"""Batches whose views a matrix no longer describes, and the third view of the teacher: data.dataset."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from sagecache.data.dataset import LabeledViews, UnlabeledViews, collate
from sagecache.data.sampling import Draw
from sagecache.data.views import STRONG, ViewConfig, make_view, move_keypoints
from sagecache.errors import SagecacheError
from sagecache.geometry.affine import crop_affine
from sagecache.geometry.distortion import NODES, bend_points
from sagecache.skeleton import COCO17
from sagecache.structures import Instance

SIZE, PADDING, COUNT = (48, 64), 1.25, 3
DISTORTED = dataclasses.replace(STRONG, radial=0.3, tilt=20, bend=0.03, cutout=0, randaugment=1)


@pytest.fixture(scope="module")
def instances(tmp_path_factory) -> list[Instance]:
    """A person in each of three photos of noise."""
    folder = tmp_path_factory.mktemp("images")
    found = []
    for i in range(COUNT):
        rng = np.random.default_rng(i)
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (90, 80, 3), dtype=np.uint8))
        joints = np.column_stack([rng.uniform(10, 70, (17, 2)), np.full(17, 2)])
        found.append(Instance(i, 0, path, (10.0 + 5 * i, 12.0, 40.0, 60.0), keypoints=joints))
    return found


def unlabeled_views(instances, **options) -> UnlabeledViews:
    return UnlabeledViews(instances, None, SIZE, PADDING, ViewConfig(), STRONG, 2, **options)


def test_labels_follow_a_distorted_view(instances):
    """As make_view and move_keypoints of the same draw; away from where the matrix alone would put them."""
    seen = 0
    for seed in range(6):
        item = LabeledViews(instances, SIZE, PADDING, DISTORTED, COCO17)[Draw(1, (seed,))]
        source = instances[1]
        view = make_view(
            cv2.imread(str(source.path))[..., ::-1].copy(),
            source.bbox, SIZE, PADDING, DISTORTED, np.random.default_rng((seed,)),
        )  # fmt: skip
        np.testing.assert_array_equal(item["image"], view.image.transpose(2, 0, 1))
        follow = (view.view_from_image, SIZE, COCO17.flip_indices)
        moved, visible = move_keypoints(source.keypoints, *follow, view.distortion)
        np.testing.assert_array_equal(item["keypoints"], moved)
        np.testing.assert_array_equal(item["visible"], visible)
        seen += np.abs(moved - move_keypoints(source.keypoints, *follow)[0]).max() > 0.5
    assert seen >= 3


def test_strong_views_bring_their_lattices_and_weak_ones_stay_affine(instances):
    options = dict(targets=None, size=SIZE, padding=PADDING, weak=ViewConfig(), num_strong_views=3)
    plain = UnlabeledViews(instances, strong=STRONG, **options)
    distorted = UnlabeledViews(instances, strong=DISTORTED, **options)
    assert "strong_distortion" not in plain[0]
    batch = collate([distorted[Draw(k % COUNT, (k,))] for k in range(COUNT * 3)])
    lattices = batch["strong_distortion"]
    assert lattices.dtype == torch.float32 and lattices.shape == (COUNT * 3, 3, 2, NODES, NODES, 2)
    flat = lattices.flatten(0, 1)
    affine = (flat == 0).flatten(1).all(1)
    assert affine.any() and not affine.all(), "some draws leave the view affine: its lattices are zero"
    points = torch.rand(len(flat), 20, 2) * torch.tensor([47.0, 63.0])
    there = bend_points(points, flat[:, 0], SIZE)
    near = (there > -5).all(-1) & (there < torch.tensor(SIZE) + 4).all(-1)
    back = bend_points(there, flat[:, 1], SIZE)
    torch.testing.assert_close(back[near], points[near], atol=0.01, rtol=0)
    np.testing.assert_array_equal(batch["weak"][0].numpy(), plain[Draw(0, (0,))]["weak"])
    with pytest.raises(SagecacheError, match="views.weak.*must stay affine"):
        UnlabeledViews(instances, strong=STRONG, **{**options, "weak": ViewConfig(tilt=5)})
    none = UnlabeledViews(instances, strong=DISTORTED, **{**options, "num_strong_views": 0})[0]
    assert none["strong_distortion"].shape == (0, 2, NODES, NODES, 2)


def test_the_appearance_view_is_the_plain_crop_in_other_colours_and_disturbs_nothing(instances):
    draw, colours = Draw(2, (3, 1)), ViewConfig(colour=0.5, noise=5)
    without = unlabeled_views(instances)[draw]
    item = unlabeled_views(instances, appearance=colours)[draw]
    assert item.keys() - without.keys() == {"appearance", "appearance_from_image"}
    for name, value in without.items():
        np.testing.assert_array_equal(item[name], value, err_msg=name)
    assert item["appearance"].shape == (3, 64, 48) and item["appearance"].dtype == np.uint8
    matrix = item["appearance_from_image"]
    np.testing.assert_array_equal(matrix, crop_affine(instances[2].bbox, SIZE, PADDING).astype(np.float32))
    assert matrix.dtype == np.float32 and (item["appearance"] != item["weak"]).any()
    same = unlabeled_views(instances, appearance=ViewConfig())[draw]
    np.testing.assert_array_equal(same["appearance"], same["weak"])  # which is the plain crop here


@pytest.mark.parametrize(
    "key", [dict(rotation=5), dict(scale=0.1), dict(shift=0.1), dict(flip=0.5), dict(bend=0.01)]
)
def test_an_appearance_view_that_moves_is_refused(instances, key):
    with pytest.raises(SagecacheError, match="views.appearance.*plain crop.*Set rotation"):
        unlabeled_views(instances, appearance=ViewConfig(colour=0.3, **key))
