import pytest

from sagecache.errors import SagecacheError
from sagecache.precompute.engines import ENGINES, get_engine


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_an_engine_computes_every_number_once(name):
    found = list(get_engine(name)(lambda number: number**2, [5, 2, 9]))
    assert sorted(found) == [(2, 4), (5, 25), (9, 81)]


def test_the_local_engine_computes_when_asked_and_not_ahead():
    computed = []
    results = get_engine("local")(computed.append, range(3))
    assert computed == []
    next(results)
    assert computed == [0]


def test_an_unknown_engine_lists_the_known_ones():
    with pytest.raises(SagecacheError, match="did you mean 'local'"):
        get_engine("locl")
