"""Every engine gives what the local one gives; what goes wrong in a worker is told as it would be here."""

import pytest
from squares import Squares

from sagecache.errors import SagecacheError
from sagecache.precompute.engines import get_engine


def test_the_local_engine_computes_when_asked_and_not_ahead():
    work = Squares()
    results = get_engine("local")(work, range(3), lambda count: None)
    assert work.done == []
    next(results)
    assert work.done == [0]


def test_an_unknown_engine_lists_the_known_ones():
    with pytest.raises(SagecacheError, match="did you mean 'local'"):
        get_engine("locl")
