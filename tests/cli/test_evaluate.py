"""sagecache eval with a network that can't err, its results file read by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from dots import write_dots_project
from dots_network import save_checkpoint
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typed import sagecache

from sagecache.cli.evaluate import percent
from sagecache.errors import SagecacheError
from sagecache.project import Project


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained project: the EMA teacher is off by one heatmap pixel, the student by four."""
    folder = write_dots_project(tmp_path_factory.mktemp("dots"))
    place = folder / "work_dirs" / "stage0" / "iter_4.pth"
    save_checkpoint(Project.open(folder), place, student=(0.0, 4.0), ema_teacher=(0.0, 1.0))
    return folder


def judged(folder, split: str, results: str) -> list[float]:
    """AP and AR of a results file by pycocotools alone, with mmpose's area."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "data" / split / "annotations.json")
        for one in truth.anns.values():
            one["area"] = 0.53 * one["bbox"][2] * one["bbox"][3]
        judge = COCOeval(truth, truth.loadRes(results), "keypoints")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [judge.stats[0], judge.stats[5]]


@pytest.mark.parametrize("network", ["ema_teacher", "student"])
def test_figures_are_pycocotools_on_the_file_that_was_written(folder, network, tmp_path):
    out = tmp_path / "not" / "there" / "results.json"
    words = ("eval", "--split", "test", "--network", network, "--out", str(out), "--json")
    summary = json.loads(sagecache(folder, *words).stdout)
    assert [summary["AP"], summary["AR"]] == pytest.approx(judged(folder, "test", str(out)), abs=1e-9)
    assert (0.3 < summary["AP"] < 1) is (network == "ema_teacher")
    assert summary["predictions"] == str(out) and summary["network"] == network


def test_predictions_of_anybody_are_judged_by_the_same_rules(folder, tmp_path):
    out = tmp_path / "results.json"
    ours = json.loads(sagecache(folder, "eval", "--split", "test", "--out", str(out), "--json").stdout)
    foreign = [{k: one[k] for k in ("image_id", "keypoints", "score")} for one in json.loads(out.read_text())]
    out.write_text(json.dumps(foreign[::-1]))
    words = ("eval", "--split", "test", "--predictions", str(out))
    theirs = json.loads(sagecache(folder, *words, "--json").stdout)
    assert "checkpoint" not in theirs and theirs["predictions"] == str(out)
    for name in ("AP", "AP75", "AR", "PCK@0.05", "per_joint", "persons"):
        assert theirs[name] == ours[name], name
    text = sagecache(folder, *words).stdout
    assert "split test, 3 persons, predictions" in " ".join(text.split())


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda one: one.update(image_id=10**6), r"predictions\[1\].*image_id 1000000 is not in the ground"),
        (lambda one: one.update(keypoints=[1.0, 2.0]), r"predictions\[1\].*must have 51 numbers, it has 2"),
        (lambda one: one.pop("score"), r"predictions\[1\].*lacks 'score'"),
        (lambda one: one.update(score=10**400), r"predictions\[1\].*'score' must be a finite number"),
        (lambda one: one.update(annotation_id="7"), r"predictions\[1\].*'annotation_id' must be an integer"),
    ],
    ids=["image", "joints", "score", "huge", "annotation"],
)
def test_bad_predictions_name_the_file_and_the_record(folder, tmp_path, change, told):
    out = tmp_path / "results.json"
    ids = [one["id"] for one in json.loads((folder / "data/test/annotations.json").read_text())["images"]]
    content = [dict(image_id=one, keypoints=[0.0] * 51, score=0.5) for one in ids]
    change(content[1])
    out.write_text(json.dumps(content))
    with pytest.raises(SagecacheError, match=f"{out}.*{told}"):
        sagecache(folder, "eval", "--split", "test", "--predictions", str(out))
    out.write_text("{}")
    with pytest.raises(SagecacheError, match="must be a list of results"):
        sagecache(folder, "eval", "--split", "test", "--predictions", str(out))


def test_predictions_need_no_network(folder, tmp_path):
    out = tmp_path / "results.json"
    out.write_text("[]")
    refused = sagecache(folder, "eval", "--predictions", str(out), "--network", "student", code=2)
    assert "--network does not go with --predictions" in refused.output


def test_results_are_written_under_the_annotations_own_category(folder, tmp_path):
    labels = folder / "data" / "test" / "annotations.json"
    before = labels.read_text()
    content = json.loads(before)
    for record, key in [
        (content["categories"][0], "id"),
        *((a, "category_id") for a in content["annotations"]),
    ]:
        record[key] = 3
    try:
        labels.write_text(json.dumps(content))
        out = tmp_path / "results.json"
        summary = json.loads(sagecache(folder, "eval", "--split", "test", "--out", str(out), "--json").stdout)
        assert {one["category_id"] for one in json.loads(out.read_text())} == {3}
        assert (
            summary["AP"] == pytest.approx(judged(folder, "test", str(out))[0], abs=1e-9)
            and summary["AP"] > 0
        )
    finally:
        labels.write_text(before)


def test_labels_of_another_skeleton_are_not_measured(tmp_path):
    folder = write_dots_project(tmp_path / "dots")
    labels = folder / "data" / "val" / "annotations.json"
    content = json.loads(labels.read_text())
    content["categories"][0]["keypoints"] = [f"paw_{k}" for k in range(17)]
    labels.write_text(json.dumps(content))
    checkpoint = save_checkpoint(Project.open(folder), folder / "dots.pth")
    with pytest.raises(SagecacheError, match="its keypoints .paw_0"):
        sagecache(folder, "eval", "--checkpoint", str(checkpoint))


def test_the_table_says_what_was_measured_and_how(folder):
    done = sagecache(folder, "eval")
    text = " ".join(done.stdout.split())
    checkpoint = folder / "work_dirs" / "stage0" / "iter_4.pth"
    assert f"{checkpoint} (ema_teacher) split val, 3 persons, boxes: annotations" in text
    assert "OKS area bbox53" in text and "PCK of diagonal" in text
    rows = {row.split()[0]: row.split()[1:] for row in done.stdout.splitlines() if row.strip()}
    assert rows["left_wrist"] == ["100.0", "100.0"]
    written = checkpoint.parent / f"predictions_{checkpoint.stem}_ema_teacher_val_annotations.json"
    assert f"predictions: {written}" in text and len(json.loads(written.read_text())) == 3


def test_boxes_of_another_detector_are_not_evaluated(folder):
    page = folder / "data.py"
    before = page.read_text()
    words = ("eval", "--boxes", "detections")
    try:
        page.write_text(before.replace('(type="demo")', '(type="demo", score=0.0, limit=1)'))
        sagecache(folder, *words)
        page.write_text(before)
        refused = "detector.rule.score: 0 -> 0.05.*precompute detect --split val --force"
        with pytest.raises(SagecacheError, match=refused):
            sagecache(folder, *words)
        sagecache(folder, "eval")  # its boxes are the annotations'
    finally:
        page.write_text(before)


def test_without_a_checkpoint_the_command_that_makes_one_is_named(tmp_path):
    folder = write_dots_project(tmp_path / "mine")
    with pytest.raises(SagecacheError, match=f"no checkpoint yet.*sagecache --project {folder} train"):
        sagecache(folder, "eval")


def test_percent():
    assert [percent(value) for value in (0.12345, 1.0, None)] == ["12.3", "100.0", "-"]
