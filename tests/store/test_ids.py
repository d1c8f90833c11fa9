"""Rows by id, against a dict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.store.ids import IdIndex, first_repeated, is_rising

pairs = st.tuples(st.integers(-3, 5), st.integers(0, 3))


@given(st.lists(pairs, min_size=1, unique=True), st.lists(pairs, min_size=1))
@settings(max_examples=200, deadline=None)
def test_find_says_what_a_dict_says(ids, wanted):
    rows = {pair: row for row, pair in enumerate(ids)}
    found = IdIndex(np.array(ids, np.int64)).find(np.array(wanted, np.int64))
    assert found.tolist() == [rows.get(pair, -1) for pair in wanted]


@given(st.lists(pairs, min_size=1))
@settings(max_examples=200, deadline=None)
def test_a_repetition_is_found_in_any_order(ids):
    array = np.array(ids, np.int64)
    repeated = first_repeated(array)
    assert (repeated is None) == (len(set(ids)) == len(ids))
    assert repeated is None or ids.count(repeated) > 1
    assert is_rising(array) == (ids == sorted(set(ids)))


@pytest.mark.parametrize("image_id", [2**31, 2**62, -(2**62)])
def test_ids_have_64_bits(image_id):
    ids = np.array([[image_id, 0], [5, 1]], np.int64)
    assert IdIndex(ids).find(np.array([[5, 1], [image_id, 0], [image_id, 1]])).tolist() == [1, 0, -1]
