"""Draws of a step: of (seed, step, rank) alone, each instance once a round, no two of one entropy."""

import itertools
from collections import Counter

import pytest

from sagecache.data.sampling import MixedBatchSampler
from sagecache.errors import SagecacheError

STREAMS = ("labeled", "unlabeled")


def test_a_run_continues_at_any_step():
    whole = list(itertools.islice(MixedBatchSampler(5, 11, 3, 4, seed=2), 20))
    resumed = list(itertools.islice(MixedBatchSampler(5, 11, 3, 4, seed=2, start_step=8), 12))
    assert whole[8:] == resumed


def test_the_ratio_holds_and_every_round_shows_everyone_once():
    steps = list(itertools.islice(MixedBatchSampler(5, 12, 2, 6), 20))
    assert all(len(step.labeled) == 2 and len(step.unlabeled) == 6 for step in steps)
    for stream, count in zip(STREAMS, (5, 12), strict=True):
        indices = [draw.index for step in steps for draw in getattr(step, stream)]
        rounds = [indices[k : k + count] for k in range(0, len(indices), count)]
        assert all(sorted(round_) == list(range(count)) for round_ in rounds)
        assert len({tuple(round_) for round_ in rounds}) > 1, "the order changes from round to round"


def test_no_two_draws_share_their_entropy():
    steps = itertools.islice(MixedBatchSampler(3, 7, 5, 9, seed=4), 30)
    entropy = Counter(draw.entropy for step in steps for draw in step.labeled + step.unlabeled)
    assert max(entropy.values()) == 1 and len(entropy) == 30 * 14


@pytest.mark.parametrize(
    "counts, batches, world_size, expected",
    [((6, 12), (2, 6), 1, 3), ((5, 12), (2, 6), 1, 3), ((5, 13), (2, 6), 1, 3), ((5, 30), (2, 6), 1, 5),
     ((6, 40), (2, 4), 2, 5), ((9, 500), (4, 0), 1, 3), ((0, 7), (0, 7), 1, 1)],
)  # fmt: skip
def test_its_length_is_the_first_step_by_which_everyone_was_seen(counts, batches, world_size, expected):
    ranks = [
        MixedBatchSampler(*counts, *batches, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert [len(sampler) for sampler in ranks] == [expected] * world_size
    for steps in (expected - 1, expected):
        drawn = [sampler.step(step) for sampler in ranks for step in range(steps)]
        seen = [{draw.index for step in drawn for draw in getattr(step, name)} for name in STREAMS]
        whole = all(len(s) == n for s, n, batch in zip(seen, counts, batches, strict=True) if batch)
        assert whole is (steps == expected)


def test_ranks_share_out_the_draws_of_one_large_batch():
    one = MixedBatchSampler(9, 31, 6, 12, seed=7)
    ranks = [MixedBatchSampler(9, 31, 2, 4, seed=7, rank=rank, world_size=3) for rank in range(3)]
    for step in range(10):
        together = [sampler.step(step) for sampler in ranks]
        assert [draw for part in together for draw in part.labeled] == one.step(step).labeled
        assert [draw for part in together for draw in part.unlabeled] == one.step(step).unlabeled


def test_other_seeds_draw_otherwise():
    one, two = (
        MixedBatchSampler(50, 0, 50, 0, seed=0).step(0),
        MixedBatchSampler(50, 0, 50, 0, seed=1).step(0),
    )
    assert [draw.index for draw in one.labeled] != [draw.index for draw in two.labeled]


def test_an_empty_stream_that_is_drawn_from_is_refused():
    with pytest.raises(SagecacheError, match="no unlabeled instances"):
        MixedBatchSampler(5, 0, 2, 4)
    with pytest.raises(ValueError, match="rank 2"):
        MixedBatchSampler(5, 5, 2, 4, rank=2, world_size=2)
