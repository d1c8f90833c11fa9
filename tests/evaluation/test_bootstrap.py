from types import SimpleNamespace

import numpy as np
import pytest
from ranked_world import guess, make_truth
from scipy import stats

from sagecache.errors import SagecacheError
from sagecache.evaluation import evaluate, paired_bootstrap
from sagecache.evaluation.bootstrap import ArmBootstrap, seed_weights
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


# -- seeds and images ----------------------------------------------------------------------------------


def measured(values: np.ndarray) -> SimpleNamespace:
    """A report in which image i has 100 joints, of which the share values[i] is correct."""
    count = len(values)
    sums = {"labeled": np.full(count, 100.0), "PCK@0.05": 100 * np.asarray(values, float)}
    return SimpleNamespace(image_ids=np.arange(count), area_rule="a", normaliser="b", per_image=lambda: sums)


def arms(**values) -> dict[str, dict[int, SimpleNamespace]]:
    """name -> one row of shares a seed."""
    return {name: {s: measured(row) for s, row in enumerate(rows)} for name, rows in values.items()}


def test_figures_by_seed_and_their_mean_are_plain_arithmetic():
    boot = ArmBootstrap(arms(a=[[0.5, 0.7], [0.9, 0.7]], b=[[0.2, 0.2], [0.4, 0.2]]), n=50)
    assert boot.mean("a").value == pytest.approx(0.7)
    difference = boot.contrast({"a": 1, "b": -1})
    assert difference.value == pytest.approx(0.45)
    assert difference.by_seed == pytest.approx({0: 0.4, 1: 0.5})
    assert boot.contrast({"a": 1, "b": -2}).value == pytest.approx(0.7 - 0.5)


@pytest.mark.parametrize("count", [4, 6, 10])
def test_of_seeds_alone_the_interval_is_student_s(count):
    """Images that are all alike leave the seeds; their interval is known in closed form."""
    rng = np.random.default_rng(count)
    gains = rng.normal(0.1, 0.02, count)
    found = ArmBootstrap(
        arms(a=[[0.5 + gain] * 5 for gain in gains], b=[[0.5] * 5] * count), n=4000
    ).contrast({"a": 1, "b": -1})
    half = stats.t.ppf(0.975, count - 1) * gains.std(ddof=1) / np.sqrt(count)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)
    assert found.low < gains.mean() < found.high


def test_of_one_seed_it_is_that_of_the_images():
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, 200)
    found = ArmBootstrap(arms(a=[values]), n=4000).mean("a")
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.06)


def test_a_difference_that_all_images_and_seeds_share_is_certain():
    """Paired: seeds and images lie far apart, the two arms always by the same."""
    rng = np.random.default_rng(1)
    b = rng.uniform(0.2, 0.6, (3, 40)) + np.array([[0.0], [0.1], [0.3]])
    boot = ArmBootstrap(arms(a=b + 0.05, b=b))
    difference = boot.contrast({"a": 1, "b": -1})
    assert (difference.low, difference.high) == pytest.approx((0.05, 0.05))
    assert boot.mean("a").high - boot.mean("a").low > 0.1


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.9), (5, 0.9)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, least):
    """120 worlds in which seeds, images and both together vary."""
    rng, held = np.random.default_rng(7), 0
    for _ in range(120):
        gain = (
            0.05
            + rng.normal(0, 0.02, (seeds, 1))
            + rng.normal(0, 0.1, 150)
            + rng.normal(0, 0.1, (seeds, 150))
        )
        found = ArmBootstrap(arms(a=0.5 + gain, b=np.full((seeds, 150), 0.5)), n=200).contrast(
            {"a": 1, "b": -1}
        )
        held += found.low <= 0.05 <= found.high
    assert held / 120 >= least


def test_the_gap_closed_is_a_ratio_of_means():
    low, arm, high = (
        [[value + step] * 6 for step in steps]
        for value, steps in ((0.4, (0, 0.1, 0.05, 0.05)), (0.6, [0] * 4), (0.8, [0] * 4))
    )
    boot = ArmBootstrap(arms(low=low, arm=arm, high=high))
    gap = boot.gap_closed("arm", "low", "high")
    assert gap.value == pytest.approx(0.15 / 0.35)
    assert gap.by_seed == pytest.approx({0: 0.5, 1: 1 / 3, 2: 0.15 / 0.35, 3: 0.15 / 0.35})
    assert 0.2 < gap.low < gap.value < gap.high < 0.6


def test_of_a_gap_that_may_be_none_the_share_is_unbounded():
    boot = ArmBootstrap(arms(low=[[0.4] * 6, [0.5] * 6], arm=[[0.6] * 6] * 2, high=[[0.8] * 6] * 2))
    gap = boot.gap_closed("arm", "low", "high")  # of two seeds Student's factor is 12.7
    assert gap.value == pytest.approx(0.15 / 0.35) and (gap.low, gap.high) == (-np.inf, np.inf)
    assert np.isnan(boot.gap_closed("arm", "low", "low").value)


def test_arms_are_compared_over_the_seeds_that_all_of_them_have():
    some = arms(a=[[0.5] * 4, [0.9] * 4, [0.7] * 4], b=[[0.4] * 4, [0.4] * 4, [0.4] * 4])
    del some["b"][1]
    boot = ArmBootstrap(some, n=20)
    assert boot.contrast({"a": 1, "b": -1}).by_seed == pytest.approx({0: 0.1, 2: 0.3})
    assert boot.mean("a").value == pytest.approx(0.7)
    del some["b"][0], some["b"][2]
    empty = ArmBootstrap(some, n=20).contrast({"a": 1, "b": -1})
    assert np.isnan(empty.value) and empty.by_seed == {}


def test_seeds_weights_sum_to_one_and_lie_about_the_mean():
    weights = seed_weights(5, 2000, np.random.default_rng(0))
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights.mean(0), 0.2, atol=0.02)
    np.testing.assert_array_equal(seed_weights(1, 4, np.random.default_rng(0)), 1)


def test_other_images_or_an_unknown_metric_are_refused(world):
    report = evaluate(world[1], world[0], COCO17)
    fewer = evaluate([], {**world[0], "images": world[0]["images"][:2], "annotations": []}, COCO17)
    with pytest.raises(SagecacheError, match="different images"):
        paired_bootstrap(report, fewer)
    with pytest.raises(SagecacheError, match=r"did you mean 'PCK@0\.05'"):
        paired_bootstrap(report, report, "PCK@0.5")
