import numpy as np
import pytest

from sagecache.synth.camera import Camera
from sagecache.synth.light import Light, shade, visibility
from sagecache.synth.meshes import box
from sagecache.synth.render import pixel_grid
from sagecache.synth.trace import Plane, World

SIZE = (64, 64)


@pytest.fixture(scope="module")
def scene():
    """A cube of 40 cm over the floor, seen from above; the lamp is 45 degrees to the left."""
    mesh = box(np.array([0, 0, 0.3]), np.full(3, 0.4), np.eye(3))
    floor = [Plane(np.array([0, 0, 1.0]), 0.0)]
    world = World(mesh.vertices, mesh.normals, mesh.faces, np.zeros(len(mesh.faces)), floor)
    intrinsics = np.array([[120.0, 0, 31.5], [0, 120, 31.5], [0, 0, 1]])
    camera = Camera(intrinsics, np.diag([1.0, -1, -1]), np.array([0, 0, 4.0]), SIZE)
    direction = np.array([-1, 0, 1], np.float32) / np.sqrt(2, dtype=np.float32)
    white = np.ones(3, np.float32)
    return world, camera, Light(direction, 0.01, 0.5, 1.0, white, white)


def test_shadow_falls_away_from_the_lamp(scene):
    world, camera, light = scene
    hits = world.cast(camera, pixel_grid(SIZE))
    people = hits.owner >= 0
    lamp, sky = visibility(world, hits, SIZE, light, 1.0, np.zeros(3), people)
    floor, top = 0, 1
    # the cube (z .1 to .5) shades x in [-.2 + .1, .2 + .5]: pixel x = 31.5 + 120 x / 4
    assert lamp[floor, 32, 46] < 0.1  # x = .48
    assert lamp[floor, 32, 58] > 0.95 and lamp[floor, 32, 4] > 0.95
    assert lamp[top, 32, 32] > 0.95 and sky[top, 32, 32] > 0.95  # nothing over the cube
    assert sky[floor, 32, 4] > 0.95 and sky[floor, 32, 41] < sky[floor, 32, 50]  # occlusion near the cube
    assert lamp.min() >= 0 and sky.max() <= 1 + 1e-6


def test_lambert_and_albedo():
    white = np.ones(3, np.float32)
    light = Light(np.array([0, 0, 1], np.float32), 0.1, 0.0, 1.0, white, white)  # no ambient light
    angle = np.radians([0, 60, 90, 120])
    normals = np.stack([np.sin(angle), np.zeros(4), np.cos(angle)], 1).astype(np.float32)
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    colour = shade(light, normals, np.ones((4, 3), np.float32), one, one, np.zeros(3), zero)
    np.testing.assert_allclose(colour[:, 0] / colour[0, 0], [1, 0.5, 0, 0], atol=1e-6)
    half = shade(light, normals, np.full((4, 3), 0.5, np.float32), one, one, np.zeros(3), zero)
    np.testing.assert_allclose(half, colour / 2, atol=1e-6)
    dark = shade(light, normals, np.ones((4, 3), np.float32), zero, one, np.zeros(3), zero)
    assert np.abs(dark).max() == 0  # full shadow, no ambient light
