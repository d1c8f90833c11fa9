"""What is printed: JSON that any reader takes, tables that line up, progress that says how fast."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from pathlib import Path

import pytest

from sagecache.cli.output import emit_json, emit_table, note, progress


def refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


def test_json_has_null_where_there_is_no_number(capsys):
    data = dict(
        a=[1.5, float("nan")], b=dict(c=(float("inf"), -float("inf"), 2)), d=Path("x/y"), e=None, f=True
    )
    emit_json(data | {3: "ü"})
    text = capsys.readouterr().out
    expected = dict(a=[1.5, None], b=dict(c=[None, None, 2]), d="x/y", e=None, f=True) | {"3": "ü"}
    assert json.loads(text, parse_constant=refuse) == expected
    assert "ü" in text


def test_pairs_are_a_line_each(capsys):
    data = dict(ids=[[203, 1], [-4, 0]], size=[96, 128], one=[1], none=[], text="[\n 1\n]")
    data |= dict(values=[1.5, 1e-9], many=list(range(5)))
    emit_json(data)
    text = capsys.readouterr().out
    assert json.loads(text) == data
    assert "    [203, 1],\n    [-4, 0]\n" in text and '"size": [96, 128],' in text and '"one": [1]' in text
    assert "[0, 1" not in text


def test_json_goes_to_stdout_and_notes_to_stderr(capsys):
    emit_json([])
    note("going on")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("[]\n", "going on\n")


def test_a_table_has_every_cell_and_numbers_end_in_one_column(capsys):
    emit_table("figures", ("arm", "AP", "note"), [("stage0", 5.0, "-"), ("stage1-full", "61.25", "1,200")])
    title, *lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert title == "figures"
    assert lines[0].split() == ["arm", "AP", "note"]
    rows = lines[2:]
    assert [row.split() for row in rows] == [["stage0", "5.0", "-"], ["stage1-full", "61.25", "1,200"]]
    ends = [row.index(cell) + len(cell) for row, cell in zip(rows, ("5.0", "61.25"), strict=True)]
    assert ends[0] == ends[1], "numbers are right-aligned"
    assert rows[0].index("stage0") == rows[1].index("stage1-full"), "and names left-aligned"


def test_a_table_of_text_is_left_aligned_and_may_be_empty(capsys):
    emit_table("", ("what", "file"), [("a", "x.json"), ("bb", "longer.json")])
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert len({row.index(cell) for row, cell in zip(rows, ("x.json", "longer.json"), strict=False)}) == 1
    emit_table("nothing", ("what", "file"), [])
    assert "nothing" in capsys.readouterr().out


def test_long_paths_are_folded_and_never_cut(capsys):
    path = "/".join(f"folder{i}" for i in range(60))
    emit_table("", ("file", "n"), [(path, 1)])
    assert path in re.sub(r"\s+1?\s*", "", capsys.readouterr().out)


def test_markup_in_a_cell_is_shown_as_it_is(capsys):
    emit_table("", ("key",), [("bytes [0:12] of [red]depth[/red]",)])
    assert "bytes [0:12] of [red]depth[/red]" in capsys.readouterr().out


def test_progress_off_a_terminal_is_a_line_at_the_end_with_count_and_rate(capsys):
    with progress("geo val") as report:
        for done in range(11):
            report(done, 10 if done < 11 else 10)
            time.sleep(0.005)
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    count, rate = re.fullmatch(r"geo val: (\S+), (\d+\.\d)/s", line).groups()
    assert captured.out == "" and count == "10/10"
    assert 20 < float(rate) < 200, "ten steps of five milliseconds, or of more on a busy machine"


def test_progress_over_a_long_time_comes_every_few_seconds_with_what_is_left(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress("train stage0") as report:
        for done in range(40, 101):  # a resumed run: the rate counts what this process did
            report(done, 100, f"loss {done}")
            clock[0] += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train stage0: 50/100, 2.0/s, 25 s left  loss 50"
    assert [line.split()[2].rstrip(",") for line in lines] == [f"{n}/100" for n in (50, 60, 70, 80, 90, 100)]
    assert lines[-1] == "train stage0: 100/100, 2.0/s  loss 100"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_is_waited_for_is_told_at_once_and_once(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    with progress("geo val") as report:
        report(0, 0, "waiting for another run")
        assert sys.stderr.getvalue().count("geo val") >= 1
        assert sys.stderr.getvalue().count("waiting for another run") == 1


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_rate_counts_what_this_run_made(monkeypatch, stream):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", stream())
    with progress("geo val") as report:
        report(0, 0, "reading images")
        clock[0] += 7
        for done in range(900, 1001):  # 900 were there
            report(done, 1000, "targets")
            clock[0] += 0.1
    text = sys.stderr.getvalue()
    rates = [float(rate) for rate in re.findall(r"([\d.]+)(?:it)?/s", text)]
    assert rates and rates == pytest.approx([10] * len(rates), rel=0.2)


@pytest.mark.parametrize("total", [0, 1])
def test_progress_of_nothing_or_of_what_was_there_has_no_rate(capsys, total):
    with progress("geo") as report:
        report(total, total)
    assert capsys.readouterr().err == f"geo: {total}/{total}\n"


def test_work_of_no_time_has_no_rate(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress("eval") as report:
        report(0, 4)
        clock[0] += 1e-5
        report(4, 4, "done")
    assert capsys.readouterr().err == "eval: 4/4  done\n"
