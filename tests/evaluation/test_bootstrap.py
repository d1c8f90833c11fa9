import numpy as np
import pytest
from ranked_world import guess, make_truth

from sagecache.errors import SagecacheError
from sagecache.evaluation import evaluate, paired_bootstrap
from sagecache.skeleton import COCO17


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
