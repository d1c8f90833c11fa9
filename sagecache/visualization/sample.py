"""A figure of capsules with exact depth, normals and mask: something to draw when there is no data yet."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# COCO-17 joints of a lying infant in a picture 96 wide and 128 high: x, y, and height above the ground.
_JOINTS = np.array(
    [
        *((48, 22, 14), (52, 19, 13), (44, 19, 13), (57, 22, 8), (39, 22, 8)),  # nose, eyes, ears
        *((60, 40, 7), (36, 40, 7), (72, 30, 9), (24, 33, 9), (70, 14, 7), (20, 17, 7)),  # arms
        *((56, 74, 7), (41, 74, 7), (71, 84, 19), (27, 86, 17), (60, 104, 8), (36, 106, 7)),  # legs
    ],
    dtype=float,
)
_LIMBS = ((5, 7, 5), (7, 9, 4), (6, 8, 5), (8, 10, 4), (11, 13, 7), (13, 15, 5), (12, 14, 7), (14, 16, 5))


@dataclass(frozen=True)
class Figure:
    """image (128, 96, 3) uint8 RGB, keypoints (17, 3) with one joint occluded, bbox xywh, depth (128, 96),
    normal (3, 128, 96) in the camera's frame, mask (128, 96).
    """

    image: np.ndarray
    keypoints: np.ndarray
    bbox: tuple[float, float, float, float]
    depth: np.ndarray
    normal: np.ndarray
    mask: np.ndarray


def figure() -> Figure:
    """The same infant on every call."""
    rows, columns = np.mgrid[:128, :96].astype(float)
    relief = np.zeros((128, 96))
    torso = [(a, b, 10) for a in (5, 6) for b in (11, 12)]
    trunk = _capsule(columns, rows, _JOINTS[5:7].mean(0), _JOINTS[11:13].mean(0), 13)
    relief = np.maximum(relief, trunk)
    for a, b, radius in (*_LIMBS, *torso, (0, 0, 15)):
        relief = np.maximum(relief, _capsule(columns, rows, _JOINTS[a], _JOINTS[b], radius))
    mask = relief > 0
    depth = 100 - relief
    slope_y, slope_x = np.gradient(cv2.GaussianBlur(depth, (0, 0), 1.0))
    normal = np.stack([slope_x, slope_y, -np.ones_like(depth)])
    normal /= np.linalg.norm(normal, axis=0)
    light = np.clip(normal.T @ [-0.4, -0.5, -0.77], 0.15, 1).T[..., None]
    skin, sheet = np.array([226.0, 172, 142]), np.array([120.0, 146, 160])
    stripes = 1 + 0.06 * np.sign(np.sin((rows + columns) / 5))[..., None]
    image = np.where(mask[..., None], skin * light, sheet * stripes)
    keypoints = np.c_[_JOINTS[:, :2], np.full(17, 2)]
    keypoints[4, 2] = 1
    top, bottom = np.flatnonzero(mask.any(1))[[0, -1]]
    left, right = np.flatnonzero(mask.any(0))[[0, -1]]
    bbox = (float(left), float(top), float(right - left + 1), float(bottom - top + 1))
    return Figure(image.clip(0, 255).astype(np.uint8), keypoints, bbox, depth, normal, mask)


def _capsule(columns, rows, start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Height of a limb's upper surface; 0 beside it. start, end: x, y and height of its axis."""
    along = end[:2] - start[:2]
    share = (columns - start[0]) * along[0] + (rows - start[1]) * along[1]
    share = np.clip(share / max(along @ along, 1e-9), 0, 1)
    beside = (columns - start[0] - share * along[0]) ** 2 + (rows - start[1] - share * along[1]) ** 2
    axis = start[2] + share * (end[2] - start[2])
    return np.where(beside < radius**2, axis + np.sqrt(np.clip(radius**2 - beside, 0, None)), 0)
