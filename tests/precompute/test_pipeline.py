"""Stages that overlap give what a plain map gives, and never run far ahead."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.precompute.pipeline import ordered_map


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 4), st.integers(0, 5), st.integers(1, 3))
def test_a_chain_is_a_map(items, workers, ahead, others):
    doubled = ordered_map(lambda value: 2 * value, items, workers, ahead)
    chained = ordered_map(str, map(lambda value: value + 1, doubled), others, ahead)
    assert list(chained) == [str(2 * value + 1) for value in items]


def test_no_more_is_taken_than_the_bound_allows():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    results = ordered_map(lambda value: value, items(), workers=2, ahead=3)
    for number in range(5):
        assert next(results) == number
        assert len(taken) == number + 4
    results.close()


def test_results_are_made_while_the_caller_is_busy():
    meeting = threading.Barrier(2, timeout=20)
    results = ordered_map(lambda number: meeting.wait(), range(2), workers=2, ahead=2)
    assert {next(results), next(results)} == {0, 1}  # two threads met, or the barrier broke
    assert not meeting.broken


def test_an_exception_comes_in_its_turn_and_drops_what_is_ahead():
    done = []

    def work(number):
        if number == 2:
            raise KeyError(number)
        time.sleep(0.01)
        done.append(number)
        return number

    results = ordered_map(work, range(1000), workers=1, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError):
        next(results)
    assert len(done) < 10


def test_closing_ends_the_threads():
    before = threading.active_count()
    results = ordered_map(lambda number: number, range(100), workers=3, ahead=3)
    next(results)
    results.close()
    assert threading.active_count() == before
