"""Work for engines: squares, with what may go wrong on the way."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sagecache.errors import SagecacheError


class Squares:
    """bad: a number that is refused. fatal: one whose first ``deaths`` processes die; notes: where these are
    counted, one file a death.
    """

    def __init__(
        self, bad: int | None = None, fatal: int | None = None, deaths: int = 0, notes: Path | None = None
    ) -> None:
        self.bad, self.fatal, self.deaths, self.notes = bad, fatal, deaths, notes
        self.done: list[int] = []

    def count(self, number: int) -> int:
        return number

    def __call__(self, numbers: Sequence[int], advance: Callable[[int], None]) -> Iterator[tuple[int, int]]:
        for number in numbers:
            if number == self.bad:
                raise SagecacheError("bad", file="a.jpg", record=f"number {number}", fix="Mend it")
            if number == self.fatal and len(list(self.notes.iterdir())) < self.deaths:
                (self.notes / str(os.getpid())).touch()
                os._exit(9)
            self.done.append(number)
            advance(number)
            yield number, number**2
