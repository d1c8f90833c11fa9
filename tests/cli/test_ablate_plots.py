"""Evidence plots from logs, predictions and judged crops; what can't be drawn says why."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dots import true_joints, write_dots_project

from sagecache.cli import ablate_plots
from sagecache.cli.ablate_plots import (
    DISTURBED_BY,
    PLOTS,
    Evidence,
    check_plots,
    draw_evidence,
)
from sagecache.cli.ablate_runs import Repetitions, Training
from sagecache.errors import SagecacheError
from sagecache.mm.robustness import KINDS, Disturbed
from sagecache.project import Project
from sagecache.skeleton import COCO17
from sagecache.visualization import evidence as drawing

ARMS = {"single": Training("stage0", 0), "dual": Training("stage0", 0, {"ema_decay": 0.9})}


@pytest.fixture
def project(tmp_path) -> Project:
    return Project.open(write_dots_project(tmp_path / "mine"))


@pytest.fixture
def panels(monkeypatch) -> dict[str, list]:
    """title -> the panels that were drawn."""
    found = {}
    for name in ("draw_curves", "draw_bars"):
        monkeypatch.setattr(
            drawing, name, lambda path, title, panels: found.setdefault(title, panels) and [path]
        )
    return found


@pytest.fixture
def evidence(project, tmp_path) -> Evidence:
    runs = {arm: {0: (project, training)} for arm, training in ARMS.items()}
    return Evidence(runs, "test", tmp_path / "plots")


def log(project: Project, training: Training, run: str, rows: list[dict]) -> None:
    folder = training.work_dir(project) / run / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(evidence, monkeypatch, **wanted) -> list:
    monkeypatch.setattr(ablate_plots, "judge_all", lambda *_: {})
    return draw_evidence("x", evidence, wanted, Repetitions(None), 1)


def test_a_resumed_run_s_later_log_counts_and_a_cut_line_does_not(project):
    training = ARMS["single"]

    def rows(*values: tuple[int, float]) -> list[dict]:
        return [{"step": step, "iter": step, "a": value, "text": "x"} for step, value in values]

    log(project, training, "20260101_000000", rows((10, 1), (20, 2), (50, 3)))  # a former run, longer
    log(project, training, "20260101_000100", [{"step": 0, "val": 1}, *rows((10, 10), (20, 20), (30, 30))])
    log(project, training, "20260101_000200", rows((30, 7), (40, 8)))
    page = next((training.work_dir(project) / "20260101_000200").rglob("scalars.json"))
    page.write_text(page.read_text() + '{"step": 50, "a"')
    a, b = ablate_plots._logged(project, training, ["a", "b"], needed="a")
    assert a == {10: 10, 20: 20, 30: 7, 40: 8} and b == {}


def test_net_use_is_kept_times_right(project, evidence, panels, monkeypatch):
    precision = {50: 0.5, 100: 0.9}
    rows = [{"step": s, "probe/kept": 0.8, "probe/precision": p} for s, p in precision.items()]
    log(project, ARMS["single"], "one", rows)
    log(project, ARMS["dual"], "one", [{"step": 50, "probe/kept": 0.0}, {"step": 100, "probe/kept": 0.0}])
    draw(evidence, monkeypatch, net_use=["single", "dual"])
    net, kept, right = panels["Net use of pseudo-labels"]
    np.testing.assert_allclose(net.series["single"], [[40, 72]])
    np.testing.assert_allclose(right.series["single"], [[50, 90]])
    np.testing.assert_allclose(kept.series["dual"], 0)
    np.testing.assert_allclose(net.series["dual"], 0)
    assert np.isnan(right.series["dual"]).all() and list(net.x) == [50, 100]


def test_selection_is_the_end_of_training_by_joint(project, evidence, panels, monkeypatch):
    def row(step, kept):  # of a joint that is never kept the probe knows no precision
        own = {f"probe/kept/{name}": kept + 0.01 * k for k, name in enumerate(COCO17.names)}
        return own | {"step": step, "probe/precision/nose": 0.5}

    for arm in ARMS:
        log(project, ARMS[arm], "one", [row(10, 0.9), row(80, 0.2), row(100, 0.4)])
    draw(evidence, monkeypatch, selection=list(ARMS))
    kept, right = panels["Which joints the filter keeps, at the end of training"]
    np.testing.assert_allclose(kept.series["dual"][0], 30 + np.arange(17))  # steps 80 and 100
    np.testing.assert_array_equal(right.series["dual"][0], [50] + 16 * [np.nan])
    assert list(kept.x) == list(COCO17.names)


def test_drift_counts_predicted_bodies_beyond_the_true(project, evidence, panels, monkeypatch):
    true = true_joints(project.folder, "test")

    def predictions(_project, training, _split):
        stretch = 3.0 if training is ARMS["single"] else 1.0
        results = []
        for one in project.instances("test", "annotations"):
            joints = true[one.annotation_id].astype(float)
            joints[:, :2] = joints[:, :2].mean(0) + stretch * (joints[:, :2] - joints[:, :2].mean(0))
            results.append(dict(keypoints=joints.ravel().tolist(), bbox=list(one.bbox)))
        return results

    monkeypatch.setattr(ablate_plots, "scored", predictions)
    draw(evidence, monkeypatch, drift=list(ARMS))
    (panel,) = panels["Implausible skeletons"]
    assert panel.series["single"].tolist() == [[100.0]]
    assert panel.series["dual"].tolist() == [[panel.line[1]]] and panel.line[0] == "true bodies"


def test_hard_joints_are_wrists_and_ankles(evidence, panels, monkeypatch):
    class Report:
        pck_per_joint = {0.05: np.arange(17) / 100}

    monkeypatch.setattr(ablate_plots, "report_of", lambda *_: Report)
    draw(evidence, monkeypatch, hard_joints=list(ARMS))
    (panel,) = panels["Hard joints"]
    assert panel.x == ["left_wrist", "right_wrist", "left_ankle", "right_ankle"]
    np.testing.assert_allclose(panel.series["dual"], [[9, 10, 15, 16]])


@pytest.mark.parametrize(
    ("plot", "title"), [("stability", "Stability"), ("hidden", "Hidden joints"), ("camera", "Camera")]
)
def test_curves_over_strength_are_what_was_judged(evidence, panels, monkeypatch, plot, title):
    strengths = ablate_plots.STRENGTHS[DISTURBED_BY[plot]]

    def judged(_project, _training, _split, kind):
        assert kind == DISTURBED_BY[plot]
        return [
            Disturbed(s, np.array([k]), np.array([10]), np.array([k / 2])).as_dict()
            for k, s in enumerate(strengths)
        ]

    monkeypatch.setattr(ablate_plots, "was_disturbed", judged)
    draw(evidence, monkeypatch, **{plot: list(ARMS)})
    drawn = panels[title]
    np.testing.assert_allclose(drawn[0].series["single"], [10 * np.arange(len(strengths))])
    assert drawn[0].x == strengths and len(drawn) == (2 if plot == "hidden" else 1)
    if plot == "hidden":
        np.testing.assert_allclose(drawn[1].series["single"], [np.arange(len(strengths)) / 20])


def test_what_can_t_be_drawn_says_why_and_the_rest_is_drawn(project, evidence, panels, monkeypatch, capsys):
    for arm in ARMS:
        log(project, ARMS[arm], "one", [{"step": 1, "probe/kept": 0.5, "probe/precision": 0.5}])
    wanted = dict(selection=list(ARMS), hidden=["single", "absent"], net_use=list(ARMS), drift=["absent"])
    assert len(draw(evidence, monkeypatch, **wanted)) == 1 and "Net use of pseudo-labels" in panels
    lines = capsys.readouterr().err.splitlines()
    assert "has no 'probe/kept/nose' in its log" in lines[0]
    assert lines[1] == "no plot 'hidden': arm 'absent' is not trained"
    assert lines[2] == "no plot 'drift': none of absent is trained"


def test_a_plot_shows_those_of_its_arms_that_are_trained(project, evidence, panels, monkeypatch, capsys):
    for arm in ARMS:
        log(project, ARMS[arm], "one", [{"step": 1, "probe/kept": 0.5, "probe/precision": 0.5}])
    assert len(draw(evidence, monkeypatch, net_use=["absent", "single", "dual", "other"])) == 1
    assert [list(panel.series) for panel in panels["Net use of pseudo-labels"]] == [["single", "dual"]] * 3
    assert capsys.readouterr().err == "plot 'net_use' is without absent, other: not trained\n"

    judged = []
    monkeypatch.setattr(ablate_plots, "judge_all", lambda *words: judged.extend(words[3]))
    monkeypatch.setattr(ablate_plots, "was_disturbed", lambda *_: None)
    wanted = dict(hidden=["single", "dual", "absent"], stability=["single", "absent"])
    draw_evidence("x", evidence, wanted, Repetitions(None), 1)
    assert judged == [("single", "hidden"), ("dual", "hidden")]  # no network is asked for a plot of one arm


def test_plots_and_kinds_fit_together():
    assert set(DISTURBED_BY) <= set(PLOTS) and set(DISTURBED_BY.values()) == set(KINDS)
    check_plots(dict.fromkeys(PLOTS, []))
    with pytest.raises(SagecacheError, match="no plot 'drifft'. did you mean 'drift'"):
        check_plots({"drifft": []})
