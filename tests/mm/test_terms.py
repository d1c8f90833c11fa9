from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dots import write_dots_project
from torch import nn

from sagecache.cli.jobs import stats_job
from sagecache.data.views import ViewConfig
from sagecache.errors import SagecacheError, recipe_is
from sagecache.mm.labeling import build_labeler
from sagecache.mm.terms import TERMS, build_terms, check_semi
from sagecache.precompute.runner import run_stats
from sagecache.project import Project, Recipe
from sagecache.project.recipe import BatchSettings, RecipeData, SemiSettings, TrainSettings, ViewSettings
from sagecache.skeleton import COCO17
from sagecache.skeleton.stats import compute_stats


def recipe(**terms) -> Recipe:
    return Recipe(semi=SemiSettings(terms=terms))


def test_a_weight_of_zero_builds_nothing_and_asks_for_nothing():
    silent = recipe(**{name: dict(weight=0) for name in TERMS})
    assert build_terms(Project.open(), silent, 1.25, None) == {}
    assert not silent.uses_geometry and not silent.uses_prior
    kinds = {need.kind for need in Project.open().requirements(silent)}
    assert kinds == {"split"}


def test_terms_that_could_learn_nothing_are_refused():
    sides = recipe(sides=dict(weight=1.0))
    with pytest.raises(SagecacheError, match="and there is no semi.swaps"):
        check_semi(sides)
    check_semi(replace(sides, semi=replace(sides.semi, swaps=dict(front=0.2))))


def test_a_style_for_no_labeled_image_is_refused():
    alone = Recipe(
        data=RecipeData(unlabeled="unlabeled"),
        batch=BatchSettings(labeled=0, unlabeled=8),
        semi=SemiSettings(terms=dict(consistency=dict()), style=dict(fda=0.5)),
    )
    with pytest.raises(SagecacheError, match="semi.style .* and batch.labeled is 0"):
        check_semi(alone)
    check_semi(replace(alone, batch=BatchSettings(labeled=8, unlabeled=8)))
    check_semi(replace(alone, semi=replace(alone.semi, style=dict(fda=0.0, colour=0.0))))


@pytest.mark.parametrize(
    "section, key, value, needed, amends",
    [
        ("style", "fda_size", 0.05, "style.fda", dict(fda=0.5)),
        ("mixing", "radius", 0.3, "mixing.limbs or mixing.cutmix", dict(cutmix=0.5)),
        ("mixing", "radius", 0.3, "mixing.limbs or mixing.cutmix", dict(limbs=2)),
    ],
)
def test_a_key_without_effect_is_refused(section, key, value, needed, amends):
    idle = recipe(consistency=dict())
    for semi, told in (({key: value}, True), ({key: value} | amends, False), ({key: None}, False)):
        asked = replace(idle, semi=replace(idle.semi, **{section: semi}))
        if told:
            with pytest.raises(
                SagecacheError, match=f"semi.{section}.{key} has no effect without semi.{needed}"
            ):
                check_semi(asked)
        else:
            check_semi(asked)


def test_a_width_for_teacher_b_s_poses_is_refused_where_no_gate_has_one():
    asked = recipe(consistency=dict(soft_sigma=3.0))
    with pytest.raises(
        SagecacheError, match="soft_sigma has no effect without semi.gate.teacher_b='diffusion'"
    ):
        check_semi(asked)
    check_semi(replace(asked, semi=replace(asked.semi, gate=dict(teacher_b="diffusion"))))
    check_semi(recipe(consistency=dict(soft_sigma=None)))


@pytest.mark.parametrize("ramp, counts, fits", [(4, 8, True), (5, 8, False), (39, 1, True), (40, 1, False)])
def test_a_ramp_that_would_not_end_is_refused_in_its_own_unit(ramp, counts, fits):
    long = Recipe(
        data=RecipeData(unlabeled="unlabeled"),
        batch=BatchSettings(labeled=8, unlabeled=8),
        train_cfg=TrainSettings(max_iters=40),
        optim_wrapper=dict(accumulative_counts=counts),
        semi=SemiSettings(terms=dict(consistency=dict()), ramp_up=ramp),
    )
    if fits:
        check_semi(long)
    else:
        steps = 40 // counts
        told = f"semi.ramp_up is {ramp} optimiser.* {steps} of them.*a tenth"
        with pytest.raises(SagecacheError, match=told):
            check_semi(long)
    check_semi(replace(long, batch=BatchSettings(labeled=8)))  # no term reads it


@pytest.mark.parametrize("key", ["radial", "tilt", "bend"])
def test_geometry_terms_refuse_views_that_are_not_affine(key):
    bent = ViewSettings(strong=ViewConfig(**{key: 0.05}))
    for term in ("cmgc_depth", "cmgc_normal", "geometry"):
        asked = replace(recipe(**{term: dict(weight=0.1)}), views=bent)
        told = f"{term} compares with cached .* views.strong bends the picture"
        with pytest.raises(SagecacheError, match=told):
            check_semi(asked)
    check_semi(replace(recipe(cmgc_depth=dict(weight=0), consistency=dict()), views=bent))


def test_options_reach_the_term_and_its_weight_stays_outside():
    built = build_terms(Project.open(), recipe(consistency=dict(weight=0.3, loss="js")), 1.25, None)
    weight, term = built["consistency"]
    assert weight == 0.3 and term.loss == "js" and term.sigma == 1.25


@pytest.mark.parametrize("gate", [{}, dict(teacher_b="none"), dict(teacher_b="diffusion")])
def test_consistency_draws_for_teacher_b_where_a_gate_has_one(gate):
    asked = Recipe(semi=SemiSettings(terms=dict(consistency=dict()), gate=gate))
    _, term = build_terms(Project.open(), asked, 1.25, None)["consistency"]
    assert term.teacher_b == (gate.get("teacher_b") == "diffusion")


@pytest.mark.parametrize(
    "terms, told",
    [
        (dict(consistancy=dict(weight=0)), "unknown term 'consistancy'.*consistency"),
        (dict(consistency=dict(wieght=0.5)), "unknown key 'semi.terms.consistency.wieght'.*mean 'weight'"),
        (dict(consistency=dict(soft_sigma=0)), "soft_sigma is 0.0, it must be positive"),
        (dict(consistency=dict(temperature="hot")), "'semi.terms.consistency.temperature' should be float"),
        (dict(consistency=dict(los="kl")), "unknown key 'semi.terms.consistency.los'. Did you mean 'loss'"),
        (dict(consistency=dict(sigma=2)), "unknown key 'semi.terms.consistency.sigma'"),
        (dict(bone=dict(shrt=0.5)), "unknown key 'semi.terms.bone.shrt'. Did you mean 'short'"),
        (dict(topology=dict(short="no")), "'semi.terms.topology.short' should be float"),
        (dict(angle=dict(short=0.5)), "unknown key 'semi.terms.angle.short'"),
    ],
)
def test_what_is_wrong_is_named(terms, told):
    with pytest.raises(SagecacheError, match=told):
        build_terms(Project.open(), recipe(**terms), 1.25, None)


def test_terms_that_too_few_bodies_inform_are_told_at_once_with_their_keys_and_counts(tmp_path):
    project = Project.open(write_dots_project(tmp_path / "dots"))
    bodies = np.random.default_rng(0).random((6, 17, 3)) + [0, 0, 1]
    bodies[:2, 9, 2] = 0  # a wrist that two persons hide
    compute_stats(bodies, np.tile([0, 0, 2.0, 2.0], (6, 1)), project.skeleton).save(project.stats_file)
    asked = recipe(consistency=dict(), bone=dict(weight=0.02), topology=dict(weight=0), angle=dict())
    with pytest.raises(SagecacheError) as caught, recipe_is(project.recipe_page("sage-pose")):
        build_terms(project, asked, 1.25, None)
    assert caught.value.file == project.folder / "sage_pose.py"
    assert "10 must show" in caught.value.message and "bone 6, angle 6 (of 6)" in caught.value.message
    assert caught.value.fix.endswith("semi.terms.bone.weight=0 semi.terms.angle.weight=0")


def test_structural_terms_compare_with_the_project_s_statistics(tmp_path):
    project = Project.open(write_dots_project(tmp_path / "dots"))
    run_stats(stats_job(project))
    structural = recipe(
        bone=dict(weight=0.05, short=0.5), topology=dict(weight=0.04), angle=dict(weight=0.02)
    )
    with pytest.raises(SagecacheError, match="too few labeled bodies"):  # five persons have no quantiles
        build_terms(project, structural, 1.25, None)
    bodies = np.random.default_rng(0).random((20, 17, 3)) + [0, 0, 1]
    stats = compute_stats(bodies, np.tile([0, 0, 2.0, 2.0], (20, 1)), project.skeleton)
    stats.save(project.stats_file)
    built = build_terms(project, structural, 1.25, None)
    assert {name: weight for name, (weight, _) in built.items()} == dict(bone=0.05, topology=0.04, angle=0.02)
    bone, topology, angle = (built[name][1] for name in ("bone", "topology", "angle"))
    assert bone.rows.tolist() == COCO17.limb_edges.tolist() and bone.short == 0.5 != topology.short
    hips = COCO17.limb_names.index("left_hip-right_hip")
    assert bone.high[hips].item() == pytest.approx(stats.limb().q99[hips])
    assert topology.high[0].item() == pytest.approx(stats.offsets.q99[0])  # the nose
    assert angle.low.shape == (8,) and torch.equal(angle.flip_indices, torch.tensor(COCO17.flip_indices))


def test_a_recipe_without_a_confidence_calibrates_as_its_filter_judges(tmp_path):
    project = Project.open(write_dots_project(tmp_path / "dots"))
    run_stats(stats_job(project))

    def threshold(gate: dict, **labels) -> float:
        semi = SemiSettings(gate=gate, pseudo_labels=labels)
        return build_labeler(project, Recipe(semi=semi), 1.25).gate.threshold_plausibility

    low, high = threshold({}, threshold=0.2), threshold({}, threshold=0.9)
    # five bodies are too few to judge limbs and angles by: KPS is confidence alone
    assert (low, high) == pytest.approx((0.2, 0.9), abs=1e-6)
    assert threshold(dict(threshold_confidence=0.9)) == high
    assert threshold(dict(threshold_confidence=0.0), threshold=0.2) == low  # its default, said aloud
    assert threshold(dict(threshold_plausibility=0.25)) == 0.25
    with pytest.raises(SagecacheError, match="'semi.gate.threshold_confidence' should be float, got 'abc'"):
        threshold(dict(threshold_confidence="abc"))


def test_labels_without_a_single_pose_are_refused(tmp_path):
    project = Project.open(write_dots_project(tmp_path / "dots"))
    run_stats(stats_job(project))
    page = project.path(project.split("labeled").annotations)
    content = json.loads(page.read_text())
    for one in content["annotations"]:
        del one["keypoints"]
    page.write_text(json.dumps(content))
    with pytest.raises(SagecacheError, match="no labeled body"):
        build_labeler(project, Recipe(), 1.25)


class Head(nn.Module):
    def __init__(self, in_channels) -> None:
        super().__init__()
        self.in_channels = in_channels


@pytest.mark.parametrize("head", [None, Head([32]), Head((32, 64))], ids=["unknown", "list", "several"])
def test_geometry_needs_a_head_of_one_map_of_features(head):
    """Other terms do not ask."""
    assert build_terms(Project.open(), recipe(consistency=dict()), 1.25, None, head).keys() == {"consistency"}
    with pytest.raises(SagecacheError, match="reads one map of features.*in_channels.*weight=0"):
        build_terms(Project.open(), recipe(geometry=dict()), 1.25, None, head)


def test_geometry_names_the_map_that_a_store_lacks(tmp_path, monkeypatch):
    project = Project.open(write_dots_project(tmp_path / "dots"))
    asked = replace(recipe(geometry=dict()), data=RecipeData(unlabeled="unlabeled"))
    monkeypatch.setattr(
        Project, "joined_targets", lambda self, split: SimpleNamespace(fields=["depth", "mask"])
    )
    with pytest.raises(
        SagecacheError, match="learns normal, depth, mask, and this store has no normal"
    ) as caught:
        build_terms(project, asked, 1.25, None, Head(32))
    assert "semi.terms.geometry.normal=0" in caught.value.fix
    built = build_terms(
        project, replace(asked, semi=recipe(geometry=dict(normal=0)).semi), 1.25, None, Head(32)
    )
    assert built["geometry"][1].layer.in_channels == 32
