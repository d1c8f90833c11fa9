import numpy as np
import pytest

from sagecache.synth.meshes import ball
from tools.decimate import decimate


@pytest.fixture(scope="module")
def sphere():
    """A closed sphere: the grid's seam and poles welded."""
    mesh = ball(np.zeros(3), 1.0, rings=14)
    points, index = np.unique(mesh.vertices.round(9), axis=0, return_inverse=True)
    faces = index.ravel()[mesh.faces]
    keep = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return points, faces[keep]


def euler(faces):
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    pairs, uses = np.unique(edges, axis=0, return_counts=True)
    assert (uses == 2).all()  # closed
    return len(np.unique(faces)) - len(pairs) + len(faces)


def test_a_thinned_sphere_is_still_a_sphere(sphere):
    points, faces = sphere
    count = len(points)
    assert euler(faces) == 2
    thin = decimate([points], faces, np.ones(count), np.ones((count, 1)), len(faces) // 3)
    assert len(thin) <= len(faces) // 3 and euler(thin) == 2
    a, b, c = (points[thin[:, corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)
    assert ((a + b + c) * normals).sum(1).min() > 0 or ((a + b + c) * normals).sum(1).max() < 0  # none folded
    centres = np.linalg.norm(a + b + c, axis=1) / 3
    assert centres.min() > 0.85  # the surface stayed near the sphere


def test_important_regions_keep_their_triangles(sphere):
    points, faces = sphere
    importance = np.where(points[:, 2] > 0, 1000.0, 1.0)
    thin = decimate([points], faces, importance, np.ones((len(points), 1)), len(faces) // 2)
    upper = (points[thin].mean(1)[:, 2] > 0).sum()
    assert upper > 0.75 * len(thin)
