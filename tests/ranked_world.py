"""Persons as random points, and guesses at them of a given quality: worlds for AP and PCK."""

import numpy as np


def make_truth(rng, images, crowds=0.0):
    annotations = []
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(1, 4)):
            keypoints = np.column_stack([rng.uniform(0, 100, (17, 2)), np.full(17, 2)])
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "bbox": [0, 0, 100, 100],
                    "keypoints": keypoints.ravel().tolist(),
                    "iscrowd": int(
                        rng.uniform() < crowds
                    ),  # predictions of a crowd are neither right nor wrong
                }
            )
    return {"images": [{"id": i} for i in range(1, images + 1)], "annotations": annotations}


def guess(truth, rng, noise):
    results = []
    for a in truth["annotations"]:
        keypoints = np.array(a["keypoints"]).reshape(-1, 3)
        keypoints[:, :2] += rng.normal(0, noise * rng.uniform(0.5, 2), (17, 2))
        results.append(
            {
                "image_id": a["image_id"],
                "annotation_id": a["id"],
                "keypoints": keypoints.ravel().tolist(),
                "score": rng.uniform(),
            }
        )
    return results
