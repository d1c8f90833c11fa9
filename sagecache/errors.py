"""The one error that users see: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class SagecacheError(Exception):
    """Bad input or a missing prerequisite, told in one line.

    message says what is wrong; file and record say where; fix says what to do.
    The CLI prints ``str(error)`` and exits 2.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        record: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.message, self.file, self.record, self.fix = message, file, record, fix
        where = ", ".join(str(part) for part in (file, record) if part is not None)
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text.rstrip('.')}. {fix}" if fix else text)

    def __reduce__(self):
        # Exceptions pickle as cls(*args), which would drop the keywords on the way out of a worker process.
        return _rebuild, (type(self), self.message, self.file, self.record, self.fix)


def _rebuild(cls: type[SagecacheError], message: str, file, record, fix) -> SagecacheError:
    return cls(message, file=file, record=record, fix=fix)


RECIPE = "recipe"  # the file of an error of whoever reads a recipe and doesn't know its page


@contextmanager
def recipe_is(page: Path) -> Iterator[None]:
    """Errors about 'the recipe' are about this page."""
    try:
        yield
    except SagecacheError as error:
        if error.file != RECIPE:
            raise
        raise SagecacheError(error.message, file=page, record=error.record, fix=error.fix) from error


@contextmanager
def about(file: str | Path) -> Iterator[None]:
    """Errors of whoever knows no file are about this one."""
    try:
        yield
    except SagecacheError as error:
        if error.file is not None:
            raise
        raise SagecacheError(error.message, file=file, record=error.record, fix=error.fix) from error


def counted(count: int, noun: str) -> str:
    """'1 instance', '2 instances'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean …? known: …' for a mistyped name; the nearest known name comes first."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = ", ".join(known) if known else "none"
    return f"did you mean '{close[0]}'? Known: {listing}" if close else f"Known: {listing}"
