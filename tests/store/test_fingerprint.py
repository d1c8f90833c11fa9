import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.store.fingerprint import canonical, canonical_json, describe, diff, digest, file_sha256

names = st.text("ab.é", min_size=1, max_size=4)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, plain, max_size=4))
def test_a_fingerprint_that_went_through_json_is_the_same(value):
    again = json.loads(json.dumps(value))
    assert digest(again) == digest(value)
    assert diff(again, value) == []


def test_the_hash_is_sha256_of_sorted_compact_json():
    value = {"b": (1, 2.0), "a": {"é": 0.1, "flag": True}}
    text = '{"a":{"flag":true,"\\u00e9":0.1},"b":[1,2]}'
    assert canonical_json(value) == text
    assert digest(value) == hashlib.sha256(text.encode()).hexdigest()


def test_order_and_spelling_of_numbers_do_not_matter_but_values_do():
    assert digest({"a": 1.0, "b": np.float32(0.5)}) == digest({"b": 0.5, "a": np.int64(1)})
    assert digest({"a": True}) != digest({"a": 1})
    assert digest({"a": "1"}) != digest({"a": 1})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object(), b"bytes", {1: 2}])
def test_what_has_no_canonical_form_is_refused_with_its_key(bad):
    with pytest.raises(TypeError, match=r"teacher\.size\[1\]"):
        canonical({"teacher": {"size": [3, bad]}})


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, plain, max_size=3), st.dictionaries(names, plain, max_size=3))
def test_two_fingerprints_differ_in_some_key_exactly_where_their_hashes_differ(old, new):
    assert (diff(old, new) == []) == (digest(old) == digest(new))


def test_diff_names_dotted_keys_with_both_values():
    old = {"teacher": {"name": "a", "size": [1, 2]}, "padding": 1.25, "gone": 1}
    new = {"teacher": {"name": "b", "size": [1, 2]}, "padding": 1.25, "came": {"x": None}}
    assert diff(old, new) == [
        ("came.x", "absent", None),
        ("gone", 1, "absent"),
        ("teacher.name", "a", "b"),
    ]
    assert describe(diff(old, new), limit=2) == "came.x: absent -> null; gone: 1 -> absent; and 1 more"


def test_a_boolean_is_not_a_number():
    assert diff({"a": True}, {"a": 1}) == [("a", True, 1)]


def test_long_hashes_are_cut_in_messages():
    assert describe([("w", "a" * 64, "b" * 64)]) == "w: aaaaaaaaaaaa… -> bbbbbbbbbbbb…"


def test_file_hash(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
