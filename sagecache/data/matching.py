"""Which annotated person a detected box shows: for looking at detections, never for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sagecache.structures import Instance

SAME_PERSON = 0.3  # overlap of the two boxes


def with_annotation(instance: Instance, annotated: Sequence[Instance]) -> Instance:
    """The instance with keypoints and annotation id of the annotated one that it overlaps best, if any does.

    annotated: instances of its image with keypoints (others are passed over). One that has keypoints of its
    own stays as it is.
    """
    if instance.keypoints is not None:
        return instance
    candidates = [one for one in annotated if one.image_id == instance.image_id and one.keypoints is not None]
    best = max(candidates, key=lambda one: overlap(one.bbox, instance.bbox), default=None)
    if best is None or overlap(best.bbox, instance.bbox) < SAME_PERSON:
        return instance
    return replace(instance, keypoints=best.keypoints, annotation_id=best.annotation_id)


def joint_errors(keypoints: np.ndarray, instance: Instance) -> np.ndarray:
    """Distance of predicted joints from the annotated ones, in diagonals of the instance's box.

    keypoints (K, 2) in image pixels. Returns (K,) float64, NaN where nothing is annotated.
    """
    errors = np.full(len(keypoints), np.nan)
    if instance.keypoints is None:
        return errors
    labeled = instance.keypoints[:, 2] > 0
    distance = np.linalg.norm(keypoints - instance.keypoints[:, :2], axis=1)
    errors[labeled] = distance[labeled] / np.hypot(*instance.bbox[2:])
    return errors


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two xywh boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / max(a[2] * a[3] + b[2] * b[3] - shared, 1e-9)
