"""How wrong a frozen network is: geometry per instance, beside a constant's error; detections per split.

Pure functions on arrays that are already aligned; they know no networks, files or crops.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

MIN_PIXELS = 60  # fewer leave no shape to speak of


def geometry_errors(
    depth: np.ndarray,
    normals: np.ndarray,
    mask: np.ndarray,
    true_depth: np.ndarray,
    true_normals: np.ndarray,
    true_mask: np.ndarray,
    erosion: int | None = None,
) -> dict[str, float] | None:
    """Errors of one instance inside its true mask, eroded by `erosion` pixels (default: 1 in 64 rows).

    depth, true_depth (h, w), any unit: the prediction is first fitted by a scale (of either sign) and an
    offset in least squares; depth_rmse is divided by the true depth's range (quantiles .02 to .98).
    normals, true_normals (3, h, w), unit, camera axes (x right, y down, z away); mask, true_mask (h, w) bool.

    Pixels without a finite prediction (a store keeps none off its mask) are left out, and lower `covered`.
    Returns normal_mean, normal_median (degrees), normal_under_30 (share), depth_rmse, depth_correlation,
    mask_iou (not eroded), covered (share of the eroded mask), and the same for a constant, normal
    (0, 0, -1): constant_normal_mean, constant_normal_median, constant_depth_rmse. None where fewer than
    MIN_PIXELS pixels remain.
    """
    whole = _erode(true_mask, len(true_mask) // 64 if erosion is None else erosion)
    inside = whole & np.isfinite(depth) & np.isfinite(normals).all(0)
    if inside.sum() < MIN_PIXELS:
        return None
    angle = _angles(normals[:, inside], true_normals[:, inside])
    facing = np.array([[0.0], [0.0], [-1.0]])
    flat = _angles(np.broadcast_to(facing, (3, inside.sum())), true_normals[:, inside])
    true, predicted = true_depth[inside].astype(np.float64), depth[inside].astype(np.float64)
    low, high = np.quantile(true, [0.02, 0.98])
    extent = max(high - low, 1e-9)
    varies = predicted.std() > 1e-9 and true.std() > 1e-9
    correlation = float(np.corrcoef(predicted, true)[0, 1]) if varies else 0.0
    union = (mask | true_mask).sum()
    return dict(
        normal_mean=float(angle.mean()),
        normal_median=float(np.median(angle)),
        normal_under_30=float((angle < 30).mean()),
        # The residual of a least-squares line is sqrt(1 - r^2) of the spread.
        depth_rmse=float(true.std() * np.sqrt(max(1 - correlation**2, 0.0)) / extent),
        depth_correlation=correlation,
        mask_iou=float((mask & true_mask).sum() / max(union, 1)),
        covered=float(inside.sum() / whole.sum()),
        constant_normal_mean=float(flat.mean()),
        constant_normal_median=float(np.median(flat)),
        constant_depth_rmse=float(true.std() / extent),
    )


def mean_errors(instances: Iterable[Mapping[str, float] | None]) -> dict[str, float]:
    """Mean of each figure over the instances that have one, and `count`, how many those are."""
    rows = [row for row in instances if row is not None]
    if not rows:
        return dict(count=0)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} | dict(count=len(rows))


def detection_ap50(predictions: Sequence[Mapping], ground_truth: Mapping) -> float:
    """COCO average precision of person boxes at IoU .5, in [0, 1] (pycocotools, up to 20 boxes an image).

    predictions: COCO results, dicts with image_id, category_id, bbox (x, y, w, h) and score.
    ground_truth: COCO annotation dict; crowds are ignored as usual.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not predictions:
        return 0.0
    dataset = {key: copy.deepcopy(ground_truth[key]) for key in ("images", "annotations", "categories")}
    for number, annotation in enumerate(dataset["annotations"], 1):
        annotation["id"] = number  # pycocotools takes id 0 for "unmatched"
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(p) for p in predictions]), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.maxDets = [20]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    return float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0


def _angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles in degrees between columns of (3, n) unit vectors."""
    return np.degrees(np.arccos(np.clip((a * b).sum(0), -1, 1)))


def _erode(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Shrink by a square of `pixels`; what lies outside the maps counts as background."""
    padded = np.pad(mask.astype(np.uint8), pixels + 1)
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    inner = slice(pixels + 1, -pixels - 1)
    return cv2.erode(padded, kernel)[inner, inner] > 0
