import numpy as np
import pytest

from sagecache.evaluation import evaluate
from sagecache.skeleton import COCO17


@pytest.mark.parametrize("metric", ["AP", "AP50", "AP75", "AR"])
def test_unit_weights_give_the_figures_of_pycocotools(world, metric):
    report = evaluate(world[2], world[0], COCO17)
    assert 0.01 < report.coco[metric] < 0.99
    assert report.ranking.value(metric, np.ones(30)) == pytest.approx(report.coco[metric], abs=1e-12)


def test_weights_are_copies_of_images(world):
    """An image of weight 3 must count like three images with the same content: evaluated by pycocotools."""
    truth, results, _ = world
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, 30).astype(float)
    copied = {"images": [], "annotations": []}
    copied_results = []
    for image_id, weight in enumerate(weights, 1):
        for copy in range(int(weight)):
            new_id = 1000 * copy + image_id
            copied["images"].append({"id": new_id})
            for a in truth["annotations"]:
                if a["image_id"] == image_id:
                    copied["annotations"].append({**a, "image_id": new_id, "id": 1000 * copy + a["id"]})
            for r in results:
                if r["image_id"] == image_id:
                    clone = {**r, "image_id": new_id, "annotation_id": 1000 * copy + r["annotation_id"]}
                    copied_results.append(clone)
    want = evaluate(copied_results, copied, COCO17)
    ranking = evaluate(results, truth, COCO17).ranking
    for metric in ("AP", "AP50", "AP75", "AR"):
        assert ranking.value(metric, weights) == pytest.approx(want.coco[metric], abs=1e-12)
