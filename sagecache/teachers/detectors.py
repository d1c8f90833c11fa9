"""What person detectors share: letterboxing, removal of duplicates, and boxes that lie inside the image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sagecache.errors import SagecacheError

BATCH = 8  # images of a pass on a GPU
Found = tuple[np.ndarray, np.ndarray]  # boxes xyxy (n, 4) in pixels, centres at integers; scores (n,)


@dataclass(frozen=True)
class BoxRule:
    """Which boxes of an image stay.

    score: least score; low, as AP needs the tail, and a split's min_score chooses among them later.
    nms: largest IoU of two boxes that both stay. limit: most boxes an image.
    """

    score: float = 0.05
    nms: float = 0.5
    limit: int = 10

    def __post_init__(self) -> None:
        if not (0 <= self.score < 1 and 0 < self.nms <= 1 and self.limit > 0):
            raise SagecacheError(
                f"detector settings out of range: score {self.score}, nms {self.nms}, limit {self.limit}"
            )

    def __call__(self, boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> Found:
        """Boxes xyxy (n, 4) and scores (n,) of an image of size (width, height) that stay, best first."""
        boxes, scores = clean_boxes(boxes[scores >= self.score], scores[scores >= self.score], size)
        kept = suppress(boxes, scores, self.nms)[: self.limit]
        return boxes[kept], scores[kept]


# For detectors of others: most leave one box a person by themselves, so only what nearly coincides goes.
OF_OTHERS = BoxRule(nms=0.7)


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, tuple[float, float]]:
    """Fit an image into size (width, height) without changing its aspect; the rest gets its mean colour.

    image (H, W, 3) uint8. Returns the picture and (scale, offset) with x_picture = scale * x + offset in
    continuous coordinates (pixel i covers [i, i + 1]), the picture centred.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (max(round(width * scale), 1), max(round(height * scale), 1))
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    picture = np.empty((size[1], size[0], 3), np.uint8)
    picture[:] = np.round(image.reshape(-1, 3).mean(0))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture[top : top + inner[1], left : left + inner[0]] = cv2.resize(image, inner, interpolation=how)
    return picture, scale, (float(left), float(top))


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes xyxy: (n, 4), (m, 4) -> (n, m); 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = (high - low).clip(min=0).prod(2)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).clip(min=0).prod(1) for box in (a, b))
    union = area_a[:, None] + area_b[None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression: indices to keep, best first; ties go to the lower index.

    boxes (n, 4) xyxy, scores (n,). A box goes when its IoU with a better kept one exceeds the threshold.
    """
    order = np.argsort(-scores, kind="stable")
    overlaps = iou_matrix(boxes, boxes)
    gone = np.zeros(len(boxes), bool)
    kept = []
    for index in order:
        if not gone[index]:
            kept.append(index)
            gone |= overlaps[index] > threshold
    return np.array(kept, dtype=np.int64)


def clean_boxes(
    boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int], min_side: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes xyxy to an image of size (width, height); drop what is not finite or too small.

    Pixel centres are integers: the image reaches from -.5 to W - .5. min_side in pixels.
    """
    limit = np.array([*size, *size]) - 0.5
    finite = np.isfinite(boxes).all(1) & np.isfinite(scores)
    boxes = np.clip(boxes[finite], -0.5, limit)
    large = ((boxes[:, 2:] - boxes[:, :2]) >= min_side).all(1)
    return boxes[large].astype(np.float32), scores[finite][large].astype(np.float32)
