"""The script that writes the committed results: its figures are the reports', its page keeps our words."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest

from sagecache.evaluation import evaluate
from sagecache.skeleton import COCO17
from tools import reference_table as script


@pytest.fixture
def options(tmp_path) -> Namespace:
    return Namespace(
        seeds=2, split="test", table=tmp_path / "results.md", reference=tmp_path / "reference.json"
    )


def test_the_page_holds_the_reports_figures_between_its_markers(world, options):
    truth, better, worse = world
    good, bad = (evaluate(results, truth, COCO17) for results in (better, worse))
    options.table.write_text("# Ours\n<!-- table: begin -->\nold\n<!-- table: end -->\nkept\n")
    reports = {"stage0": [bad, bad], script.CONTROL: [bad, bad], "oracle": [good, bad]}
    script.write_table(script.make_table(reports, options), options.table)
    page = options.table.read_text()
    assert page.startswith("# Ours\n") and page.endswith("\nkept\n") and "old" not in page
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in page.splitlines() if "| " in line}
    assert set(rows) == {"arm", "---", "stage0", script.CONTROL, "oracle"}
    gain = 100 * (good.pck[0.05] - bad.pck[0.05])
    assert rows["oracle"][4] == f"{50 * (good.pck[0.05] + bad.pck[0.05]):.1f}"
    assert rows["oracle"][6] == f"{gain:+.1f}, +0.0"
    assert rows["oracle"][7].startswith(f"{gain / 2:+.1f} [") and rows["stage0"][7].startswith(
        "+0.0 [+0.0, +0.0]"
    )
    assert f"{good.persons} persons; mean of 2 seeds" in page


def test_the_reference_that_the_demo_prints_holds_means_over_seeds(world, options):
    truth, better, worse = world
    good, bad = (evaluate(results, truth, COCO17) for results in (better, worse))
    script.write_reference({"stage0": [good, bad]}, options)
    content = json.loads(options.reference.read_text())
    assert content["seeds"] == 2 and content["command"] == script.COMMAND
    assert content["arms"]["stage0"]["AP"] == pytest.approx(np.mean([good.AP, bad.AP]))
