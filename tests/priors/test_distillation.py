"""The term that teaches the student's features the cached geometry of its view."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from host import Operations
from torch.testing import assert_close

from sagecache.data.views import augment_affine
from sagecache.errors import SagecacheError
from sagecache.geometry.affine import compose, transform_points
from sagecache.priors.distillation import (
    GeometryDistillation,
    cells_from_pixels,
    map_losses,
    standardised,
    targets_in_view,
)
from sagecache.structures import UnlabeledBatch

SIZE, CELLS = (96, 128), (24, 32)  # width, height of the view and of the features
NORMAL = torch.tensor([0.48, -0.36, -0.8])
MAP_FROM_IMAGE = torch.tensor([[0.5, 0, 3.0], [0, 0.5, -2.0], [0, 0, 1]])


def disc(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A tilted disc at image points (..., 2): its depth, growing away, and whether a point is on it."""
    x, y = points.unbind(-1)
    return 5 + 0.03 * x - 0.02 * y, (x - 95).square() + (y - 130).square() < 60**2


def grid(size: tuple[int, int]) -> torch.Tensor:
    x, y = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="xy")
    return torch.stack([x, y], -1).flatten(0, 1).float()  # (H W, 2)


def seen(frame_from_image: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and mask (1, 1, H, W) of the disc, drawn directly in a frame."""
    depth, on = disc(transform_points(torch.linalg.inv(frame_from_image), grid(size)))
    shape = (1, 1, size[1], size[0])
    return (depth * on).view(shape), on.view(shape)


def cached(scale: float = 1.0, shift: float = 0.0) -> dict[str, torch.Tensor]:
    depth, mask = seen(MAP_FROM_IMAGE, (96, 128))
    return dict(
        depth=(scale * depth + shift) * mask, normal=NORMAL.view(1, 3, 1, 1) * mask.float(), mask=mask
    )


def view(rotation: float = 0.0, scale: float = 1.0, flip: bool = False) -> torch.Tensor:
    """(3, 3): image pixels -> strong view."""
    box = torch.tensor([[0.5, 0, 0.5], [0, 0.5, -1.0], [0, 0, 1]])
    turned = augment_affine(SIZE, rotation=rotation, scale=scale, flip=flip)
    return torch.from_numpy(np.asarray(turned)).float() @ box


def truth(strong_from_image: torch.Tensor, turned_by: float, flip: bool) -> torch.Tensor:
    """What a perfect student would say, (1, 5, h, w): normals, standardised depth, mask's logit, all drawn
    anew in the view's cells; the picture turns by turned_by, and is mirrored first.
    """
    depth, mask = seen(cells_from_pixels(SIZE, CELLS, NORMAL) @ strong_from_image, CELLS)
    whole, there = seen(MAP_FROM_IMAGE, (96, 128))
    mean = whole[there].mean()
    spread = (whole[there] - mean).abs().mean()
    x, y, z = NORMAL.tolist()
    x = -x if flip else x
    c, s = math.cos(turned_by), math.sin(turned_by)
    normal = torch.tensor([c * x - s * y, s * x + c * y, z]).view(1, 3, 1, 1).expand(1, 3, *mask.shape[2:])
    return torch.cat([normal, (depth - mean) / spread * mask, 40.0 * mask - 20], 1)


def batch(features: torch.Tensor, strong_from_image: torch.Tensor, targets: dict) -> UnlabeledBatch:
    count = len(features)
    many = {name: value.expand(count, *value.shape[1:]) for name, value in targets.items()}
    return UnlabeledBatch(
        student_heatmaps=torch.zeros(count, 17, 32, 24),
        heatmap_kind="logits",
        student_keypoints=torch.zeros(count, 17, 2),
        student_from_teacher=torch.eye(3).expand(count, 3, 3),
        heatmap_from_strong=torch.eye(3),
        strong_from_image=strong_from_image.expand(count, 3, 3),
        target_from_image=MAP_FROM_IMAGE.expand(count, 3, 3),
        strong_size=SIZE,
        bbox_scale=torch.ones(count),
        pseudo_labels=None,
        targets=many,
        step=0,
        student_features=features,
    )


def reading(channels: int = 5, **options) -> GeometryDistillation:
    """The term with a layer that says what the features say."""
    term = GeometryDistillation(channels, **options)
    with torch.no_grad():
        term.layer.weight.copy_(torch.eye(channels).view_as(term.layer.weight))
        term.layer.bias.zero_()
    return term


VIEWS = pytest.mark.parametrize(
    "options",
    [dict(), dict(rotation=40), dict(scale=0.7), dict(flip=True), dict(rotation=-75, scale=0.8, flip=True)],
    ids=["plain", "turned", "smaller", "mirrored", "all"],
)


@VIEWS
def test_a_student_that_draws_its_own_view_right_has_no_loss(options):
    """Drawn from the formula of a tilted disc, not by warping: edges alone are a cell's width unsure."""
    strong = view(**options)
    # the direction in which the picture's x axis points now, mirrored views aside
    axis = strong[:2, 0] * (-1 if options.get("flip") else 1)
    angle = math.atan2(axis[1], axis[0])
    right = truth(strong, angle, options.get("flip", False))
    losses = reading()(batch(right, strong, cached(scale=3.0, shift=-7.0))).scalars
    assert losses["normal"] < 1e-5
    assert losses["depth"] < 0.06  # of about 1: edge cells
    assert losses["mask"] < 0.5  # 20 where the edge runs through a cell: a fortieth of them
    wrong = truth(strong, angle + 0.5, options.get("flip", False))
    assert reading()(batch(wrong, strong, cached())).scalars["normal"] > 0.04  # .5 rad of the tilt of 37 deg
    assert reading()(batch(-right, strong, cached())).scalars["depth"] > 1.5


def test_cells_and_pixels_share_their_corners():
    matrix = cells_from_pixels(SIZE, CELLS, NORMAL)
    corners = torch.tensor([[-0.5, -0.5], [95.5, 127.5], [47.5, 63.5]])
    assert_close(transform_points(matrix, corners), torch.tensor([[-0.5, -0.5], [23.5, 31.5], [11.5, 15.5]]))


def test_depth_is_free_of_scale_and_shift_and_zero_off_the_person():
    depth, mask = seen(MAP_FROM_IMAGE, (96, 128))
    plain, other = standardised(depth, mask), standardised(4 * depth + 9, mask)
    assert_close(plain, other, atol=1e-4, rtol=1e-4)
    assert plain[mask].abs().mean() == pytest.approx(1, abs=1e-4)
    assert plain[mask].mean().abs() < 1e-4 and not plain[~mask].any()
    flat = standardised(torch.full((1, 1, 4, 4), 3.0), torch.ones(1, 1, 4, 4, dtype=torch.bool))
    assert not flat.any()


def test_a_person_without_a_target_takes_no_part():
    strong, targets = view(), cached()
    features = torch.randn(2, 5, 32, 24, generator=torch.Generator().manual_seed(0))
    both = {name: torch.cat([value, torch.zeros_like(value)]) for name, value in targets.items()}
    alone = reading()(batch(features[:1], strong, targets))
    with_failed = reading()(batch(features, strong, both))
    assert_close(alone.loss, with_failed.loss)
    features.requires_grad_()
    nobody = {name: torch.zeros_like(value) for name, value in both.items()}
    output = reading()(batch(features, strong, nobody))
    output.loss.backward()
    assert output.loss == 0 and not features.grad.any()


def test_cells_that_the_cached_map_does_not_reach_are_not_called_background():
    """A view ten times as wide as the map: most of it was never seen by the teacher."""
    strong = view(scale=0.1)
    person = 20 * torch.ones(1, 1, 32, 24)
    told = reading(1, normal=0, depth=0)(batch(person, strong, cached()))
    _, counted = targets_in_view(
        cached(),
        compose(cells_from_pixels(SIZE, CELLS, NORMAL), strong, torch.linalg.inv(MAP_FROM_IMAGE))[None],
        CELLS,
        dict(mask=1.0),
    )
    assert 0 < counted["mask"].mean() < 0.05
    assert told.loss < 20  # a part of the map is the person


def test_parts_without_a_weight_are_not_predicted():
    term = GeometryDistillation(8, depth=0)
    assert term.layer.out_channels == 4 and "depth" not in term.predict(torch.zeros(1, 8, 4, 3))
    output = term(
        batch(torch.randn(1, 8, 32, 24), view(), {k: v for k, v in cached().items() if k != "depth"})
    )
    assert set(output.scalars) == {"normal", "mask"}


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(normal=0, depth=0, mask=0), "normal 0, depth 0, mask 0"),
        (dict(depth=-1.0), "depth -1"),
        (dict(mask=math.inf), "mask inf"),
        (dict(upsample=0), "upsample must be 1 or more, not 0"),
    ],
)
def test_weights_that_leave_nothing_to_learn_are_refused(options, told):
    with pytest.raises(SagecacheError, match=told):
        GeometryDistillation(8, **options)


def test_coarse_features_predict_several_cells_each():
    term = GeometryDistillation(6, upsample=4)
    maps = term.predict(torch.randn(2, 6, 8, 6))
    assert [tuple(one.shape) for one in maps.values()] == [(2, 3, 32, 24), (2, 1, 32, 24), (2, 1, 32, 24)]
    assert_close(maps["normal"][:, 2], -torch.ones(2, 32, 24))  # before any step, towards the camera
    assert not maps["normal"][:, :2].any() and not maps["mask"].any()


@pytest.mark.parametrize("upsample", [1, 4])
def test_a_linear_world_is_learned(upsample):
    """Features of which the maps are a linear function: the layer finds it, and features get a gradient."""
    generator = torch.Generator().manual_seed(0)
    right = torch.nn.functional.pixel_unshuffle(truth(view(), 0.0, False).clamp(-6, 6), upsample)
    mix = torch.linalg.qr(torch.randn(right.shape[1], right.shape[1], generator=generator))[0]
    features = torch.einsum("ij,bjhw->bihw", mix, right).requires_grad_()
    term = GeometryDistillation(features.shape[1], upsample=upsample)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.03)
    first = term(batch(features, view(), cached())).loss
    first.backward()
    assert optimizer.step() is None
    again = term(batch(features, view(), cached())).loss
    again.backward()
    assert features.grad.abs().sum() > 0
    for _ in range(300):
        optimizer.zero_grad()
        loss = term(batch(features, view(), cached())).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * first


def test_the_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def random(channels: int) -> torch.Tensor:
        return torch.randn(2, channels, 3, 2, generator=generator, dtype=torch.float64)

    maps = [random(3).requires_grad_(), random(1).requires_grad_(), random(1).requires_grad_()]
    target = dict(
        normal=torch.nn.functional.normalize(random(3), dim=1), depth=random(1), mask=(random(1) > 0).double()
    )
    weight = {name: (random(1) > -0.5).double() for name in target}

    def losses(*three):
        return tuple(map_losses(dict(zip(target, three, strict=True)), target, weight).values())

    assert torch.autograd.gradcheck(losses, maps)


def test_autocast_changes_nothing():
    features = torch.randn(1, 5, 32, 24, generator=torch.Generator().manual_seed(1))
    term, given = reading(), batch(features, view(rotation=20), cached())
    plain = term(given).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(term(given).loss, plain, rtol=0, atol=0)


def test_no_host_waits_for_the_device():
    features = torch.randn(1, 5, 32, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
    term, given = reading(), batch(features, view(), cached())
    with Operations() as operations:
        term(given).loss.backward()
    assert operations.seen and operations.waiting == set()
