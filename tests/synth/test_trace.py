"""A sphere and planes have known depth and normals: the same code path as the bodies."""

import numpy as np
import pytest

from sagecache.synth.camera import Camera
from sagecache.synth.meshes import ball
from sagecache.synth.render import pixel_grid
from sagecache.synth.trace import FLOOR, WALL, Plane, World

SIZE = (80, 60)
CENTRE, RADIUS = np.array([0.1, -0.05, 1.0]), 0.4
FLOOR_PLANE = Plane(np.array([0, 0, 1.0]), 0.0)


@pytest.fixture(scope="module")
def camera():
    intrinsics = np.array([[90.0, 0, 37.2], [0, 90, 30.8], [0, 0, 1]])
    tilt = np.radians(50)
    forward = np.array([0, np.cos(tilt), -np.sin(tilt)])
    right = np.array([1.0, 0, 0])
    turn = np.stack([right, np.cross(forward, right), forward])
    return Camera(intrinsics, turn, np.array([0, -1.5, 2.6]), SIZE)


@pytest.fixture(scope="module")
def world():
    mesh = ball(CENTRE, RADIUS, rings=160)
    return World(mesh.vertices, mesh.normals, mesh.faces, np.full(len(mesh.faces), 3), [FLOOR_PLANE])


def analytic(camera, pixels):
    """Depth and normal by the quadratic formula, without any of the package's geometry code."""
    focal, cx, cy = camera.intrinsics[0, 0], camera.intrinsics[0, 2], camera.intrinsics[1, 2]
    local = np.stack([(pixels[:, 0] - cx) / focal, (pixels[:, 1] - cy) / focal, np.ones(len(pixels))], 1)
    rays = local @ camera.camera_from_world
    offset = camera.centre - CENTRE
    a, b, c = (rays**2).sum(1), 2 * rays @ offset, offset @ offset - RADIUS**2
    root = b * b - 4 * a * c
    on_ball = root > 0
    near = (-b - np.sqrt(np.maximum(root, 0))) / (2 * a)
    floor = -camera.centre[2] / rays[:, 2]
    depth = np.where(on_ball, near, floor)
    normals = (camera.centre + rays * depth[:, None] - CENTRE) / RADIUS
    normals[~on_ball] = [0, 0, 1]
    return depth, normals, on_ball, root


def test_sphere_on_a_floor_has_analytic_depth_and_normals(camera, world):
    pixels = pixel_grid(SIZE)
    hits = world.cast(camera, pixels)
    depth, normals, on_ball, root = analytic(camera, pixels)
    clear = np.abs(root) > 0.05  # not on the silhouette, where the polygon and the sphere differ
    assert ((hits.owner == 3) == on_ball)[clear].all() and 300 < on_ball.sum() < 4000
    assert (hits.owner[clear & ~on_ball] == FLOOR).all()
    np.testing.assert_allclose(hits.depth[clear], depth[clear], atol=3e-4)
    np.testing.assert_allclose(hits.normals[clear], normals[clear], atol=6e-3)
    np.testing.assert_allclose(
        np.linalg.norm(hits.points - CENTRE, axis=1)[clear & on_ball], RADIUS, atol=3e-4
    )


def test_a_box_around_the_meshes_changes_nothing(camera, world):
    pixels = pixel_grid(SIZE)
    rim = camera.project(camera.to_camera(world.vertices))
    box = (*np.floor(rim.min(0)) - 1, *np.ceil(rim.max(0)) + 1)
    assert np.array_equal(world.cast(camera, pixels).depth, world.cast(camera, pixels, box).depth)


def test_normals_face_the_camera_even_from_inside(camera, world):
    inside = Camera(camera.intrinsics, camera.camera_from_world, CENTRE, SIZE)
    for view in (camera, inside):
        hits = world.cast(view, pixel_grid(SIZE))
        assert ((hits.normals * hits.directions).sum(1) < 0).all()
        np.testing.assert_allclose(np.linalg.norm(hits.normals, axis=1), 1, atol=1e-5)


def test_the_nearer_plane_wins(camera):
    wall = Plane(np.array([0, -1.0, 0]), -1.0)  # y = 1, seen from smaller y
    mesh = ball(np.array([0, 0, -50.0]), 0.1)
    world = World(mesh.vertices, mesh.normals, mesh.faces, np.zeros(len(mesh.faces)), [FLOOR_PLANE, wall])
    hits = world.cast(camera, pixel_grid(SIZE))
    on_wall = hits.owner == WALL
    assert on_wall.any() and (hits.owner == FLOOR).any()
    np.testing.assert_allclose(hits.points[on_wall, 1], 1, atol=1e-5)
    assert (hits.points[on_wall, 2] > -1e-5).all() and (hits.points[~on_wall, 1] < 1 + 1e-5).all()


def test_blocked_and_first_hits_know_the_sphere(world):
    above, below = CENTRE + [0, 0, 1], CENTRE - [0, 0, 0.9]
    up, down = np.array([0, 0, 1.0]), np.array([0, 0, -1.0])
    points = np.stack([below, above, above, below])
    assert world.blocked(points, np.stack([up, up, down, down])).tolist() == [True, False, True, False]
    assert world.blocked(points[:1], up[None], reach=0.4).tolist() == [False]  # the ball starts .5 away
    fraction, face = world.first_hits(above, np.stack([CENTRE, CENTRE + [0, 2, 0.9]]))
    assert fraction[0] == pytest.approx(0.6, abs=1e-3) and face[0] >= 0 and face[1] == -1


def test_interpolation_reproduces_linear_functions(camera, world):
    hits = world.cast(camera, pixel_grid(SIZE))
    which = np.flatnonzero(hits.owner == 3)
    values = world.interpolate(hits, which, world.vertices, 0)
    np.testing.assert_allclose(values, hits.points[which], atol=2e-5)
