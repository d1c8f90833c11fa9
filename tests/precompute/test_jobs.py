import pytest

from sagecache.errors import SagecacheError
from sagecache.precompute.jobs import RunOptions


def test_the_numbers_fall_to_the_ranks_each_to_one():
    shares = [RunOptions(rank=rank, world_size=3).own(range(10)) for rank in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=2, world_size=2), "rank 2 does not exist among 2"),
        (dict(rank=0, world_size=2, force=True), "--force with several ranks"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(SagecacheError, match=message):
        RunOptions(**options)
