"""Thin out triangles while keeping the vertices: quadric half-edge collapses.

Only faces change, so skin weights, shape components and joint regressors stay valid as they are.
Garland and Heckbert, "Surface simplification using quadric error metrics", SIGGRAPH 1997, with the
collapse target restricted to an existing vertex.
"""

from __future__ import annotations

import heapq

import numpy as np


def decimate(
    shapes: list[np.ndarray], faces: np.ndarray, importance: np.ndarray, skin: np.ndarray, target: int
):
    """Faces (F', 3), F' <= target, over the same vertices.

    shapes: vertex arrays (V, 3) on which the error is summed; importance (V,) scales each vertex's
    error; skin (V, J): weights whose differences across a collapsed edge cost extra, which keeps rings
    of vertices at the joints. Stops early when no collapse keeps the surface a manifold.
    """
    mesh = _Mesh(shapes, faces, importance, skin)
    heap = [entry for a, b in mesh.edges() for entry in (mesh.entry(a, b), mesh.entry(b, a))]
    heapq.heapify(heap)
    while mesh.count > target and heap:
        _, gone, kept, stamp = heapq.heappop(heap)
        if stamp != mesh.stamp(gone, kept) or not mesh.may_collapse(gone, kept):
            continue
        for other in mesh.collapse(gone, kept):
            heapq.heappush(heap, mesh.entry(other, kept))
            heapq.heappush(heap, mesh.entry(kept, other))
    return np.array([face for face in mesh.faces if face is not None], faces.dtype)


class _Mesh:
    def __init__(self, shapes, faces, importance, skin):
        self.shapes, self.importance, self.skin = shapes, importance, skin
        self.faces: list[tuple[int, int, int] | None] = [tuple(map(int, face)) for face in faces]
        self.count = len(faces)
        self.of_vertex: list[set[int]] = [set() for _ in range(len(skin))]
        for index, face in enumerate(self.faces):
            for vertex in face:
                self.of_vertex[vertex].add(index)
        self.version = [0] * len(skin)
        self.quadrics = [self._quadrics(shape, faces) for shape in shapes]
        self.border = self._border_vertices()

    def _quadrics(self, shape, faces):
        a, b, c = (shape[faces[:, corner]] for corner in range(3))
        normals = np.cross(b - a, c - a)
        area = np.linalg.norm(normals, axis=1, keepdims=True)
        normals /= np.maximum(area, 1e-12)
        planes = np.concatenate([normals, -(normals * a).sum(1, keepdims=True)], 1)
        products = planes[:, :, None] * planes[:, None] * area[..., None]
        quadrics = np.zeros((len(shape), 4, 4))
        for corner in range(3):
            np.add.at(quadrics, faces[:, corner], products)
        return quadrics

    def _border_vertices(self):
        count: dict[tuple[int, int], int] = {}
        for face in self.faces:
            for a, b in ((face[0], face[1]), (face[1], face[2]), (face[2], face[0])):
                key = (min(a, b), max(a, b))
                count[key] = count.get(key, 0) + 1
        return {vertex for edge, uses in count.items() if uses != 2 for vertex in edge}

    def edges(self):
        return {
            (min(a, b), max(a, b)) for f in self.faces for a, b in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))
        }

    def stamp(self, a, b):
        return self.version[a], self.version[b]

    def entry(self, gone, kept):
        cost = 0.0
        for shape, quadrics in zip(self.shapes, self.quadrics, strict=True):
            point = np.array([*shape[kept], 1.0])
            length = ((shape[gone] - shape[kept]) ** 2).sum()
            difference = ((self.skin[gone] - self.skin[kept]) ** 2).sum()
            # the length term spreads collapses evenly over flat regions
            cost += point @ (quadrics[gone] + quadrics[kept]) @ point
            cost += length * length * (0.02 + 0.5 * difference)
        return cost * self.importance[gone], gone, kept, self.stamp(gone, kept)

    def _neighbours(self, vertex):
        return {v for index in self.of_vertex[vertex] for v in self.faces[index]} - {vertex}

    def may_collapse(self, gone, kept):
        if not self.of_vertex[gone] or not self.of_vertex[kept] or gone in self.border:
            return False
        shared = self.of_vertex[gone] & self.of_vertex[kept]
        if len(shared) != 2 or len(self._neighbours(gone) & self._neighbours(kept)) != 2:
            return False  # the collapse would pinch the surface
        for index in self.of_vertex[gone] - shared:
            face = self.faces[index]
            moved = tuple(kept if vertex == gone else vertex for vertex in face)
            for shape in self.shapes:
                before, after = (
                    np.cross(shape[f[1]] - shape[f[0]], shape[f[2]] - shape[f[0]]) for f in (face, moved)
                )
                scale = np.linalg.norm(before) * np.linalg.norm(after)
                if before @ after < 0.5 * scale or scale == 0:
                    return False  # a triangle would fold over
        return True

    def collapse(self, gone, kept):
        """Merge gone into kept; returns kept's neighbours."""
        for index in list(self.of_vertex[gone]):
            face = self.faces[index]
            for vertex in face:
                self.of_vertex[vertex].discard(index)
            if kept in face:
                self.faces[index] = None
                self.count -= 1
                continue
            moved = tuple(kept if vertex == gone else vertex for vertex in face)
            self.faces[index] = moved
            for vertex in moved:
                self.of_vertex[vertex].add(index)
        for quadrics in self.quadrics:
            quadrics[kept] += quadrics[gone]
        self.version[gone] += 1
        self.version[kept] += 1
        return self._neighbours(kept)
