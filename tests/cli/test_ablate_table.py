"""Tables of an ablation against figures worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ranked_world import guess, make_truth

from sagecache.cli.ablate import show
from sagecache.cli.ablate_table import (
    Found,
    arm_table,
    check_page,
    footnotes,
    group_table,
    markdown,
    summary,
    write_table,
)
from sagecache.errors import SagecacheError
from sagecache.evaluation import evaluate
from sagecache.project.ablation import Ablation, Arm, Contrast, Group
from sagecache.skeleton import COCO17

NOISE = dict(bottom=(8.0, 9.0), one=(7.0, 6.0), both=(5.0, 5.5), top=(2.0, 2.5))


@pytest.fixture(scope="module")
def found() -> Found:
    """Four arms, two seeds, predictions with ever less noise."""
    rng = np.random.default_rng(0)
    truth = make_truth(rng, 12)
    reports = {
        arm: {seed: evaluate(guess(truth, rng, noise), truth, COCO17) for seed, noise in enumerate(noises)}
        for arm, noises in NOISE.items()
    }
    page = Ablation(
        arms={name: Arm(f"recipe-{name}", f"asks {name}", {"a.b": 1}) for name in (*NOISE, "absent")},
        control="one",
        floor="bottom",
        ceiling="top",
        groups={"more": Group("Is both better?", ("one", "both")), "none": Group("?", ("one", "absent"))},
        contrasts={"sum": Contrast("Do they add up?", {"both": 1, "one": -2, "bottom": 1})},
    )
    return Found(
        "small", "sagecache ablate small", page, "test", range(2), None, reports,
        {"absent, seed 0": "no labels", "absent, seed 1": "no labels"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def content(found) -> dict:
    return summary(found)


def pck(found: Found, arm: str) -> np.ndarray:
    """By seed, counted here."""
    return np.array([r.correct[0].sum() / r.labeled.sum() for r in found.reports[arm].values()])


def test_means_and_paired_differences_are_the_reports(found, content):
    both = content["arms"]["both"]
    assert both["PCK@0.05"] == pytest.approx(pck(found, "both").mean())
    assert both["AP"] == pytest.approx(np.mean([r.AP for r in found.reports["both"].values()]))
    each = pck(found, "both") - pck(found, "one")
    difference = both["difference"]["PCK@0.05"]
    assert list(difference["by_seed"].values()) == pytest.approx(each.tolist())
    assert difference["value"] == pytest.approx(each.mean()) and difference["low"] < difference["high"]
    ap = [
        both.AP - one.AP
        for both, one in zip(*(found.reports[n].values() for n in ("both", "one")), strict=True)
    ]
    assert both["difference"]["AP"]["value"] == pytest.approx(np.mean(ap))
    assert "difference" not in content["arms"]["one"]


def test_the_gap_and_a_contrast_are_their_formulas(found, content):
    figures = {arm: pck(found, arm).mean() for arm in NOISE}
    gap = (figures["both"] - figures["bottom"]) / (figures["top"] - figures["bottom"])
    assert content["arms"]["both"]["gap_closed"]["PCK@0.05"]["value"] == pytest.approx(gap)
    assert "gap_closed" not in content["arms"]["top"] and "gap_closed" not in content["arms"]["bottom"]
    estimate = content["contrasts"]["sum"]["estimate"]["PCK@0.05"]
    assert estimate["value"] == pytest.approx(figures["both"] - 2 * figures["one"] + figures["bottom"])


def test_rows_show_percent_seeds_and_intervals(found, content):
    columns, rows = arm_table(content)
    cells = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert list(cells) == list(NOISE)  # in the page's order
    each = 100 * (pck(found, "both") - pck(found, "one"))
    assert cells["both"]["PCK@0.05"] == f"{100 * pck(found, 'both').mean():.1f}"
    assert cells["both"]["PCK@0.05 by seed, less one"] == ", ".join(f"{one:+.1f}" for one in each)
    assert cells["both"]["mean, 95% interval"].startswith(f"{each.mean():+.1f} [")
    assert cells["one"]["mean, 95% interval"] == "" and cells["top"]["gap closed, AP"] == ""
    _, rows = group_table(content)
    assert [row[:3] for row in rows] == [
        ["more", "Is both better?", "both - one"],
        ["sum", "Do they add up?", "both - 2 one + bottom"],
    ]
    assert rows[0][3] == cells["both"]["mean, 95% interval"]


def test_what_was_measured_and_what_is_missing_is_said(found, content):
    text = "\n".join(footnotes(content))
    persons = next(iter(found.reports["one"].values())).persons
    assert f"Split `test`: 12 images, {persons} persons; mean of 2 seeds" in text
    assert "1 degree of freedom" in text and "2 seeds 50% of the time" in text
    assert "Missing: absent, seed 0 (no labels)." in text and "`sagecache ablate small`" in text
    assert "Fewer seeds" not in text
    more = "\n".join(footnotes({**content, "seeds": 3}))
    assert "Fewer seeds: " + ", ".join(f"{name} 2" for name in content["arms"]) in more
    one = footnotes({**content, "seeds": 1})
    assert any("test images alone" in line for line in one)


def test_trials_are_called_so_in_the_heading_and_below(content, capsys):
    show(content)
    assert "trial" not in capsys.readouterr().out.lower()
    show(content | dict(max_iters=4))
    text = capsys.readouterr().out
    assert "ablation small, trials of 4 iterations\n" in text
    assert "Trials: every arm was trained for 4 iterations alone." in text


def test_it_is_json_and_what_the_demo_reads(content):
    read = json.loads(json.dumps(content))
    assert read["seeds"] == 2 and read["command"] == "sagecache ablate small"
    assert {"AP", "AP50", "PCK@0.05", "PCK@0.1"} <= read["arms"]["top"].keys()


def test_nothing_at_all_is_a_table_of_its_own(found):
    empty = Found(**{**vars(found), "reports": {arm: {} for arm in found.reports}})
    text = "\n".join(markdown(summary(empty)))
    assert "Missing: absent, seed 0" in text and "| one |" not in text


def test_no_change_has_no_sign():
    content = dict(
        control="a", floor=None, groups={}, contrasts={}, arms=dict(b=dict(asks="", AP=None, AP50=0.5))
    )
    zero = dict(value=-1e-9, low=-0.0004, high=0.0, by_seed={"0": -1e-9})
    content["arms"]["b"] |= {"PCK@0.05": 0.5, "PCK@0.1": 0.5, "difference": {"PCK@0.05": zero, "AP": zero}}
    columns, rows = arm_table(content)
    assert rows[0][2:] == ["-", "50.0", "50.0", "50.0", "+0.0", *["+0.0 [+0.0, +0.0]"] * 2]
    assert not any("gap" in column for column in columns)


def test_the_page_keeps_its_words_about_the_table(tmp_path, content):
    page, lines = tmp_path / "results.md", markdown(content)
    page.write_text(
        "# Ours\n<!-- ablate other: begin -->\nkept\n<!-- ablate other: end -->\n"
        "<!-- ablate small: begin -->\nold\n<!-- ablate small: end -->\nafter\n"
    )
    write_table(page, "small", lines)
    text = page.read_text()
    assert text.startswith("# Ours\n<!-- ablate other: begin -->\nkept\n") and text.endswith("-->\nafter\n")
    assert "old" not in text and "| both | asks both |" in text
    write_table(page, "small", lines)
    assert page.read_text() == text
    write_table(page, "new", lines)
    assert page.read_text().startswith(text.rstrip()) and "## Ablation new" in page.read_text()
    write_table(tmp_path / "none.md", "small", lines)
    assert (tmp_path / "none.md").read_text().startswith("## Ablation small\n\n<!-- ablate small: begin -->")


BEGIN, END = "<!-- ablate small: begin -->", "<!-- ablate small: end -->"


@pytest.mark.parametrize(
    "page, told",
    [
        (f"{BEGIN}\nmine\n", f"'{END}' stands there 0 times"),
        (f"mine\n{END}\n", f"'{BEGIN}' stands there 0 times"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", f"'{BEGIN}' stands there 2 times"),
        (f"{END}\nmine\n{BEGIN}\n", f"'{END}' stands before"),
        ("J\xf6rg\n".encode("latin-1"), "can't be read as UTF-8"),
    ],
)
def test_a_page_where_the_table_has_no_place_is_refused_and_stays(tmp_path, content, page, told):
    file = tmp_path / "results.md"
    file.write_bytes(page if isinstance(page, bytes) else page.encode())
    before = file.read_bytes()
    for asked in (lambda: check_page(file, "small"), lambda: write_table(file, "small", markdown(content))):
        with pytest.raises(SagecacheError, match=f"results.md: .*{told}"):
            asked()
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_page_that_cannot_be_written_is_told_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SagecacheError, match="file/results.md: no file can be written"):
        check_page(tmp_path / "file" / "results.md", "small")
    check_page(tmp_path / "new" / "results.md", "small")
    assert not list((tmp_path / "new").iterdir())


def test_a_cut_off_write_leaves_the_page(tmp_path, content, monkeypatch):
    page = tmp_path / "results.md"
    page.write_text("mine\n")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        write_table(page, "small", markdown(content))
    assert page.read_text() == "mine\n" and list(tmp_path.iterdir()) == [page]
