"""What a recipe asks for: terms of weight zero vanish, with all that they would need."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagecache.data.views import ViewConfig
from sagecache.errors import SagecacheError
from sagecache.project.recipe import (
    SECTIONS,
    BatchSettings,
    GuardSettings,
    Recipe,
    RecipeData,
    SemiSettings,
)
from sagecache.strict import build

NAMES = ("consistency", "diffusion", "cmgc_depth", "cmgc_normal", "geometry")
WEIGHTS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0, 0.0, 0.3, 1]))


def page(**values) -> Recipe:
    return build(Recipe, values, "page.py")


def with_terms(gate: dict | None = None, **weights) -> Recipe:
    terms = {name: dict(weight=weight) for name, weight in weights.items()}
    return Recipe(semi=SemiSettings(terms=terms, gate=gate or {}))


def weighted(weight: object) -> dict:
    return dict(semi=dict(terms=dict(consistency=dict(weight=weight))))


def two_views(mode: str, **appearance) -> dict:
    teacher = dict(mode=mode, appearance=appearance) if appearance else dict(mode=mode)
    return dict(views=dict(appearance=dict(colour=0.2)), semi=dict(teacher=teacher))


@given(WEIGHTS)
def test_zero_weights_vanish_and_take_their_needs_along(weights):
    recipe = with_terms(**weights)
    on = {name for name, weight in weights.items() if weight}
    assert set(recipe.terms) == on
    assert recipe.uses_geometry is bool(on & {"cmgc_depth", "cmgc_normal", "geometry"})
    assert recipe.uses_prior is ("diffusion" in on)


def test_only_cmgc_reads_targets_of_labeled_bodies():
    data = dict(labeled=["a", "b"], unlabeled="c")

    def splits(**weights) -> list[str]:
        terms = {name: dict(weight=weight) for name, weight in weights.items()}
        return page(data=data, batch=dict(unlabeled=2), semi=dict(terms=terms)).geometry_splits

    assert splits(consistency=1.0) == splits(geometry=0) == []
    assert splits(geometry=1.0) == ["c"]
    assert splits(geometry=1.0, cmgc_depth=0.2) == splits(cmgc_normal=0.2) == ["a", "b", "c"]
    no_images = page(data=data, batch=dict(unlabeled=0), semi=dict(terms=dict(geometry=dict())))
    assert no_images.geometry_splits == []


def test_a_term_without_a_weight_has_weight_one():
    recipe = page(semi=dict(terms=dict(cmgc_depth=dict(), diffusion=dict(noise=0.1))))
    assert set(recipe.terms) == {"cmgc_depth", "diffusion"} and recipe.uses_geometry and recipe.uses_prior


@pytest.mark.parametrize("teacher_b, needed", [("none", False), ("diffusion", True)])
def test_a_gate_that_corrects_poses_needs_the_prior_too(teacher_b, needed):
    assert with_terms(dict(teacher_b=teacher_b), consistency=1.0).uses_prior is needed


@pytest.mark.parametrize(
    "split, batch, weight, used",
    [(None, 8, 1, False), ("unlabeled", 0, 1, False), ("unlabeled", 8, 0, False), ("unlabeled", 8, 1, True)],
)
def test_unlabeled_images_are_read_where_split_batch_and_a_term_ask_for_them(split, batch, weight, used):
    semi = SemiSettings(terms=dict(consistency=dict(weight=weight)))
    recipe = Recipe(data=RecipeData(unlabeled=split), batch=BatchSettings(unlabeled=batch), semi=semi)
    assert recipe.uses_unlabeled is used


@pytest.mark.parametrize("appearance", [dict(decay=0.99), dict(alternate=True), dict(own_norm=True)])
def test_two_teachers_need_one_thing_in_which_they_differ(appearance):
    assert page(**two_views("dual", **appearance)).semi.teacher.mode == "dual"


def test_labels_can_be_left_out_where_terms_use_unlabeled_images():
    terms = dict(consistency=dict(weight=1.0))
    recipe = page(data=dict(unlabeled="u"), batch=dict(labeled=0, unlabeled=4), semi=dict(terms=terms))
    assert recipe.uses_unlabeled and "no labeled" in recipe.summary


def test_a_page_becomes_a_recipe_with_defaults_where_it_is_silent():
    recipe = page(
        data=dict(labeled="labeled"),
        views=dict(strong=dict(rotation=30, flip=0.5)),
        train_cfg=dict(max_iters=7),
        batch=dict(labeled=4),
    )
    assert recipe.data == RecipeData(labeled=("labeled",), unlabeled=None, val="val")
    assert recipe.views.strong == ViewConfig(rotation=30.0, flip=0.5) and recipe.views.weak == ViewConfig()
    assert (recipe.train_cfg.max_iters, recipe.train_cfg.log_interval) == (7, 10)
    assert (recipe.kind, recipe.batch.labeled, recipe.batch.unlabeled) == ("pose", 4, 0)
    assert page(data=dict(labeled=["a", "b"], val=None)).data == RecipeData(labeled=("a", "b"), val=None)


@pytest.mark.parametrize(
    "values, told",
    [
        (dict(kind="poses"), "'kind' can't be 'poses'. Did you mean 'pose'"),
        (dict(data=dict(on_missing="ignore")), "'data.on_missing' can't be 'ignore'.*error, skip"),
        (dict(train_cfg=dict(val_interval=5)), "missing key 'train_cfg.max_iters'"),
        (
            dict(views=dict(strong=dict(rotate=30))),
            "unknown key 'views.strong.rotate'. Did you mean 'rotation'",
        ),
        (dict(batch=dict(labeled=1.5)), "'batch.labeled' should be int, got 1.5"),
        (dict(ema_decay="high"), "'ema_decay' should be float, got 'high'"),
        (dict(semi=dict(terms=dict(consistency=0.5))), "'semi.terms.consistency' should be a dict, got 0.5"),
    ],
)
def test_what_a_page_says_wrong_is_named(values, told):
    with pytest.raises(SagecacheError, match=f"page.py: {told}"):
        page(**values)


def test_the_summary_says_what_a_step_learns_from():
    terms = dict(terms=dict(consistency=dict(), cmgc_depth=dict(weight=0.05), diffusion=dict(weight=0)))
    data, batch = dict(labeled="labeled", unlabeled="more"), dict(labeled=4, unlabeled=8)
    told = page(data=data, batch=batch, semi=terms).summary
    assert told == "4 labeled and 8 unlabeled a step; terms: consistency 1, cmgc_depth 0.05"
    assert "labels alone" in page(data=data, batch=dict(labeled=4), semi=terms).summary


@pytest.mark.parametrize(
    "values, told",
    [
        (dict(batch=dict(labeled=0)), "page.py, batch: a step needs images"),
        (dict(batch=dict(labeled=0, unlabeled=4)), "page.py: nothing to learn from: batch.labeled is 0"),
        (two_views("single"), "semi.teacher.mode 'single' and views.appearance do not go together"),
        (dict(semi=dict(teacher=dict(mode="dual"))), "mode 'dual' and views.appearance do not go"),
        (two_views("dual"), "both EMA teachers would average the same student"),
        (two_views("dual", decay=0.999), "both EMA teachers would average the same student"),
        (two_views("dual", decay=1.5), "decay is 1.5"),
        (
            two_views("single_two_view", alternate=True),
            "appearance has no effect with mode 'single_two_view'",
        ),
        (dict(semi=dict(fusion=dict(temperature=1.0))), "semi.fusion has no effect on one view"),
        (dict(batch=dict(workers=-1)), "workers is -1"),
        (dict(views=dict(num_strong=0)), "page.py, views: num_strong is 0, it must be at least 1"),
        (dict(views=dict(padding=0)), "padding is 0.0"),
        (dict(train_cfg=dict(max_iters=0)), "page.py, train_cfg: max_iters is 0"),
        (dict(train_cfg=dict(max_iters=5, log_interval=0)), "log_interval is 0"),
        (dict(seed=-1), r"page.py: seed is -1, it must be in \[0, 1000000000\]"),
        (dict(ema_decay=1.0), r"page.py: ema_decay is 1.0, it must be in \[0, 1\)"),
        (dict(ema_decay=-0.1), "ema_decay is -0.1"),
        (dict(ema_decay=float("nan")), "ema_decay is nan"),
        (dict(semi=dict(ramp_up=-1)), "page.py, semi: ramp_up is -1"),
        (weighted(-1), "page.py, semi: weight of term 'consistency' is -1, it must be a number >= 0"),
        (weighted(None), "weight of term 'consistency' is None.*Set 0 to switch the term off"),
        (weighted("abc"), "weight of term 'consistency' is 'abc'"),
        (weighted(True), "weight of term 'consistency' is True"),
        (weighted(float("nan")), "weight of term 'consistency' is nan"),
        (weighted(float("inf")), "weight of term 'consistency' is inf"),
    ],
)
def test_a_number_out_of_its_range_is_named_with_its_section(values, told):
    with pytest.raises(SagecacheError, match=told):
        page(**values)


@pytest.mark.parametrize(
    "values, told",
    [
        (dict(prior=dict(steps=5)), "'prior' has no effect on a recipe of kind 'pose'"),
        (dict(kind="prior", batch=dict(labeled=4)), "'batch' has no effect on a recipe of kind 'prior'"),
        (dict(kind="prior", default_hooks=dict(logger=None)), "'default_hooks' has no effect"),
        (
            dict(kind="prior", data=dict(unlabeled="more")),
            "a recipe of kind 'prior' reads data.labeled alone",
        ),
    ],
)
def test_a_key_of_the_other_kind_is_refused_for_it_would_do_nothing(values, told):
    with pytest.raises(SagecacheError, match=f"page.py: {told}"):
        page(**values)
    assert page(kind="prior", prior=dict(steps=5), seed=3, data=dict(labeled="a")).prior == dict(steps=5)


@pytest.mark.parametrize(
    "values, told",
    [
        (dict(collapse="ignore"), "'guards.collapse' can't be 'ignore'"),
        (dict(patience=0), "patience is 0, it must be at least 1"),
        (dict(peak=1.5), r"peak is 1.5, it must be in \[0, 1\]"),
        (dict(kept_low=0.5, kept_high=0.4), "kept_low is 0.5, it must be below kept_high"),
    ],
)
def test_guards_that_could_not_guard_are_refused(values, told):
    with pytest.raises(SagecacheError, match=told):
        page(guards=values)
    assert page().guards == GuardSettings()


@pytest.mark.parametrize(
    "data, probe",
    [(dict(), "val"), (dict(val="v2"), "v2"), (dict(val=None), None), (dict(probe="truth"), "truth"),
     (dict(probe=None), None)],
)  # fmt: skip
def test_pseudo_labels_are_judged_on_val_unless_said_otherwise(data, probe):
    semi = SemiSettings(terms=dict(consistency=dict()))
    of = RecipeData(unlabeled="unlabeled", **data)
    assert Recipe(data=of, batch=BatchSettings(unlabeled=4), semi=semi).probe == probe
    assert Recipe(data=of, semi=semi).probe is None  # no pseudo labels to judge


@pytest.mark.parametrize("section", SECTIONS)
def test_none_takes_back_what_a_page_says_of_a_section(section):
    said = dict(semi={section: None, "teacher": dict(mode="single_two_view")}, views=dict(appearance={}))
    off = build(Recipe, said, "page")
    del said["semi"][section]
    assert off == build(Recipe, said, "page") and getattr(off.semi, section) == {}
