import numpy as np
import pytest

from sagecache.errors import SagecacheError
from sagecache.evaluation import evaluate, paired_bootstrap
from sagecache.skeleton import COCO17


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


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    truth = make_truth(rng, 30, crowds=0.2)
    return truth, guess(truth, rng, 4.0), guess(truth, rng, 6.0)


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


@pytest.mark.parametrize("metric", ["PCK@0.05", "PCK@0.1", "AP", "AR"])
def test_a_report_does_not_differ_from_itself(world, metric):
    report = evaluate(world[1], world[0], COCO17)
    assert paired_bootstrap(report, report, metric, n=50) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("metric", ["PCK@0.05", "AP"])
def test_the_better_one_wins_and_signs_turn(world, metric):
    good, bad = (evaluate(results, world[0], COCO17) for results in world[1:])
    difference, low, high = paired_bootstrap(good, bad, metric, n=200)
    assert 0 < low < difference < high
    back = paired_bootstrap(bad, good, metric, n=200)
    assert back == pytest.approx((-difference, -high, -low))


def test_the_interval_is_the_normal_one_for_a_plain_mean():
    rng = np.random.default_rng(2)
    truth = make_truth(rng, 300)
    single = {a["image_id"]: a for a in truth["annotations"]}.values()  # one person an image: PCK is a mean
    truth = {**truth, "annotations": list(single)}
    a, b = (evaluate(guess(truth, rng, noise), truth, COCO17) for noise in (4.0, 4.5))
    difference, low, high = paired_bootstrap(a, b, "PCK@0.05", n=2000)
    each = (a.per_image()["PCK@0.05"] - b.per_image()["PCK@0.05"]) / 17
    assert difference == pytest.approx(each.mean())
    assert (high - low) == pytest.approx(2 * 1.96 * each.std() / np.sqrt(300), rel=0.1)


def test_seeds_of_an_arm_count_by_their_mean(world):
    good, bad = (evaluate(results, world[0], COCO17) for results in world[1:])
    difference, _, _ = paired_bootstrap([good, bad], bad, "PCK@0.05", n=10)
    assert difference == pytest.approx((good.pck[0.05] - bad.pck[0.05]) / 2)


def test_other_images_or_an_unknown_metric_are_refused(world):
    report = evaluate(world[1], world[0], COCO17)
    fewer = evaluate([], {**world[0], "images": world[0]["images"][:2], "annotations": []}, COCO17)
    with pytest.raises(SagecacheError, match="different images"):
        paired_bootstrap(report, fewer)
    with pytest.raises(SagecacheError, match=r"did you mean 'PCK@0\.05'"):
        paired_bootstrap(report, report, "PCK@0.5")
