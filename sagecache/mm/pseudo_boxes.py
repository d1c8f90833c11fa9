"""Boxes from a trained pose network: the second of two detections, by the poses that it sees in the first.

A detector's loose, doubled boxes become one box about each pose. Poses that are nearly one (OKS) are one
person, and the surest stays (OKS-NMS, Papandreou et al. 2017).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from sagecache.data.convert import box_around
from sagecache.mm.compat import activate
from sagecache.skeleton.definition import Skeleton

activate()

from mmpose.evaluation.functional.nms import oks_nms  # noqa: E402

AREA = 0.53  # of a box, as mmpose has it for files without areas
MIN_JOINTS = 3  # fewer say nothing of a body's extent
ANYWHERE = (np.inf, np.inf)  # predictions don't say how large their picture is


def pseudo_boxes(
    predictions: Sequence[Mapping],
    skeleton: Skeleton,
    confidence: float = 0.3,
    oks: float = 0.7,
) -> list[dict]:
    """COCO detections of keypoint results, one for each person.

    predictions: COCO keypoint results of ``mm.evaluate.predict``. confidence: joints above it span the box
    (data.convert.BOX_RULE); persons with less than MIN_JOINTS of them get none. oks: of two poses above it
    the surer stays, or the first.
    """
    by_image: dict[int, list[Mapping]] = defaultdict(list)
    for one in predictions:
        by_image[one["image_id"]].append(one)
    found = []
    for image_id, persons in sorted(by_image.items()):
        boxed = [(one, box) for one in persons if (box := _box(one, confidence)) is not None]
        poses = [
            dict(keypoints=_keypoints(one), score=one["score"] - 1e-9 * i, area=AREA * box[2] * box[3])
            for i, (one, box) in enumerate(boxed)
        ]
        for i in sorted(oks_nms(poses, oks, np.asarray(skeleton.sigmas))):
            one, box = boxed[i]
            found.append(dict(image_id=image_id, category_id=1, bbox=list(box), score=round(one["score"], 5)))
    return found


def _keypoints(prediction: Mapping) -> np.ndarray:
    return np.asarray(prediction["keypoints"], float).reshape(-1, 3)


def _box(prediction: Mapping, confidence: float) -> tuple[float, float, float, float] | None:
    keypoints = _keypoints(prediction)
    sure = keypoints[:, 2] > confidence
    box = box_around(keypoints[sure, :2], ANYWHERE) if sure.sum() >= MIN_JOINTS else (0, 0, 0, 0)
    return box if min(box[2:]) > 0 else None  # of a pose left of or above the picture nothing is left
