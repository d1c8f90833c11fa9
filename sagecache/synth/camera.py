"""A pinhole camera and where to put it.

Camera frame: x right, y down, z away. Pixels: (x, y), centres at integers. World: z up, metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagecache.synth.body import rotation, unit
from sagecache.synth.looks import Look


@dataclass(frozen=True)
class Camera:
    """intrinsics (3, 3); camera_from_world rotation (3, 3); centre (3,) in the world; size (w, h)."""

    intrinsics: np.ndarray
    camera_from_world: np.ndarray
    centre: np.ndarray
    size: tuple[int, int]

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) -> camera frame, metres."""
        return (points - self.centre) @ self.camera_from_world.T

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera points (..., 3) with z > 0 -> pixels (..., 2)."""
        image = points @ self.intrinsics.T
        return image[..., :2] / image[..., 2:]

    def directions(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) -> world directions (N, 3) float32 whose camera z is 1: ray parameter = depth."""
        focal = self.intrinsics[0, 0]
        rays = np.empty((len(pixels), 3))
        rays[:, :2] = (pixels - self.intrinsics[:2, 2]) / focal
        rays[:, 2] = 1
        return np.ascontiguousarray(rays @ self.camera_from_world, np.float32)


def torso_direction(keypoints: np.ndarray) -> np.ndarray:
    """From the middle of the hips to the middle of the shoulders, (3,)."""
    return keypoints[5:7].mean(0) - keypoints[11:13].mean(0)


def place_camera(look: Look, rng, vertices: np.ndarray, torso: np.ndarray, lying: bool, size) -> Camera:
    """Look at all people (their vertices (N, 3)) so that they fill the frame as the look wants.

    torso (3,): the first person's torso direction, for looks whose camera stands at the feet.
    """
    width, height = size
    elevation = np.radians(rng.uniform(*(look.lying_elevation if lying else look.elevation)))
    azimuth = rng.uniform(0, 2 * np.pi)
    if look.torso_turn is not None:  # the photographer stands at the feet, give or take
        azimuth = np.arctan2(torso[1], torso[0]) + np.pi
        azimuth += np.radians(rng.uniform(-look.torso_turn, look.torso_turn))
    forward = -np.array(
        [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
    )
    right = unit(np.cross(forward, [0, 0, 1.0]))
    down = np.cross(forward, right)
    roll = rng.uniform(-np.pi, np.pi) if look.roll >= 180 else np.radians(rng.normal(0, look.roll))
    camera_from_world = rotation([0, 0, 1], roll) @ np.stack([right, down, forward])
    focal = max(width, height) * np.exp(rng.uniform(*np.log(look.focal)))
    low, high = vertices.min(0), vertices.max(0)
    target, extent = (low + high) / 2, np.linalg.norm(high - low)
    fill = rng.uniform(*look.fill)
    local = (vertices[::9] - target) @ camera_from_world.T
    distance = 2.2 * extent
    for _ in range(4):  # perspective: the extent in the picture is not quite inverse in the distance
        image = local[:, :2] / (local[:, 2:] + distance) * focal
        share = max(np.ptp(image[:, 0]) / width, np.ptp(image[:, 1]) / height)
        distance = max(distance * share / fill, 0.6 * extent)
    image = local[:, :2] / (local[:, 2:] + distance) * focal
    middle = (image.max(0) + image.min(0)) / 2
    shift = (np.array(size) - 1) / 2 - middle + rng.normal(0, 0.05, 2) * size
    intrinsics = np.array([[focal, 0, shift[0]], [0, focal, shift[1]], [0, 0, 1.0]])
    return Camera(intrinsics, camera_from_world, target - camera_from_world[2] * distance, (width, height))
