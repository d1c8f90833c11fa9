import numpy as np
import pytest

from sagecache.synth.body import rotation
from sagecache.synth.meshes import ball, blanket, box


def volume(mesh):
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    return (a * np.cross(b, c)).sum() / 6


def test_ball_is_round():
    mesh = ball(np.array([1.0, 2, 3]), 0.5, rings=40)
    np.testing.assert_allclose(mesh.vertices - [1, 2, 3], 0.5 * mesh.normals, atol=1e-12)
    assert abs(volume(mesh)) == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.02)


def test_box_has_its_sides_and_outward_normals():
    turn = rotation([1, 2, 3], 0.7)
    mesh = box(np.array([0.5, 0, 0]), np.array([1.0, 2, 3]), turn)
    local = (mesh.vertices - [0.5, 0, 0]) @ turn
    np.testing.assert_allclose(np.ptp(local, axis=0), [1, 2, 3])
    assert ((mesh.normals @ turn * local).sum(1) > 0).all()
    edges = mesh.vertices[mesh.faces]
    assert np.linalg.norm(
        np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0]), axis=1
    ).sum() / 2 == (pytest.approx(22))


def test_blanket_lies_on_what_is_below_it():
    rng = np.random.default_rng(0)
    points = rng.uniform([-0.1, -0.1, 0], [0.1, 0.1, 0.15], (4000, 3))
    mesh = blanket(rng, points, np.zeros(2), (0.6, 0.5))
    height = mesh.vertices[:, 2]
    inside = (np.abs(mesh.vertices[:, :2]) < 0.08).all(1)
    assert height[inside].min() > 0.14  # over the block
    assert height.min() > 0 and height.max() < 0.15 + 0.03
    assert (mesh.normals[:, 2] > 0).all()
    corner = np.linalg.norm(mesh.vertices[:, :2], axis=1).argmax()
    assert height[corner] < 0.05  # falls to the bed around it
