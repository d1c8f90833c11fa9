import pytest

from sagecache.synth.body import GROUPS
from sagecache.synth.looks import LOOKS
from sagecache.synth.pose import KINDS
from sagecache.synth.textures import PALETTES


@pytest.mark.parametrize("name", LOOKS)
def test_looks_are_well_formed(name):
    look = LOOKS[name]
    assert look.name == name and look.palette in PALETTES and look.floor in ("sheet", "room", "any")
    for shares in (look.group.values(), look.kinds.values(), look.people, look.toys):
        assert sum(shares) == pytest.approx(1) and min(shares) >= 0
    assert set(look.group) <= set(GROUPS) and set(look.kinds) <= set(KINDS)
    for low, high in (look.elevation, look.lying_elevation, look.fill, look.focal, look.ambient):
        assert low <= high
    assert look.elevation[0] >= 0 and look.elevation[1] < 90  # at 90 degrees right is undefined


def test_domains_differ_as_the_experiment_needs():
    target, source, generic = LOOKS["target"], LOOKS["source"], LOOKS["generic"]
    assert set(target.group) == {"infant"} and set(source.group) == {"older"}  # disjoint bodies
    assert target.kinds["prone"] > 0.1  # prone bodies are kept in
    assert set(generic.kinds) == set(KINDS) and set(generic.group) == set(GROUPS)
    clean = generic.photometry
    assert clean.noise == clean.blur == (0, 0) and clean.contrast == clean.exposure == (1, 1)
    assert clean.tint == clean.night == 0  # drawn while training instead
