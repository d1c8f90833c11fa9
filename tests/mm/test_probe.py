"""Precision of pseudo labels while training: right figures, and not a bit of the training moved."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from dots import write_dots_project
from dots_network import bright_project, save_checkpoint, train

from sagecache.cli.jobs import stats_job
from sagecache.mm import guards, probe, run
from sagecache.mm.build import build_estimator
from sagecache.mm.checkpoints import load_network
from sagecache.mm.probe import build_probe
from sagecache.precompute.runner import run_stats
from sagecache.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = Project.open(write_dots_project(tmp_path_factory.mktemp("dots")))
    run_stats(stats_job(project))
    return project


def estimator_and_probe(project: Project, shift=(0.0, 0.0), overrides: dict | None = None):
    """An EMA teacher that is off by so many heatmap pixels: 6.5 by 6.5 image pixels each."""
    recipe, model = project.recipe("stage1-full", {"load_from": None, **(overrides or {})})
    estimator = build_estimator(project, recipe, model, with_terms=False)
    path = save_checkpoint(project, project.folder / "off.pth", ema_teacher=shift)
    load_network(estimator.ema_teacher, path, "ema_teacher")
    return estimator, build_probe(project, recipe, model, interval=1)


@pytest.mark.parametrize("shift, precision", [((0.0, 0.0), 1.0), ((1.0, 0.0), 1.0), ((0.0, 2.0), 0.0)])
def test_a_teacher_off_by_more_than_a_twentieth_of_the_diagonal_is_wrong(project, shift, precision):
    """The boxes' diagonal is 189 pixels, so 6.5 is within, 12.9 is not."""
    report = (lambda estimator, hook: hook.measure(estimator))(*estimator_and_probe(project, shift))
    assert report.labeled.sum() == 3 * 17  # persons of val, all joints labeled
    assert (report.precision, report.kept_share) == (precision, 1.0)
    assert report.swapped_share == 0 or precision == 0


def test_what_the_filter_drops_is_not_judged(project):
    estimator, hook = estimator_and_probe(project, overrides={"semi.pseudo_labels.threshold": 1.0})
    report = hook.measure(estimator)
    assert report.kept.sum() == 0 and report.labeled.sum() == 3 * 17
    assert set(report.scalars(project.skeleton.names)) >= {"kept", "kept/nose"}


def test_processes_share_the_persons_and_their_counts_add_up(project):
    estimator, hook = estimator_and_probe(project, (1.0, 1.0))
    parts = [hook.measure(estimator, rank, 2) for rank in (0, 1)]
    whole = hook.measure(estimator).counts()
    assert ((parts[0] + parts[1]).counts() == whole).all() and parts[0].labeled.sum() == 2 * 17


def test_of_many_persons_an_even_share_is_taken(project, monkeypatch):
    monkeypatch.setattr(probe, "PERSONS", 2)
    _, hook = estimator_and_probe(project)
    keys = [one.key for one in project.instances("val")]
    assert [one.key for one in hook.persons] == [keys[0], keys[-1]]


DUAL = {
    "semi.teacher.mode": "dual",
    "semi.teacher.appearance.own_norm": True,  # it measures what it sees, in training
    "views.appearance.colour": 0.2,
}


@pytest.mark.parametrize("teachers", [{}, DUAL])
def test_weights_statistics_modes_and_random_streams_stay_as_they_are(project, teachers):
    """With batch norm in the network and running statistics in the filter, both in training mode."""
    model = replace_network(project)
    recipe, _ = project.recipe("stage1-full", {"load_from": None, **teachers})
    estimator = build_estimator(project, recipe, model, with_terms=False).train()
    hook = build_probe(project, recipe, model, interval=1)
    before = {key: value.clone() for key, value in estimator.state_dict().items()}
    modes = {name: module.training for name, module in estimator.named_modules()}
    assert any("running_mean" in key for key in before) and any("keypoint_filter" in key for key in before)
    speak, seen = estimator.pseudo_labels, []
    # as a teacher would that draws something
    estimator.pseudo_labels = lambda batch: (seen.append(batch.keys()), torch.rand(2), speak(batch))[2]
    torch.manual_seed(5)
    hook.measure(estimator)
    assert ("appearance" in seen[0]) == bool(teachers)
    drawn = torch.rand(3)
    assert torch.equal(drawn, (torch.manual_seed(5), torch.rand(3))[1])
    after = estimator.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {name: module.training for name, module in estimator.named_modules()} == modes
    assert estimator.training and not estimator.ema_teacher.training


def replace_network(project: Project) -> dict:
    head = dict(
        type="SoftmaxHeatmapHead",
        in_channels=8,
        out_channels=17,
        deconv_out_channels=None,
        loss=dict(type="SpatialCrossEntropyLoss"),
        decoder=project.model["head"]["decoder"],
    )
    return dict(project.model, backbone=dict(type="PoseNet", width=8), head=head)


def test_a_training_with_it_has_the_weights_of_one_without_and_logs_it(tmp_path):
    project = bright_project(tmp_path / "dots")
    run_stats(stats_job(project))
    words = {"load_from": None, "train_cfg.val_interval": 2}
    states = {}
    for split in ("val", None):
        options = run.TrainOptions(
            work_dir=tmp_path / str(split), overrides=words | {"data.probe": split}, max_iters=4
        )
        train(project, "stage1-full", options, lambda *said: None)
        states[split] = torch.load(tmp_path / str(split) / "iter_4.pth", weights_only=True)["state_dict"]
    assert states["val"].keys() == states[None].keys()
    assert all(torch.equal(states[None][key], value) for key, value in states["val"].items())
    rows = {split: scalars(tmp_path / str(split)) for split in states}
    assert [row["step"] for row in rows["val"] if "probe/kept" in row] == [2, 4]
    (last,) = [row for row in rows["val"] if "probe/kept" in row and row["step"] == 4]
    assert 0 <= last["probe/precision"] <= 1 and "probe/precision/left_wrist" in last
    assert not [row for row in rows[None] if "probe/kept" in row]
    # what the collapse alarm reads is what a training logs
    assert {"train/" + key for row in rows[None] for key in row} >= {guards.PEAK, guards.KEPT}
    (log,) = (tmp_path / "val").glob("2*/*.log")
    assert "Iter(probe) [4] 3 persons: precision" in log.read_text()


def scalars(work_dir) -> list[dict]:
    (log,) = work_dir.glob("2*/vis_data/scalars.json")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_without_pseudo_labels_or_truth_there_is_none(project, caplog):
    recipe, model = project.recipe("stage0")
    assert build_probe(project, recipe, model, 1) is None
    recipe, model = project.recipe("stage1-full", {"data.probe": None})
    assert build_probe(project, recipe, model, 1) is None and caplog.text == ""
    recipe, model = project.recipe("stage1-full", {"data.probe": "test"})
    assert [one.image_id // 100 for one in build_probe(project, recipe, model, 1).persons] == [4, 4, 4]
    file = project.path(project.split("unlabeled").annotations)
    content = json.loads(file.read_text())
    for one in content["annotations"]:
        del one["keypoints"]
    (project.folder / "bare.json").write_text(json.dumps(content))
    bare = replace(project.split("unlabeled"), annotations=project.folder / "bare.json")
    project.data.splits["bare"] = bare
    recipe, model = project.recipe("stage1-full", {"data.probe": "bare"})
    assert build_probe(project, recipe, model, 1) is None
    assert "'bare' has no labeled person" in caplog.text
