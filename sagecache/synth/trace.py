"""Ray casting: meshes through embree, the floor and the wall as planes.

Rays have camera z = 1, so the ray parameter is the depth in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from sagecache.synth.body import dot, unit
from sagecache.synth.camera import Camera

FLOOR, WALL = -1, -2
FAR = 50.0  # depth of rays that meet nothing, metres


@dataclass(frozen=True)
class Plane:
    """Points p with p @ normal = offset; normal (3,) unit, towards the side that is seen."""

    normal: np.ndarray
    offset: float


@dataclass
class Hits:
    """What N rays met: depth, world points and unit normals (N, ...), owner, face and barycentrics.

    owner: part of the world (>= 0, as given for each face), FLOOR or WALL. face is -1 on planes.
    Normals face the camera (normal @ direction < 0).
    """

    pixels: np.ndarray
    directions: np.ndarray
    depth: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    owner: np.ndarray
    face: np.ndarray
    weights: np.ndarray  # (N, 3) barycentric, meaningful where face >= 0


class World:
    """Triangles with vertex normals and owners, and up to two planes (FLOOR first)."""

    def __init__(self, vertices, normals, faces, owners, planes: list[Plane]) -> None:
        self.vertices = np.ascontiguousarray(vertices, np.float32)
        self.normals = np.asarray(normals, np.float32)
        self.faces = np.ascontiguousarray(faces, np.int32)
        self.owners = np.asarray(owners, np.int16)  # (F,)
        self.planes = planes
        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(self._scene, self.vertices, self.faces)  # embree keeps no reference

    def cast(self, camera: Camera, pixels: np.ndarray, box=None) -> Hits:
        """Shoot one ray through each pixel (N, 2); box (x0, y0, x1, y1) bounds the projected meshes."""
        directions = camera.directions(pixels)
        origin = camera.centre.astype(np.float32)
        depth, owner = self._cast_planes(origin, directions)
        count = len(pixels)
        face = np.full(count, -1, np.int32)
        weights = np.zeros((count, 3), np.float32)
        normals = np.zeros((count, 3), np.float32)
        for index, plane in enumerate(self.planes):
            normals[owner == FLOOR - index] = plane.normal
        x, y = pixels[:, 0], pixels[:, 1]
        near = np.arange(count)
        if box is not None:
            near = np.flatnonzero((x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3]))
        if len(near):
            rays = directions[near]
            hit = self._scene.run(np.repeat(origin[None], len(near), 0), rays, output=True)
            met = (hit["primID"] >= 0) & (hit["tfar"] < depth[near])
            index = near[met]
            depth[index], face[index] = hit["tfar"][met], hit["primID"][met]
            owner[index] = self.owners[face[index]]
            u, v = hit["u"][met], hit["v"][met]
            weights[index] = np.stack([1 - u - v, u, v], 1)
            normals[index] = self._surface_normals(index, face, weights, directions, hit["Ng"][met])
        points = origin + directions * depth[:, None]
        return Hits(pixels, directions, depth, points, normals, owner, face, weights)

    def first_hits(self, origin: np.ndarray, targets: np.ndarray):
        """Rays from origin (3,) to targets (N, 3): (fraction of the way, face); 1e37 and -1 on a miss."""
        rays = np.ascontiguousarray(targets - origin, np.float32)
        hit = self._scene.run(np.repeat(origin[None].astype(np.float32), len(rays), 0), rays, output=True)
        return hit["tfar"], hit["primID"]

    def blocked(self, points: np.ndarray, directions: np.ndarray, reach: float | None = None) -> np.ndarray:
        """Whether a mesh lies within reach (in direction lengths) of points along directions (N, 3)."""
        points = np.ascontiguousarray(points, np.float32)
        directions = np.ascontiguousarray(directions, np.float32)
        reaches = None if reach is None else np.full(len(points), reach, np.float32)
        return self._scene.run(points, directions, reaches, query="OCCLUDED") >= 0

    def interpolate(self, hits: Hits, which: np.ndarray, values: np.ndarray, first: int) -> np.ndarray:
        """Vertex values (V', C) of one part, whose vertices start at first, at hits[which]."""
        corners = self.faces[hits.face[which]] - first
        weights = hits.weights[which]
        return sum(weights[:, corner, None] * values[corners[:, corner]] for corner in range(3))

    def _cast_planes(self, origin, directions):
        depth = np.full(len(directions), FAR, np.float32)
        owner = np.full(len(directions), WALL, np.int16)
        for index, plane in enumerate(self.planes):
            slope = directions @ plane.normal.astype(np.float32)
            with np.errstate(divide="ignore", invalid="ignore"):
                distance = np.float32(plane.offset - origin @ plane.normal) / slope
            nearer = (distance > 0) & (distance < depth)
            depth[nearer], owner[nearer] = distance[nearer], FLOOR - index
        return depth, owner

    def _surface_normals(self, index, face, weights, directions, flat):
        """Interpolated vertex normals on the camera's side.

        Near the silhouette an interpolated normal may point away; it is mirrored in the plane across
        the ray, which keeps its direction in the picture (a plain sign flip would turn it round).
        """
        rays = unit(directions[index])
        corners = self.faces[face[index]]
        normals = sum(weights[index, corner, None] * self.normals[corners[:, corner]] for corner in range(3))
        inside = dot(flat, rays) * dot(flat, normals) > 0  # the back of a thin cloth is seen
        normals = unit(np.where(inside[:, None], -normals, normals))
        along = dot(normals, rays)[:, None]
        return np.where(along > 0, normals - 2 * along * rays, normals)
