from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sagecache.errors import SagecacheError
from sagecache.strict import build, call_with


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    mode: Literal["kl", "js"] = "kl"


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    size: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()
    folder: Path | None = None
    table: dict[str, Inner] = field(default_factory=dict)
    free: Any = None


def test_nested_values_arrive_with_their_types():
    built = build(
        Outer,
        dict(
            name="a",
            inner=dict(rate=2),
            size=[3, 4],
            names="one",
            folder="x/y",
            table=dict(t=dict(mode="js")),
            free=[1],
        ),
        "page.py",
    )
    assert built == Outer("a", Inner(2.0), (3, 4), ("one",), Path("x/y"), {"t": Inner(mode="js")}, [1])
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    "values, told",
    [
        (dict(name="a", iner={}), "unknown key 'iner'. Did you mean 'inner'"),
        (dict(name="a", inner=dict(rat=1)), "unknown key 'inner.rat'. Did you mean 'rate'"),
        (dict(name="a", table=dict(t=dict(mod=1))), "unknown key 'table.t.mod'. Did you mean 'mode'"),
        (dict(name="a", inner=dict(mode="k1")), "'inner.mode' can't be 'k1'. Did you mean 'kl'"),
        (dict(), "missing key 'name'"),
        (dict(name=3), "'name' should be str, got 3"),
        (dict(name="a", size=[1, 2, 3]), "'size' should be 2 values"),
        (dict(name="a", size=[1, True]), "'size[1]' should be int, got True"),
        (dict(name="a", inner="dict(rate=1)"), "'inner'"),
        ("name", "expected a dict"),
    ],
)
def test_bad_values_are_named_with_the_file(values, told):
    with pytest.raises(SagecacheError) as caught:
        build(Outer, values, "page.py")
    assert "page.py" in str(caught.value)
    expected = told if told != "'inner'" else "expected a dict"
    assert expected in str(caught.value)


def test_call_with_checks_options_against_the_signature():
    def term(edges, weight: float, window: int = 5):
        return edges, weight, window

    assert call_with(term, dict(weight=2.0), "p", "terms.t", edges="E") == ("E", 2.0, 5)
    with pytest.raises(SagecacheError, match="unknown key 'terms.t.windw'. Did you mean 'window'"):
        call_with(term, dict(weight=1, windw=3), "p", "terms.t", edges="E")
    with pytest.raises(SagecacheError, match="unknown key 'terms.t.edges'"):
        call_with(term, dict(weight=1, edges=3), "p", "terms.t", edges="E")
    with pytest.raises(SagecacheError, match="unknown key 'terms.t.colr'. Did you mean 'color'.* window"):
        call_with(term, dict(weight=1, colr=3), "p", "terms.t", also=("color",), edges="E")
    with pytest.raises(SagecacheError, match="unknown key 'terms.t.color'"):  # known, and yet no option
        call_with(term, dict(weight=1, color=3), "p", "terms.t", also=("color",), edges="E")
    with pytest.raises(SagecacheError, match="missing key 'terms.t.weight'"):
        call_with(term, {}, "p", "terms.t", edges="E")


class Term:
    def __init__(
        self,
        edges: list,
        temperature: float = 1.0,
        size: tuple[int, int] | None = None,
        mode: Literal["kl", "js"] = "kl",
        spread: float | str = 1.0,
    ) -> None:
        self.options = (temperature, size, mode, spread)


def test_options_arrive_as_the_annotations_say():
    term = call_with(Term, dict(temperature=2, size=[3, 4], spread="wide"), "p", "terms.t", edges=[])
    assert term.options == (2.0, (3, 4), "kl", "wide") and isinstance(term.options[0], float)
    for options, told in (
        (dict(temperature="hot"), "p: 'terms.t.temperature' should be float, got 'hot'"),
        (dict(size=5), "'terms.t.size' should be a list, got 5"),
        (dict(mode="k1"), "'terms.t.mode' can't be 'k1'"),
    ):
        with pytest.raises(SagecacheError, match=told):
            call_with(Term, options, "p", "terms.t", edges=[])


@dataclass(frozen=True)
class Share:
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.value > 1:
            raise SagecacheError(f"value {self.value} is above 1", fix="Lower it.")


@dataclass(frozen=True)
class Page:
    share: Share = Share()


def test_a_class_s_own_check_tells_where_the_value_stands():
    with pytest.raises(SagecacheError, match=r"^page.py, share: value 2.0 is above 1. Lower it.$"):
        build(Page, dict(share=dict(value=2)), "page.py")
