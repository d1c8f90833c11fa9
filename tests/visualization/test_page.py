"""The page is sound HTML of one file, says what it was given and nothing else, and a browser agrees."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import MISSING, find_browser, open_page
from page_check import read_page

from sagecache.skeleton import COCO17
from sagecache.visualization.charts import Chart, Line
from sagecache.visualization.overlays import View, all_styles, fate_style, overlay
from sagecache.visualization.page import (
    Bar,
    Card,
    Column,
    Fact,
    FateRow,
    Page,
    Section,
    Table,
    percent,
    render,
)
from sagecache.visualization.sample import figure

EVIL = "<script>alert('x')</script>\"&'</style>"
NAMES = [name.replace("_", " ") for name in COCO17.names]
needs_browser = pytest.mark.skipif(find_browser() is None, reason=MISSING)


def a_card(text: str = "image 1") -> Card:
    infant = figure()
    styles = [style.name for style in all_styles()]
    fates = [styles[k % len(styles)] for k in range(17)]
    seen = View(
        "weak view", infant.image, infant.keypoints[:, :2], np.ones(17, bool), infant.keypoints[:, :2]
    )
    bars = [
        Bar(name, fate_style(fate), 0.05 * k, 0.01 * k)
        for k, (name, fate) in enumerate(zip(NAMES, fates, strict=True))
    ]
    picture = overlay(seen, COCO17, fates, [text] * 17)
    return Card(text, [Fact("plausibility", "0.8", text)], [picture] * 2, bars, [(fate_style("kept"), 2)])


def a_page(text: str = "stage1-full") -> Page:
    lines = [Line(text, [10, 20, 30], [0.1, math.nan, 0.4]), Line("b", [20], [0.2], text)]
    columns = [
        Column("kept", text, [0.01 * ((k * 7) % 17) for k in range(17)]),
        Column("threshold", "", [None if k == 3 else 17.0 - k for k in range(17)], share=False),
    ]
    return Page(
        text,
        text,
        text,
        figures=[Fact("PCK", "51.2", text)],
        notes=[text],
        details=[Fact("seed", text)],
        terms=[(text, "0.2", text)],
        charts=[Chart("Losses", lines, text, marks=[(15, text)]), Chart("Empty", [])],
        more_charts=[Chart(text, lines, log=True)],
        joints=Table("joint", NAMES[:-1] + [text], columns),
        joints_text=text,
        gallery_text=text,
        fates=[FateRow(fate_style("kept"), 30, 0.75, 0.9), FateRow(fate_style(text), 10, 0.25)],
        sections=[Section("Worst", text, [a_card(text)])],
        footer=text,
    )


def test_the_page_is_sound_and_holds_what_it_was_given():
    page = read_page(render(a_page()))
    assert page.text.count("stage1-full") > 15
    assert len(page.all("figure", **{"class": "chart"})) == 2, "a chart without data is left out"
    assert len(page.all("article")) == 1 and len(page.all("image")) == 2
    assert [own["lang"] for own in page.all("html")] == ["en"] and len(page.all("h1")) == 1


def test_an_almost_empty_page_is_sound_too():
    page = read_page(render(Page("name", "", "command")))
    assert not page.all("article") and not page.all("figure") and not page.all("table")
    assert not re.search(r"<h2[^>]*>(Curves|Joint by joint|Pseudo-labels)", render(Page("name", "", "c")))


def test_text_from_outside_is_text_wherever_it_stands():
    html = render(a_page(EVIL))
    page, plain = read_page(html), read_page(render(a_page()))
    assert EVIL not in html and [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert page.scripts == plain.scripts
    assert page.text.count(EVIL) == plain.text.count("stage1-full")


def test_headings_go_down_one_level_at_a_time():
    levels = [int(tag[1]) for tag, _ in read_page(render(a_page())).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_tables_name_their_columns_and_rows():
    page = read_page(render(a_page()))
    assert all(own.get("scope") in ("col", "row") for own in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_a_chart_can_be_read_off_without_a_script_and_with_one():
    page = read_page(render(a_page()))
    first, second = page.all("output")[:2]
    assert json.loads(first["data-steps"]) == [10, 20, 30] and json.loads(second["data-values"]) == [0.2]
    assert json.loads(first["data-values"]) == [0.1, None, 0.4]
    assert page.all("svg", role="img")[0]["aria-label"].startswith("Losses, steps 10 to 30")


def test_nothing_is_known_of_a_joint_without_a_value():
    cells = read_page(render(a_page())).all("td", **{"data-value": ""})
    assert len(cells) == 2  # a threshold, and a reason without truth
    bare = replace(a_card(), bars=[Bar("nose", fate_style("kept"), 0.5)])
    assert "error %" not in render(replace(a_page(), sections=[Section("Best", "", [bare])]))


@pytest.mark.parametrize("share, text", [(0.254, "25 %"), (0, "0 %"), (None, "–"), (math.nan, "–")])
def test_percent(share, text):
    assert percent(share) == text


# --- in a browser ---------------------------------------------------------------------------------


@needs_browser
def test_the_browser_of_these_tests_sees_errors(tmp_path):
    """Otherwise no console message would mean nothing."""
    page = tmp_path / "bad.html"
    page.write_text(render(a_page()).replace("</body>", '<img src="http://127.0.0.1:9/a.png"></body>'))
    assert any("Content Security Policy" in line for line in open_page(page, tmp_path).console)
    page.write_text("<!doctype html><script>nothing.at.all()</script>")
    assert any("ReferenceError" in line for line in open_page(page, tmp_path).console)


@needs_browser
@pytest.mark.parametrize("text", ["stage1-full", EVIL])
def test_it_opens_without_a_word_on_the_console(tmp_path, text):
    page = tmp_path / "page.html"
    page.write_text(render(a_page(text)))
    opened = open_page(page, tmp_path)
    assert opened.console == []
    assert opened.dom.count("<article") == 1 and "<button" in opened.dom, "its script ran"


ACT = """
<script>
const click = (column) => document.querySelectorAll("table.sortable")[0].tHead.rows[0].cells[column]
  .querySelector("button").click();
const names = () => [...document.querySelectorAll("table.sortable")[0].tBodies[0].rows]
  .map((row) => row.cells[0].textContent.trim());
const result = {};
click(1); result.falling = names();
click(1); result.rising = names();
click(2); result.gaps = names();
result.sorted = [...document.querySelectorAll("table.sortable th[aria-sort]")].map((h) => h.ariaSort);
click(0); result.first = names();
const svg = document.querySelector("figure.chart > svg"), box = svg.getBoundingClientRect();
const read = () => [...svg.parentNode.querySelectorAll("output, .at")].map((one) => one.textContent);
const move = (x) => svg.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: box.top + 5}));
result.rest = read();
move(box.left + 50 / 360 * box.width); result.left = read();
move(box.right); result.right = read();
svg.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"})); result.key = read();
svg.dispatchEvent(new PointerEvent("pointerleave")); result.gone = read();
result.widths = [innerWidth, document.documentElement.scrollWidth];
document.documentElement.dataset.result = JSON.stringify(result);
</script>
"""


def act(tmp_path, *flags: str) -> dict:
    page = tmp_path / "page.html"
    page.write_text(render(a_page()).replace("</body>", ACT + "</body>"))
    opened = open_page(page, tmp_path, *flags)
    assert opened.console == []
    (own,) = read_page(opened.dom).all("html")
    return json.loads(own["data-result"])


@needs_browser
def test_a_click_sorts_and_the_pointer_reads_off(tmp_path):
    done = act(tmp_path)
    kept, names = [(k * 7) % 17 for k in range(17)], [*NAMES[:-1], "stage1-full"]
    by_kept = [names[k] for k in sorted(range(17), key=lambda k: kept[k])]
    assert done["rising"] == by_kept and done["falling"] == by_kept[::-1]
    assert done["gaps"] == [*names[:3], *names[4:], names[3]], "falling numbers, what is empty last"
    assert done["sorted"][:3] == ["none", "none", "descending"] and done["first"] == names
    assert done["rest"] == done["gone"] == ["0.4", "0.2", "at step 30"]
    assert done["left"] == ["0.1", "0.2", "at step 10"] and done["right"] == ["0.4", "0.2", "at step 30"]
    assert done["key"] == ["–", "0.2", "at step 20"]


@needs_browser
def test_on_a_phone_nothing_is_wider_than_the_screen(tmp_path):
    assert act(tmp_path, "--window-size=390,800")["widths"] == [390, 390]
