"""The one error that users see: its line, its way out of another process, the nearest known name."""

import difflib
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagecache.errors import SagecacheError, about, nearest


class OwnError(SagecacheError):
    """A subclass must come back as itself."""


@pytest.mark.parametrize(
    "place, fix, text",
    [
        ({}, None, "the box has no area"),
        (dict(file=Path("a/b.json")), None, "a/b.json: the box has no area"),
        (dict(record=0), None, "0: the box has no area"),
        (
            dict(file="a.json", record="images[3]"),
            "Mend it",
            "a.json, images[3]: the box has no area. Mend it",
        ),
    ],
)
def test_it_is_one_line_where_what_how(place, fix, text):
    assert str(SagecacheError("the box has no area", fix=fix, **place)) == text


def test_a_full_stop_is_not_doubled():
    assert str(SagecacheError("gone.", fix="Make it.")) == "gone. Make it."


def test_it_pickles_with_all_that_it_says():
    error = OwnError("lost", file=Path("x.json"), record=7, fix="Look.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is OwnError and str(again) == str(error)
    assert vars(again) == vars(error) == dict(message="lost", file=Path("x.json"), record=7, fix="Look.")


def fail():
    raise SagecacheError("lost", file="x.json", fix="Look.")


def test_it_survives_a_worker_process():
    with (
        ProcessPoolExecutor(1) as pool,
        pytest.raises(SagecacheError, match=r"^x.json: lost. Look.$") as caught,
    ):
        pool.submit(fail).result()
    assert caught.value.fix == "Look."


@pytest.mark.parametrize(("own", "told"), [(None, "w.pth"), ("inner.json", "inner.json")])
def test_an_error_without_a_file_is_about_the_one_that_is_read(own, told):
    with pytest.raises(SagecacheError, match=rf"^{told}, 3: lost. Look.$") as caught, about("w.pth"):
        raise SagecacheError("lost", file=own, record=3, fix="Look.")
    assert (caught.value.record, caught.value.fix) == (3, "Look.")


def test_the_nearest_name_comes_first_and_all_are_listed():
    assert nearest("stage1-fulll", ["stage1-full", "stage0"]) == (
        "did you mean 'stage1-full'? Known: stage0, stage1-full"
    )
    assert nearest("zzzz", {"b": 1, "a": 2}) == "Known: a, b"
    assert nearest("x", []) == "Known: none"


@given(st.text("abc", min_size=1, max_size=6), st.sets(st.text("abc", min_size=1, max_size=6), max_size=5))
def test_what_is_suggested_is_known_and_no_other_name_is_closer(name, known):
    text = nearest(name, known)
    if "did you mean" in text:
        guess = text.split("'")[1]
        ratio = {other: difflib.SequenceMatcher(None, other, name).ratio() for other in known}
        assert guess in known and ratio[guess] == max(ratio.values())
    assert text.endswith("Known: " + (", ".join(sorted(known)) or "none"))
