"""Boxes from a trained pose network: the second of two detections, by the poses that it sees in the first.

A detector's loose, doubled boxes become one box about each pose. Poses that are nearly one (OKS) are one
person, and the surest stays (OKS-NMS, Papandreou et al. 2017).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from sagecache.data.boxes import PADDING, keypoint_boxes
from sagecache.mm.compat import activate
from sagecache.skeleton.definition import Skeleton

activate()

from mmpose.evaluation.functional.nms import oks_nms  # noqa: E402

AREA = 0.53  # of a box, as mmpose has it for files without areas


def pseudo_boxes(
    predictions: Sequence[Mapping],
    skeleton: Skeleton,
    confidence: float = 0.3,
    oks: float = 0.7,
    padding: float = PADDING,
) -> list[dict]:
    """COCO detections of keypoint results, one for each person.

    predictions: COCO keypoint results of ``mm.evaluate.predict``. confidence: joints above it span the box.
    oks: of two poses above it one stays. Persons of too few sure joints get no box. Ties go to the first.
    """
    by_image: dict[int, list[Mapping]] = defaultdict(list)
    for one in predictions:
        by_image[one["image_id"]].append(one)
    found = []
    for image_id, persons in sorted(by_image.items()):
        keypoints = np.array([one["keypoints"] for one in persons]).reshape(len(persons), -1, 3)
        boxes = keypoint_boxes(keypoints, padding, confidence)
        sound = [i for i in range(len(persons)) if np.isfinite(boxes[i]).all() and boxes[i, 2:].min() > 0]
        poses = [
            dict(
                keypoints=keypoints[i], score=persons[i]["score"] - 1e-9 * i, area=AREA * boxes[i, 2:].prod()
            )
            for i in sound
        ]
        kept = sorted(sound[i] for i in oks_nms(poses, oks, np.asarray(skeleton.sigmas)))
        for i in kept:
            bbox = [round(float(value), 2) for value in boxes[i]]
            score = round(float(persons[i]["score"]), 5)
            found.append(dict(image_id=image_id, category_id=1, bbox=bbox, score=score))
    return found
