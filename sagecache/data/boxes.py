"""Boxes about keypoints, where nobody drew any: of annotations without boxes, and of predicted poses."""

from __future__ import annotations

import numpy as np

PADDING = 1.25  # a drawn box reaches beyond the joints: to the crown, fingers and toes
MIN_JOINTS = 3  # fewer say nothing of a body's extent


def keypoint_boxes(keypoints: np.ndarray, padding: float = PADDING, threshold: float = 0.0) -> np.ndarray:
    """The box about each person's joints, padded about its middle; NaN where fewer than MIN_JOINTS count.

    keypoints (N, K, 3): x, y in pixels, and visibility or confidence; those above threshold count.
    Returns (N, 4) x, y, width, height in pixels, not clipped.
    """
    counted = keypoints[..., 2] > threshold  # (N, K)
    low = np.where(counted[..., None], keypoints[..., :2], np.inf).min(1)
    high = np.where(counted[..., None], keypoints[..., :2], -np.inf).max(1)
    enough = (counted.sum(1) >= MIN_JOINTS)[:, None]
    low, high = np.where(enough, low, np.nan), np.where(enough, high, np.nan)
    size = (high - low) * padding
    return np.concatenate([(low + high - size) / 2, size], 1)
