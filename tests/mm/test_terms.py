from __future__ import annotations

import pytest

from sagecache.errors import SagecacheError
from sagecache.mm.terms import TERMS, _tubes, build_terms
from sagecache.project import Project, Recipe
from sagecache.project.recipe import SemiSettings
from sagecache.skeleton.definition import COCO17


def recipe(**terms) -> Recipe:
    return Recipe(semi=SemiSettings(terms=terms))


def test_a_weight_of_zero_builds_nothing_and_asks_for_nothing():
    silent = recipe(**{name: dict(weight=0) for name in TERMS})
    assert build_terms(Project.open(), silent, 1.25, None) == {}
    assert not silent.uses_geometry and not silent.uses_prior
    kinds = {need.kind for need in Project.open().requirements(silent)}
    assert kinds == {"split"}


def test_options_reach_the_term_and_its_weight_stays_outside():
    built = build_terms(Project.open(), recipe(consistency=dict(weight=0.3, loss="js")), 1.25, None)
    weight, term = built["consistency"]
    assert weight == 0.3 and term.loss == "js" and term.sigma == 1.25


@pytest.mark.parametrize(
    "terms, told",
    [
        (dict(consistancy=dict(weight=0)), "unknown term 'consistancy'.*consistency"),
        (dict(consistency=dict(weight=-1)), "weight -1.0 of term 'consistency' is negative"),
        (dict(consistency=dict(los="kl")), "unknown key 'semi.terms.consistency.los'. Did you mean 'loss'"),
        (dict(consistency=dict(sigma=2)), "unknown key 'semi.terms.consistency.sigma'"),
    ],
)
def test_what_is_wrong_is_named(terms, told):
    with pytest.raises(SagecacheError, match=told):
        build_terms(Project.open(), recipe(**terms), 1.25, None)


def test_arms_and_legs_are_tubes_and_the_trunk_is_not():
    tubes = {name for name, tube in zip(COCO17.limb_names, _tubes(COCO17), strict=True) if tube}
    assert len(tubes) == 8
    assert all("knee" in name or "elbow" in name for name in tubes)
