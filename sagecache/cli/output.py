"""What commands print: figures to stdout (a table or JSON), progress to stderr.

Tables by rich, bars by tqdm; where stderr is no terminal, a plain progress line every few seconds.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from sagecache.errors import SagecacheError

Progress = Callable[..., None]
# Up to four numbers, each on its line; in a JSON string there is no line break, so none is mistaken.
_SHORT_LIST = re.compile(r"\[(?:\n *-?[\d.eE+-]+,?){1,4}\n *\]")
SHORTEST = 0.01  # seconds; of less nobody can tell a speed
BAR = "{desc}: {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def emit_json(data: object) -> None:
    """Print ``data`` as JSON on stdout. NaN becomes null, as JSON has none; a pair of numbers is a line."""
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False, default=str)
    click.echo(_SHORT_LIST.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text))


def _finite(data: object) -> object:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not (abs(data) < float("inf")):
        return None
    return data


def emit_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout; numbers are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numeric = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(columns))]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column, right in zip(columns, numeric, strict=True):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # Text: a path may hold what looks like markup
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    if title:  # not the table's own: that is broken at the table's width
        console.print(Text(title, style="italic"), soft_wrap=True)
    console.print(table)


def _is_number(cell: object) -> bool:
    try:
        float(str(cell).rstrip("%").replace(",", ""))
    except ValueError:
        return str(cell) in ("", "-")
    return True


def note(message: str) -> None:
    """One line of what is going on, on stderr."""
    click.echo(message, err=True)


RESULTS, PICTURE = b"[", b"\x89PNG"  # how a list in JSON and a PNG begin


def require_places(places: Mapping[Path, bytes], used: Iterable[Path] = ()) -> None:
    """Before the work: raise SagecacheError unless every file can be written and takes nobody's place.

    places: file -> how its kind begins (RESULTS, PICTURE): an earlier one of the same kind is replaced.
    used: what the command reads.
    """
    reads = {path.resolve() for path in used}
    for path, beginning in places.items():
        if not path.parent.is_dir():
            raise SagecacheError("no such folder", file=path.parent, fix="Make it, or name another file.")
        if not os.access(path.parent, os.W_OK):
            raise SagecacheError("no file can be written here", file=path.parent, fix="Choose another.")
        if path.exists() and path.resolve() in reads:
            raise SagecacheError("is read by this command", file=path, fix="Name another file.")
        if path.exists() and not _begins(path, beginning):
            raise SagecacheError(
                "is there, and is no earlier result, so it is not replaced",
                file=path,
                fix="Name another file.",
            )


def _begins(path: Path, beginning: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    return not start or start.startswith(beginning)


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Yield ``report(done, total, message="")``; shows rate and remaining time on stderr.

    A message of total 0 is told at once: what is waited for, before anything is counted. The rate counts from
    the first report with a total: what was there before is nobody's speed.
    Of several processes under torchrun the first one speaks.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        yield lambda *_, **__: None
    elif sys.stderr.isatty():
        with _bar(label) as report:
            yield report
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(desc=label, dynamic_ncols=True, bar_format=BAR) as bar:

        def report(done: int, total: int, message: str = "") -> None:
            if message and not total:
                bar.set_postfix_str(message)
                return
            if bar.total != total:  # known at the first such report; the rate counts from there
                bar.reset(total)
                bar.initial = bar.n = bar.last_print_n = done
            bar.set_postfix_str(message, refresh=False)
            bar.update(done - bar.n)

        yield report


def _lines(label: str, every: float = 5.0) -> Progress:
    """A line every few seconds and at the end; without a rate where there is none to speak of."""
    start = last = time.monotonic()
    first_done: int | None = None

    def report(done: int, total: int, message: str = "") -> None:
        nonlocal start, last, first_done
        if message and not total:
            note(f"{label}: {message}")
            return
        now = time.monotonic()
        if first_done is None:
            first_done, start, last = done, now, now
        if now - last < every and done < total:
            return
        if done >= total and last < 0:
            return
        last = now if done < total else -1.0
        made, seconds = done - first_done, now - start
        rate = made / seconds if seconds >= SHORTEST else 0.0
        speed = f", {rate:.1f}/s" if rate > 0 or done < total else ""
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        note(f"{label}: {done}/{total}{speed}{left}{'  ' + message if message else ''}")

    return report
