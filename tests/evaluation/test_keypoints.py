import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sagecache.errors import SagecacheError
from sagecache.evaluation.keypoints import (
    COCO_METRICS,
    evaluate,
    oks,
    prepare_ground_truth,
    sort_predictions,
)
from sagecache.skeleton import COCO17

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"
PERSON = {"id": 1, "name": "person", "keypoints": list(COCO17.names), "skeleton": []}


def random_persons(rng, images=6, first_id=1):
    """A crowded little ground truth: 1 to 4 persons an image, some joints unlabeled."""
    annotations = []
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(1, 5)):
            x, y = rng.uniform(0, 200, 2)
            w, h = rng.uniform(60, 180, 2)
            points = np.column_stack([rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17)])
            visible = rng.choice([0, 1, 2], 17, p=[0.2, 0.2, 0.6])
            keypoints = np.where(visible[:, None] > 0, np.column_stack([points, visible]), 0)
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": 0.6 * w * h,
                    "iscrowd": 0,
                    "keypoints": keypoints.ravel().tolist(),
                    "num_keypoints": int((visible > 0).sum()),
                }
            )
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": 400, "height": 400} for i in range(1, images + 1)
    ]
    return {"images": images, "annotations": annotations, "categories": [PERSON]}


def guesses(truth, rng, noise=6.0, with_ids=False):
    """A noisy prediction for each annotation."""
    results = []
    for a in truth["annotations"]:
        keypoints = np.array(a["keypoints"]).reshape(-1, 3)
        points = keypoints[:, :2] + rng.normal(0, noise, (len(keypoints), 2))
        result = {
            "image_id": a["image_id"],
            "category_id": 1,
            "keypoints": np.column_stack([points, np.ones(len(points))]).ravel().tolist(),
            "score": float(rng.uniform(0.1, 1)),
        }
        results.append({**result, "annotation_id": a["id"]} if with_ids else result)
    return results


def official(truth, results, folder):
    """What pycocotools says of the two files, as anybody would run it."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "truth.json")
        judge = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "keypoints")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(COCO_METRICS, judge.stats, strict=True))


def false_person(image_id, score, keypoint_score=1.0):
    points = np.column_stack([np.full((17, 2), 390.0), np.full(17, keypoint_score)])
    return {"image_id": image_id, "category_id": 1, "keypoints": points.ravel().tolist(), "score": score}


def test_oks_by_hand():
    truth = np.zeros((1, 17, 3))
    truth[0, 0] = 10, 10, 2
    truth[0, 9] = 50, 20, 1
    truth[0, 3] = 70, 70, 0  # not labeled: must not count
    guess = truth[:, :, :2].copy()
    guess[0, 0] += (3, 4)
    guess[0, 3] += 1000
    nose = math.exp(-25 / (2 * 1600 * (2 * 0.026) ** 2))
    value = oks(guess, truth, np.array([1600.0]), COCO17.sigmas)
    assert value == pytest.approx((nose + 1) / 2, rel=1e-9)


def test_oks_is_that_of_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    truth = random_persons(rng, images=1)
    results = guesses(truth, rng)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "keypoints")
        judge._prepare()
        theirs = judge.computeOks(1, 1)
    ranked = sorted(results, key=lambda r: -r["score"])
    ours = oks(
        np.array([r["keypoints"] for r in ranked]).reshape(-1, 17, 3)[:, :, :2],
        np.array([a["keypoints"] for a in truth["annotations"]]).reshape(-1, 17, 3),
        np.array([a["area"] for a in truth["annotations"]]),
        COCO17.sigmas,
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_pycocotools_gives_the_same_figures_on_the_same_file(seed, tmp_path):
    rng = np.random.default_rng(seed)
    truth = random_persons(rng)
    truth["annotations"][0]["iscrowd"] = 1
    truth["annotations"][1].update(keypoints=[0] * 51, num_keypoints=0)
    results = guesses(truth, rng, noise=5) + [false_person(i, rng.uniform()) for i in (1, 2, 3)]
    results = sort_predictions(results)
    theirs = official(truth, results, tmp_path)
    report = evaluate(results, truth, COCO17, area_rule="annotation")
    assert 0.05 < report.AP < 0.95
    for name, value in theirs.items():
        assert report.coco[name] == pytest.approx(value, abs=1e-12), name


def test_the_box_rule_is_pycocotools_on_a_file_with_that_area(tmp_path):
    rng = np.random.default_rng(1)
    truth = random_persons(rng)
    results = sort_predictions(guesses(truth, rng))
    report = evaluate(results, truth, COCO17)
    for a in truth["annotations"]:
        a["area"] = 0.53 * a["bbox"][2] * a["bbox"][3]
    assert report.AP == pytest.approx(official(truth, results, tmp_path)["AP"], abs=1e-12)
    assert report.as_dict()["area_rule"].startswith("bbox53")


def test_the_area_rule_changes_ap_and_is_stated():
    rng = np.random.default_rng(2)
    truth = random_persons(rng)
    results = guesses(truth, rng)
    for a in truth["annotations"]:
        a["area"] = 15.6 * a["bbox"][2] * a["bbox"][3]  # as in one SyRIP file
    strict, lax = (evaluate(results, truth, COCO17, area_rule=rule) for rule in ("bbox53", "annotation"))
    assert lax.AP > strict.AP + 0.1
    assert lax.pck == strict.pck
    assert "annotation" in lax.as_dict()["area_rule"]


def test_annotation_id_zero_costs_nothing(tmp_path):
    rng = np.random.default_rng(3)
    from_zero = random_persons(rng, first_id=0)
    results = guesses(from_zero, rng, noise=0)
    assert evaluate(results, from_zero, COCO17, area_rule="annotation").AP == pytest.approx(1.0)
    assert official(from_zero, results, tmp_path)["AP"] < 0.999  # the trap is real
    assert from_zero["annotations"][0]["id"] == 0  # and the input is left alone


def test_persons_with_zero_keypoint_scores_stay_false_positives(tmp_path):
    rng = np.random.default_rng(4)
    truth = random_persons(rng)
    good = guesses(truth, rng, noise=0)
    ghosts = [false_person(i, 2.0, keypoint_score=0.0) for i in range(1, 7)]
    report = evaluate(good + ghosts, truth, COCO17, area_rule="annotation")
    assert report.AP == pytest.approx(official(truth, good + ghosts, tmp_path)["AP"], abs=1e-12)
    assert report.AP < 0.95
    assert report.pck[0.05] == 1.0  # ghosts match nobody


@pytest.mark.parametrize("seed", range(5))
def test_ties_in_the_order_of_a_file_are_pycocotools_ties(seed, tmp_path):
    """Scores in few steps, several guesses a person: which of equal ones comes first decides AP."""
    rng = np.random.default_rng(seed)
    truth = random_persons(rng, images=12)
    results = [one for noise in (4.0, 30.0, 9.0) for one in guesses(truth, rng, noise)]
    for one in results:
        one["score"] = round(one["score"], 1)
    rng.shuffle(results)
    theirs = official(truth, results, tmp_path)
    report = evaluate(results, truth, COCO17, area_rule="annotation", keep_order=True)
    for name, value in theirs.items():
        assert report.coco[name] == pytest.approx(value, abs=1e-12), name
    assert evaluate(results, truth, COCO17, area_rule="annotation").coco["AP"] != report.coco["AP"]


def test_ties_do_not_depend_on_the_order():
    rng = np.random.default_rng(5)
    truth = random_persons(rng)
    results = guesses(truth, rng, noise=8) + [false_person(i, 0.5) for i in range(1, 7)]
    for r in results:
        r["score"] = round(r["score"])  # nearly all tie
    figures = []
    for _ in range(4):
        shuffled = [results[i] for i in rng.permutation(len(results))]
        figures.append(evaluate(shuffled, truth, COCO17).as_dict())
    assert all(one == figures[0] for one in figures)


def slow_pck(truth, results, threshold, normaliser):
    by_id = {r["annotation_id"]: r for r in results}
    right, total = np.zeros(17), np.zeros(17)
    for a in truth["annotations"]:
        _, _, w, h = a["bbox"]
        size = math.hypot(w, h) if normaliser == "diagonal" else max(w, h)
        for k in range(17):
            x, y, v = a["keypoints"][3 * k : 3 * k + 3]
            if v == 0 or a["iscrowd"]:
                continue
            total[k] += 1
            if a["id"] in by_id:
                px, py = by_id[a["id"]]["keypoints"][3 * k : 3 * k + 2]
                right[k] += math.hypot(px - x, py - y) <= threshold * size
    return right, total


@pytest.mark.parametrize("normaliser", ["diagonal", "max_side"])
def test_pck_against_a_slow_loop(normaliser):
    rng = np.random.default_rng(6)
    truth = random_persons(rng)
    truth["annotations"][2]["iscrowd"] = 1
    results = guesses(truth, rng, noise=7, with_ids=True)[:-3]  # three persons have no prediction
    report = evaluate(results, truth, COCO17, normaliser=normaliser)
    assert report.unmatched == 3
    for threshold in (0.05, 0.1):
        right, total = slow_pck(truth, results, threshold, normaliser)
        assert 0 < right.sum() < total.sum()
        assert report.pck[threshold] == pytest.approx(right.sum() / total.sum())
        np.testing.assert_allclose(report.pck_per_joint[threshold], right / total)
    np.testing.assert_array_equal(report.per_image()["labeled"].sum(), total.sum())
    assert normaliser in report.as_dict()["pck_normaliser"]


def test_detected_boxes_are_matched_by_oks():
    rng = np.random.default_rng(7)
    truth = random_persons(rng)
    with_ids = guesses(truth, rng, noise=3, with_ids=True)
    without = [{k: v for k, v in r.items() if k != "annotation_id"} for r in with_ids]
    a, b = evaluate(with_ids, truth, COCO17), evaluate(without, truth, COCO17)
    assert a.pck == b.pck
    assert (a.matching, b.matching) == ("annotation_id of the box", "OKS >= 0.1, best score first")


def test_a_weaker_duplicate_does_not_replace_a_prediction():
    rng = np.random.default_rng(8)
    truth = random_persons(rng, images=1)
    truth["annotations"] = truth["annotations"][:1]
    blurred = {**guesses(truth, rng, noise=9)[0], "score": 0.9}
    exact = {**guesses(truth, rng, noise=0)[0], "score": 0.2}
    alone = evaluate([blurred], truth, COCO17)
    assert alone.pck[0.05] < 1
    assert evaluate([exact, blurred], truth, COCO17).pck == alone.pck


def test_nothing_predicted_is_zero_and_nothing_labeled_is_none():
    rng = np.random.default_rng(9)
    truth = random_persons(rng)
    empty = evaluate([], truth, COCO17)
    assert (empty.AP, empty.AR, empty.pck[0.05]) == (0.0, 0.0, 0.0)
    for a in truth["annotations"]:
        a.update(keypoints=[0] * 51, num_keypoints=0)
    report = evaluate(guesses(truth, rng), truth, COCO17)
    assert report.AP is None
    assert report.as_dict()["PCK@0.05"] is None
    json.dumps(report.as_dict(), allow_nan=False)


def test_nothing_is_printed(capsys):
    rng = np.random.default_rng(10)
    truth = random_persons(rng, images=2)
    evaluate(guesses(truth, rng), truth, COCO17)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("key", "told"), [(2, "2 annotations have the id 2"), (None, "2 annotations have no id")]
)
def test_annotations_that_share_an_id_can_not_be_matched_by_it(key, told):
    rng = np.random.default_rng(0)
    truth = random_persons(rng, images=2)
    results = guesses(truth, rng, with_ids=True)
    for one in truth["annotations"][:2]:
        one["id"] = key
    with pytest.raises(SagecacheError, match=f"{told} in the ground truth.*data check"):
        evaluate(results, truth, COCO17)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("score"), "lacks score"),
        (lambda r: r.update(image_id=99), "image_id 99 is not in the ground truth"),
        (lambda r: r.update(keypoints=[1.0] * 50), "needs 51 keypoint numbers"),
        (lambda r: r.update(keypoints=[float("nan")] * 51), "must be finite"),
        (lambda r: r.pop("annotation_id"), "carry an annotation_id"),
        (lambda r: r.update(annotation_id=77), "no such annotation"),
        (lambda r: r.update(annotation_id=2, image_id=1), "two predictions for one annotation"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    rng = np.random.default_rng(0)
    truth = random_persons(rng, images=2)
    results = guesses(truth, rng, with_ids=True)
    change(results[0])
    with pytest.raises(SagecacheError, match=message):
        evaluate(results, truth, COCO17)


def test_unknown_rules_name_the_known_ones():
    with pytest.raises(SagecacheError, match="did you mean 'bbox53'"):
        evaluate([], {"images": [], "annotations": []}, COCO17, area_rule="bbox")


def test_a_missing_area_is_refused_only_where_it_is_needed():
    rng = np.random.default_rng(0)
    truth = random_persons(rng, images=1)
    del truth["annotations"][0]["area"]
    assert len(prepare_ground_truth(truth, COCO17, "bbox53")["annotations"]) == len(truth["annotations"])
    with pytest.raises(SagecacheError, match="has no 'area'"):
        prepare_ground_truth(truth, COCO17, "annotation")


@pytest.mark.parametrize("bare", [{}, {"keypoints": None}, {"keypoints": []}])
def test_a_person_without_keypoints_is_ignored_as_pycocotools_does(bare, tmp_path):
    rng = np.random.default_rng(3)
    truth = random_persons(rng)
    results = sort_predictions(guesses(truth, rng, noise=4))
    unlabeled = truth["annotations"][2]
    same = json.loads(json.dumps(truth))
    same["annotations"][2].update(keypoints=[0] * 51, num_keypoints=0)
    del unlabeled["keypoints"], unlabeled["num_keypoints"]
    unlabeled.update(bare)
    report = evaluate(results, truth, COCO17, area_rule="annotation")
    for name, value in official(same, results, tmp_path).items():
        assert report.coco[name] == pytest.approx(value, abs=1e-12), name
    assert report.persons == len(truth["annotations"]) - 1


def test_a_dog_with_keypoints_is_no_missed_person():
    rng = np.random.default_rng(4)
    truth = random_persons(rng)
    results = guesses(truth, rng, noise=0)
    assert evaluate(results, truth, COCO17).AP == pytest.approx(1)
    dog = {**truth["annotations"][0], "id": 900, "category_id": 18, "bbox": [300, 300, 50, 50]}
    truth["annotations"].append(dog)
    truth["categories"].append({"id": 18, "name": "dog"})
    report = evaluate(results, truth, COCO17)
    assert (report.AP, report.unmatched) == (pytest.approx(1), 0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared photographs are not beside the checkout")
def test_real_annotations_agree_with_pycocotools(tmp_path):
    truth = json.loads((REAL / "annotations" / "person_keypoints.json").read_text())
    rng = np.random.default_rng(0)
    results = sort_predictions(guesses(truth, rng, noise=4))
    report = evaluate(results, truth, COCO17, area_rule="annotation")
    assert (report.persons, report.labeled.sum()) == (12, 181)
    assert report.AP == pytest.approx(official(truth, results, tmp_path)["AP"], abs=1e-12)
