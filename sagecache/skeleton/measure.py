"""Lengths, angles and body sizes of 2-D skeletons, vectorised over N bodies.

Used by the statistics, the gate, the priors' data and the evaluation, so that all of them measure alike.
Units are those of the keypoints (pixels of any frame). What can't be measured is NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sagecache.errors import SagecacheError, nearest
from sagecache.skeleton.definition import Skeleton
from sagecache.structures import Instance


def stacked_keypoints(instances: Sequence[Instance], skeleton: Skeleton) -> np.ndarray:
    """(N, K, 3) float64 (x, y, v) of the persons who have keypoints.

    Raises SagecacheError for a person of another skeleton.
    """
    known = [one for one in instances if one.keypoints is not None]
    shape = (skeleton.num_keypoints, 3)
    for one in known:
        if one.keypoints.shape != shape:
            raise SagecacheError(
                f"has {len(one.keypoints)} keypoints, the skeleton '{skeleton.name}' has {shape[0]}",
                record=f"image_id {one.image_id}, annotation {one.annotation_id}",
                fix="Mend or remove it; 'sagecache data check' lists all such annotations.",
            )
    return np.array([one.keypoints for one in known], np.float64).reshape(-1, *shape)


def limb_lengths(keypoints: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """keypoints (N, K, 2 or more; x and y first), edges (E, 2) -> lengths (N, E)."""
    ends = np.asarray(keypoints, dtype=np.float64)[:, edges, :2]  # (N, E, 2, 2)
    return np.linalg.norm(ends[:, :, 0] - ends[:, :, 1], axis=-1)


def joint_angles(keypoints: np.ndarray, triplets: np.ndarray) -> np.ndarray:
    """Angle at the middle joint of each triplet: atan2(|cross|, dot), radians in [0, pi].

    keypoints (N, K, 2 or more), triplets (T, 3) [a, vertex, b] -> (N, T). A straight limb is pi. NaN where
    an end lies on the vertex. This is the angle in the image, not the anatomical one.
    """
    points = np.asarray(keypoints, dtype=np.float64)[:, triplets, :2]  # (N, T, 3, 2)
    u, v = points[:, :, 0] - points[:, :, 1], points[:, :, 2] - points[:, :, 1]
    cross = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    angle = np.arctan2(np.abs(cross), (u * v).sum(axis=-1))
    return np.where((u != 0).any(axis=-1) & (v != 0).any(axis=-1), angle, np.nan)


def joint_offsets(keypoints: np.ndarray, visible: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Length of each joint's differential coordinate: its distance from the mean of its neighbours.

    keypoints (N, K, 2 or more), visible (N, K) bool -> (N, K). NaN unless the joint, which has neighbours,
    and all of these are visible: a mean over what happens to be visible is another quantity for each body.
    """
    laplacian = skeleton.laplacian
    points = np.where(np.asarray(visible)[..., None], np.asarray(keypoints, dtype=np.float64)[..., :2], 0)
    hidden = ~np.asarray(visible, dtype=bool) @ (laplacian != 0).T  # (N, K): any that the row needs
    measured = ~hidden & (laplacian != 0).any(axis=1)
    return np.where(measured, np.linalg.norm(laplacian @ points, axis=-1), np.nan)


def relative_size(lengths: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """How large a skeleton is: the median over its limbs of length / typical length of that limb.

    Each limb is compared with its own length, so that missing limbs don't count, and a torn one counts
    once. Of an even number of limbs the lower middle one (as torch's median).
    lengths (N, L) and typical (L,) in one unit, NaN where unknown. Returns (N,), NaN without a limb.
    """
    ratio = np.sort(lengths / np.where(typical > 0, typical, np.nan), axis=1)  # NaN comes last
    count = np.isfinite(ratio).sum(axis=1)
    if ratio.shape[1] == 0:
        return np.full(len(ratio), np.nan)
    return np.take_along_axis(ratio, np.maximum(count - 1, 0)[:, None] // 2, axis=1)[:, 0]


def inversion(keypoints: np.ndarray, visible: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """log(distance of the head from the mid-shoulder / from the mid-hip): above 0 the hips are nearer.

    The head is the mean of its visible joints. Free of position, size and rotation. keypoints (N, K, 2 or
    more), visible (N, K) bool -> (N,); NaN unless a joint of the head, both shoulders and both hips are
    visible and apart.
    """
    if skeleton.torso_joints is None or not skeleton.is_head.any():
        return np.full(len(keypoints), np.nan)
    points, visible = np.asarray(keypoints, dtype=np.float64)[..., :2], np.asarray(visible, dtype=bool)
    of_head = (visible & skeleton.is_head)[..., None]
    head = np.where(of_head, points, 0).sum(axis=1) / np.maximum(of_head.sum(axis=1), 1)
    middle = points[:, skeleton.torso_joints].mean(axis=2)  # (N, 2, 2): shoulders, hips
    distance = np.linalg.norm(head[:, None] - middle, axis=-1)
    seen = of_head.any(axis=(1, 2)) & all_visible(visible, skeleton.torso_joints.reshape(1, 4))[:, 0]
    known = seen & (distance > 0).all(axis=1)
    shoulders, hips = np.where(known[:, None], distance, 1).T
    return np.where(known, np.log(shoulders) - np.log(hips), np.nan)


def all_visible(visible: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """visible (N, K) bool, joints (M, n) indices -> (N, M) bool: every joint of the row is visible."""
    return np.asarray(visible, dtype=bool)[:, joints].all(axis=-1)


def sqrt_area(keypoints, visible, bboxes, skeleton) -> np.ndarray:
    """Square root of the box's area, w * h."""
    sides = np.asarray(bboxes, dtype=np.float64)[:, 2:4]
    return _positive(np.sqrt(np.prod(np.maximum(sides, 0), axis=1)))


def diagonal(keypoints, visible, bboxes, skeleton) -> np.ndarray:
    """Diagonal of the box."""
    return _positive(np.linalg.norm(np.asarray(bboxes, dtype=np.float64)[:, 2:4], axis=1))


def torso(keypoints, visible, bboxes, skeleton) -> np.ndarray:
    """Mid-shoulder to mid-hip; NaN unless the four joints are visible. It shortens as the body leans towards
    the camera: limb lengths in this unit spread about 1.6 times as much as in that of the box (MATHS 5).
    """
    if skeleton.torso_joints is None:
        return np.full(len(keypoints), np.nan)
    middle = np.asarray(keypoints, dtype=np.float64)[:, skeleton.torso_joints, :2].mean(axis=2)  # (N, 2, 2)
    seen = all_visible(visible, skeleton.torso_joints.reshape(1, 4))[:, 0]
    return _positive(np.where(seen, np.linalg.norm(middle[:, 0] - middle[:, 1], axis=-1), np.nan))


def mean_log_limb(keypoints, visible, bboxes, skeleton) -> np.ndarray:
    """Geometric mean of the limb lengths, exp(mean log l): free of the box. NaN unless every limb is visible,
    because a mean over what happens to be visible is another unit for each body.
    """
    lengths = limb_lengths(keypoints, skeleton.limb_edges)
    seen = all_visible(visible, skeleton.limb_edges) & (lengths > 0)
    if lengths.shape[1] == 0:
        return np.full(len(lengths), np.nan)
    mean = np.log(np.where(seen, lengths, 1.0)).mean(axis=1)
    return np.where(seen.all(axis=1), np.exp(mean), np.nan)


# Each: keypoints (N, K, 2 or more), visible (N, K) bool, bboxes (N, 4) xywh, skeleton -> (N,) > 0 or NaN.
NORMALISERS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, Skeleton], np.ndarray]] = {
    "sqrt_area": sqrt_area,
    "torso": torso,
    "diagonal": diagonal,
    "mean_log_limb": mean_log_limb,
}


def body_size(
    name: str, keypoints: np.ndarray, visible: np.ndarray, bboxes: np.ndarray, skeleton: Skeleton
) -> np.ndarray:
    """The size of each body by the named normaliser, (N,), NaN where it is undefined."""
    if name not in NORMALISERS:
        raise SagecacheError(f"unknown normaliser '{name}'", fix=nearest(name, NORMALISERS))
    return NORMALISERS[name](keypoints, visible, bboxes, skeleton)


def _positive(size: np.ndarray) -> np.ndarray:
    return np.where(size > 0, size, np.nan)
