"""What a recipe's sections build: only what is asked for, and nothing that it doesn't know."""

from __future__ import annotations

import pytest
from dots_network import bright_project

from sagecache.cli.jobs import stats_job
from sagecache.errors import SagecacheError
from sagecache.mm.labeling import build_labeler, build_mixing, build_style, check_labeling
from sagecache.precompute.runner import run_stats
from sagecache.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = bright_project(tmp_path_factory.mktemp("labeling") / "dots")
    run_stats(stats_job(project))
    return project


def recipe(project: Project, **words):
    return project.recipe("stage1-full", {f"semi.{key.replace('__', '.')}": v for key, v in words.items()})[0]


def test_what_is_off_is_not_built(project):
    plain = recipe(project)
    labeler = build_labeler(project, plain, sigma=2.0)
    assert labeler.instances is None and labeler.coupling is None
    assert labeler.keypoint_filter.visible is None
    assert build_mixing(project, plain) is None and build_style(plain) is None


def test_each_section_reaches_its_part(project):
    words = dict(
        instances__confidence=0.3,
        pseudo_labels__align=True,
        pseudo_labels__rule="adaptive",
        mixing__hide=2,
        mixing__akm__joints=1,
        style__fda=0.5,
    )
    asked = recipe(project, **words)
    labeler = build_labeler(project, asked, sigma=2.0)
    assert labeler.instances.confidence == 0.3
    assert labeler.keypoint_filter.rule == "adaptive"
    assert labeler.keypoint_filter.visible.tolist() == [1.0] * 17
    mixing = build_mixing(project, asked)
    assert mixing.kinds == ("hide", "akm") and mixing.akm.joints == 1
    assert build_style(asked).fda == 0.5


def test_a_coupling_that_would_do_nothing_is_told(project):
    with pytest.raises(SagecacheError, match="too few labeled persons show a limb"):
        build_labeler(project, recipe(project, coupling=2.0), sigma=2.0)


@pytest.mark.parametrize("section", ["pseudo_labels", "instances", "gate", "mixing", "style"])
def test_unknown_keys_are_named_with_their_section(project, section):
    with pytest.raises(SagecacheError, match=f"unknown key 'semi.{section}.nothing'"):
        check_labeling(recipe(project, **{f"{section}__nothing": 1}))


@pytest.mark.parametrize(
    "words, told",
    [
        (dict(pseudo_labels__beta=0.5), "semi.pseudo_labels.beta has no effect with rule 'fixed'"),
        (dict(pseudo_labels__limits=(0.2, 0.8), pseudo_labels__rule="softmatch"), "limits has .*'softmatch'"),
        (dict(gate__weight_b=0.2, gate__teacher_b="none"), "weight_b has no effect with teacher_b 'none'"),
        (dict(gate__keep_b=0.2, gate__teacher_b="none"), "keep_b has no effect with teacher_b 'none'"),
    ],
)
def test_keys_without_effect_are_refused(project, words, told):
    with pytest.raises(SagecacheError, match=told):
        check_labeling(recipe(project, **words))


def test_a_distance_that_no_rule_compares_with_is_refused(project):
    words = {"semi.teacher.mode": "single_two_view", "views.appearance.colour": 0.2}
    for rule, refused in (("average", True), ("best", False), ("drop", False)):
        fusion = {"semi.fusion.on_disagreement": rule, "semi.fusion.disagreement": 3.0}
        asked = project.recipe("stage1-full", words | fusion)[0]
        if refused:
            with pytest.raises(SagecacheError, match="fusion.disagreement has no effect with .*'average'"):
                check_labeling(asked)
        else:
            check_labeling(asked)


def test_none_takes_back_what_a_page_has_set(project):
    words = dict(pseudo_labels__beta=None, gate__weight_b=None, gate__teacher_b="none")
    check_labeling(recipe(project, **words))


@pytest.mark.parametrize(
    "words, least",
    [
        (dict(), 0.5),
        (dict(threshold=0.4), 0.4),
        (dict(rule="flexmatch", threshold=0.4), 0.4),
        (dict(rule="adaptive", limits=(0.3, 0.8)), 0.3),
        (dict(rule="freematch"), 0.0),
        (dict(rule="softmatch"), 0.0),
    ],
)
def test_the_gate_is_calibrated_by_the_confidence_that_the_rule_asks_for(project, monkeypatch, words, least):
    calibrate = "sagecache.mm.labeling.calibrate_threshold"
    monkeypatch.setattr(calibrate, lambda score, points, present, scale, confidence: confidence)
    words = {f"pseudo_labels__{key}": value for key, value in words.items()}
    words |= dict(gate__threshold_confidence=None, gate__threshold_plausibility=None)
    labeler = build_labeler(project, recipe(project, **words), sigma=2.0)
    assert labeler.gate.threshold_plausibility == least
