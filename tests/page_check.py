"""What must hold of every page that we write: balanced tags, ids once, references that lead somewhere, and
nothing that a network would have to bring. By html.parser alone.
"""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr"}
RESOURCES = {"src", "href", "xlink:href", "srcset", "action", "poster", "data"}


class PageReader(HTMLParser):
    """elements: (tag, attributes). text: of the body, scripts and styles left out."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attributes) -> None:
        twice = [name for name, count in Counter(name for name, _ in attributes).items() if count > 1]
        self.faults += [f"<{tag}> has {name} twice" for name in twice]
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> at line {self.getpos()[0]} closes {self._open[-1:]}")
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts.append(data)
        elif inside != "style":
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        wanted = attributes.items()
        return [own for name, own in self.elements if name == tag and all(own.get(k) == v for k, v in wanted)]


def read_page(html: str) -> PageReader:
    """The page, after the rules above; AssertionError names what breaks them."""
    page = PageReader(html)
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert page.faults == []
    ids = Counter(own["id"] for _, own in page.elements if "id" in own)
    assert [name for name, count in ids.items() if count > 1] == []
    for tag, own in page.elements:
        for name in RESOURCES & own.keys():
            target = own[name]
            assert target.startswith(("data:", "#")), f"<{tag} {name}={target[:80]!r}>"
            assert not target.startswith("#") or target[1:] in ids, target
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in own or own[name] in ids
        assert not any(name.startswith("on") for name in own), own
        assert "url(" not in own.get("style", "")
    assert "@import" not in html and "url(" not in html
    for own in page.all("svg"):
        assert own.get("aria-hidden") == "true" or (own.get("role") == "img" and own.get("aria-label"))
    return page
