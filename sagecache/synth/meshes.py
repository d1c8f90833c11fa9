"""Triangle meshes of the props: ball, box, draped blanket. Vertices carry normals; box edges are hard."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sagecache.synth.body import unit


@dataclass(frozen=True)
class Mesh:
    """vertices (V, 3) and outward normals (V, 3), metres, world; faces (F, 3); uv (V, 2) for prints."""

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    uv: np.ndarray


def _grid_faces(rows: int, columns: int) -> np.ndarray:
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    quads = [np.stack(corners, -1).reshape(-1, 3) for corners in ((a, b, c), (a, c, d))]
    return np.concatenate(quads)


def ball(centre: np.ndarray, radius: float, rings: int = 16) -> Mesh:
    """A sphere."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings))
    normals = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    normals = normals.reshape(-1, 3)
    uv = np.stack([phi / np.pi, theta / np.pi], -1).reshape(-1, 2)
    return Mesh(centre + radius * normals, normals, _grid_faces(*theta.shape), uv)


def box(centre: np.ndarray, sides: np.ndarray, turn: np.ndarray) -> Mesh:
    """A box with full side lengths sides (3,), turned by turn (3, 3)."""
    vertices, normals, uv, faces = [], [], [], []
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    for axis in range(3):
        for sign in (-1, 1):
            face = np.empty((4, 3))
            face[:, axis] = sign / 2
            face[:, [(axis + 1) % 3, (axis + 2) % 3]] = corners
            normal = np.zeros((4, 3))
            normal[:, axis] = sign
            faces.append(np.array([[0, 1, 2], [0, 2, 3]]) + 4 * len(vertices))
            vertices.append(face * sides)
            normals.append(normal)
            uv.append(corners + 0.5)
    vertices, normals = np.concatenate(vertices), np.concatenate(normals)
    return Mesh(vertices @ turn.T + centre, normals @ turn.T, np.concatenate(faces), np.concatenate(uv))


def blanket(rng, points: np.ndarray, centre: np.ndarray, sides: tuple[float, float], cells: int = 36) -> Mesh:
    """A cloth dropped on the points (N, 3) of bodies that lie on z = 0, about centre (2,), turned at random.

    Its height is a smoothed upper envelope of the points in its cells, so it never cuts through a body.
    """
    angle = rng.uniform(0, 2 * np.pi)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    local = (points[:, :2] - centre) @ axes.T / sides + 0.5  # 0..1 inside the cloth
    cell = np.clip(np.round(local * (cells - 1)).astype(int), -1, cells)
    near = ((cell >= 0) & (cell < cells)).all(1)
    height = np.zeros((cells, cells), np.float32)
    np.maximum.at(height, (cell[near, 1], cell[near, 0]), points[near, 2].astype(np.float32))
    spacing = max(sides) / cells
    support = cv2.dilate(height, np.ones((3, 3)))
    # the cloth sags between its supports: relax towards the neighbours' mean, never below a support
    height = cv2.dilate(support, np.ones((3, 3)))
    for _ in range(10):
        height = np.maximum(cv2.GaussianBlur(height, (0, 0), 1.5), support)
    ripples = cv2.resize(rng.random((7, 7)).astype(np.float32), (cells, cells), interpolation=cv2.INTER_CUBIC)
    height = cv2.GaussianBlur(height, (0, 0), 1.0) + 0.008 + 0.5 * spacing * ripples
    u, v = np.meshgrid(np.linspace(0, 1, cells), np.linspace(0, 1, cells))
    flat = (np.stack([u, v], -1) - 0.5) * sides
    ground = flat @ axes + centre
    vertices = np.concatenate([ground, height[..., None]], -1)
    normals = unit(np.cross(np.gradient(vertices, axis=1), np.gradient(vertices, axis=0)))
    uv = np.stack([u * sides[0], v * sides[1]], -1) / max(sides)
    return Mesh(vertices.reshape(-1, 3), normals.reshape(-1, 3), _grid_faces(cells, cells), uv.reshape(-1, 2))
