from __future__ import annotations

import pytest

from sagecache.errors import SagecacheError
from sagecache.project.overrides import parse_overrides


def test_literals_and_strings():
    words = [
        "a.b=1",
        "c=2.5e-3",
        "d=True",
        "e=None",
        "f=[1,2]",
        "g=(3,4)",
        "h=kl",
        "i=path/with=sign",
        "j='q'",
    ]
    assert parse_overrides(words) == {
        "a.b": 1,
        "c": 2.5e-3,
        "d": True,
        "e": None,
        "f": [1, 2],
        "g": (3, 4),
        "h": "kl",
        "i": "path/with=sign",
        "j": "q",
    }


@pytest.mark.parametrize("word", ["novalue", "=1", "m=dict(a=1)", "m={'a':1}", "m={1,2}"])
def test_what_mmengine_would_silently_break_is_refused(word):
    with pytest.raises(SagecacheError):
        parse_overrides([word])


def test_a_dict_is_refused_with_what_to_type_instead():
    with pytest.raises(SagecacheError, match="semi.swaps.name=value; a section .* off by semi.swaps=None"):
        parse_overrides(["semi.swaps={}"])
