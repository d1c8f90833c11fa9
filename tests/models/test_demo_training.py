"""The script that remakes the committed networks: labels against analytic planes, loop, optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tools.demo_networks import geometry
from tools.demo_networks.training import Muon, Run, Schedule, make_optimizers, orthogonal
from tools.demo_networks.world import NEAR, SPAN, World

FOCAL = 4000.0  # pixels: perspective is weak, as the crop's relief assumes


def plane_world(normal: np.ndarray) -> World:
    """One image of a plane with a square person on it, 256 x 256, geometry at every second pixel."""
    x, y = np.meshgrid(np.arange(0, 256, 2) - 127.5, np.arange(0, 256, 2) - 127.5)
    rays = np.stack([x / FOCAL, y / FOCAL, np.ones_like(x)], -1)
    depth = normal[2] / (rays @ normal)  # 1 in the middle
    instances = np.full((128, 128), -1, np.int8)
    instances[40:90, 50:80] = 0
    codes = np.round((depth - NEAR) / SPAN * 65535).astype(np.uint16)
    normals = np.round(np.broadcast_to(normal, (128, 128, 3)) * 127).astype(np.int8)
    return World(
        images=np.zeros((1, 256, 256, 3), np.uint8),
        depth=codes[None],
        normals=normals[None],
        instances=instances[None],
        focal=np.array([FOCAL]),
        persons=np.array([[0, 0]]),
        bboxes=np.array([[100, 80, 60, 100]], np.float32),
        keypoints=np.zeros((1, 17, 3), np.float32),
        areas=np.array([6000]),
    )


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 35.0])
def test_relief_and_normals_of_a_turned_crop_tell_of_the_same_plane(mirror, degrees):
    normal = np.array([0.3, -0.4, -0.866])
    world = plane_world(normal)
    place = geometry.Placement(rotation=np.radians(degrees), mirror=mirror)
    matrix = geometry.place_person(geometry.person_pixels(world, 0), place)
    crop = geometry.cut(world, 0, matrix)
    turned = normal[:2] * (-1 if mirror else 1, 1)
    c, s = np.cos(place.rotation), np.sin(place.rotation)
    expected = np.array([c * turned[0] - s * turned[1], s * turned[0] + c * turned[1], normal[2]])
    np.testing.assert_allclose(crop.normals[:, crop.person[0]].mean(1), expected, atol=0.01)
    inside = torch.from_numpy(crop.person)[None].float()
    slopes = geometry.plane_slopes(torch.from_numpy(crop.relief)[None], inside)[0]
    # z = z0 + slope . (x, y) has the normal (slope, -1)
    np.testing.assert_allclose(slopes, -expected[:2] / expected[2], atol=0.03)


def test_the_person_fills_the_crop_however_it_is_turned():
    world = plane_world(np.array([0.0, 0.0, -1.0]))
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = geometry.training_crop(world, 0, rng)
        assert crop.image.shape == (256, 192, 3) and crop.person.shape == (1, 64, 48)
        rows, columns = np.nonzero(crop.person[0])
        filled = max(np.ptp(rows) / 64, np.ptp(columns) / 48)
        assert 0.45 < filled < 1.0  # padding 1.0 to 1.6, a little shifted


def test_the_loss_is_least_at_the_truth_and_the_reliefs_constant_is_free():
    torch.manual_seed(0)
    relief, inside = torch.randn(2, 1, 16, 12), (torch.rand(2, 1, 16, 12) > 0.3).float()
    around = torch.zeros_like(inside)
    value, gradient = geometry.relief_losses(relief + 3, relief, inside, around)
    assert value < 1e-5 and gradient < 1e-5
    assert geometry.relief_losses(relief * 1.5, relief, inside, around)[0] > 0.3
    normals = nn.functional.normalize(torch.randn(2, 3, 16, 12), dim=1)
    at_truth = geometry.normal_loss(normals, normals, inside)
    assert at_truth < 0.01 < geometry.normal_loss(normals.roll(1, 3), normals, inside)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonal_is_nearly_the_polar_factor(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    assert torch.linalg.svdvals(found).min() > 0.6 and torch.linalg.svdvals(found).max() < 1.3
    assert nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.hidden, self.output = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return self.output(self.hidden(self.stem(x)).relu())


def test_every_weight_has_one_optimiser_and_only_hidden_kernels_have_muon():
    net = Network()
    optimizers = make_optimizers(net, Schedule(minutes=1, muon=0.02))
    held = [p for one in optimizers for group in one.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, net.parameters()))
    (muon,) = [one for one in optimizers if isinstance(one, Muon)]
    assert muon.param_groups[0]["params"] == [net.hidden.weight]
    assert len(make_optimizers(net, Schedule(minutes=1))) == 1


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    schedule = Schedule(minutes=1, muon=0.02)
    batches = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(6)]

    def learn(run: Run, some: list) -> None:
        for batch in some:
            run.learn((run.net(batch) - 1).square().mean(), len(batch))

    whole = Run(Network(), schedule, tmp_path, "whole", resume=False)
    learn(whole, batches)
    first = Run(Network(), schedule, tmp_path, "cut", resume=False)
    learn(first, batches[:3])
    first.save()
    learn(first, batches[:2])  # lost
    second = Run(Network(), schedule, tmp_path, "cut", resume=True)
    assert (second.step, second.samples) == (3, 12)
    learn(second, batches[3:])
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, second.ema.state_dict()[name]), name
    before, after = ((net(batches[0]) - 1).square().mean() for net in (Network(), whole.net))
    assert after < before


def test_rates_rise_in_the_warm_up_and_fall_to_a_hundredth():
    schedule = Schedule(minutes=1, warmup=0.1)
    shares = [schedule.share(p) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert shares == pytest.approx([0.02, 0.5, 1.0, 0.5, 0.01])
