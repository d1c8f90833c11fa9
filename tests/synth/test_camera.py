import dataclasses

import numpy as np
import pytest

from sagecache.synth.camera import Camera, place_camera
from sagecache.synth.looks import LOOKS


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    return rng.uniform([-0.3, -0.2, 0], [0.3, 0.2, 0.2], (3000, 3))


@pytest.mark.parametrize("name", LOOKS)
def test_rays_and_projection_undo_each_other(name, cloud):
    rng = np.random.default_rng(1)
    camera = place_camera(LOOKS[name], rng, cloud, np.array([1.0, 0, 0]), True, (96, 128))
    pixels = rng.uniform(-5, 130, (50, 2))
    depth = rng.uniform(0.5, 3, 50)
    points = camera.centre + camera.directions(pixels) * depth[:, None]
    local = camera.to_camera(points)
    np.testing.assert_allclose(local[:, 2], depth, rtol=1e-5)  # the ray parameter is the depth
    np.testing.assert_allclose(camera.project(local), pixels, atol=2e-3)
    turn = camera.camera_from_world
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_a_known_camera_projects_as_by_hand():
    intrinsics = np.array([[100.0, 0, 31.5], [0, 100, 23.5], [0, 0, 1]])
    camera = Camera(
        intrinsics, np.diag([1.0, -1, -1]), np.array([0, 0, 2.0]), (64, 48)
    )  # looks straight down
    local = camera.to_camera(np.array([[0.1, 0.2, 1.0]]))
    np.testing.assert_allclose(local, [[0.1, -0.2, 1.0]])  # 1 m below, world y is up in the picture
    np.testing.assert_allclose(camera.project(local), [[41.5, 3.5]])


def test_people_fill_the_frame_and_elevation_is_kept(cloud):
    look = dataclasses.replace(LOOKS["target"], fill=(0.7, 0.7))
    for seed in range(10):
        camera = place_camera(
            look, np.random.default_rng(seed), cloud, np.array([0, 1.0, 0]), True, (128, 128)
        )
        pixels = camera.project(camera.to_camera(cloud))
        assert 0.6 < np.ptp(pixels, axis=0).max() / 128 < 0.8
        sine = -camera.camera_from_world[2, 2]  # the viewing direction's fall
        assert np.sin(np.radians(44.9)) < sine < np.sin(np.radians(88.1))


def test_the_camera_stands_upright_at_the_feet(cloud):
    torso, turns = np.array([0.3, -0.8, 0.1]), []
    look = dataclasses.replace(LOOKS["target"], roll=0.0)
    for seed in range(60):
        camera = place_camera(look, np.random.default_rng(seed), cloud, torso, True, (128, 128))
        right, down, forward = camera.camera_from_world
        assert right[2] == pytest.approx(0) and down[2] < 0  # the horizon is level, up is up
        heading, along = np.arctan2(forward[1], forward[0]), np.arctan2(torso[1], torso[0])
        turns.append(np.degrees(np.angle(np.exp(1j * (heading - along)))))
    assert np.abs(turns).max() < 60.01
    assert min(turns) < -40 and max(turns) > 40
