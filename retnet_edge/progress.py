"""One way to show that long work is going on: a bar on a terminal, plain lines elsewhere.

Both say how long it still takes. Work whose parts cannot be counted shows the time that has passed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from retnet_edge.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_LINES = 10
LEAST_SECONDS = 1.0
"""Between two plain lines, and before the first: what is done sooner needs none."""
FIRST_SECONDS, MOST_SECONDS = 5.0, 300.0
"""Until the first plain line, and between two, at most: a tenth of long work is long too."""
INNER_SECONDS = 60.0
"""Between the lines of work within other work, which has lines of its own."""
WORTH_A_WORD = 5.0  # seconds of work
HASHED_IN_A_SECOND = 1 << 29  # bytes
BAR_WIDTH = 24

_on_terminal: Progress | None = None  # the display that runs: a terminal has room for one
_plain = 0  # blocks of `progress` that run without one


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show `label` on standard error while the block runs; yields advance(n), n of `total` units.

    On a terminal a bar with the time left; elsewhere a line with the time left after 5 seconds, at
    every tenth of the way and every 5 minutes, and once a second at most. Within another one's
    block it is a second bar, or a line a minute.
    """
    global _plain
    label = printable(label)
    if sys.stderr.isatty():
        with _display() as bars:
            task = bars.add_task(label, total=max(total, 1))
            try:
                yield lambda n: bars.advance(task, n)
            finally:
                bars.remove_task(task)
        return
    lines = _Lines(label, total, inner=_plain > 0)
    _plain += 1
    try:
        yield lines.advance
    finally:
        _plain -= 1


@contextmanager
def working(
    label: str, seconds: float | None = None, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Show that one call whose parts cannot be counted is going on: on a terminal, and since when.

    seconds: how long it may take. say: gets the line that tells so; without it a line is printed
    to standard error where that is no terminal, of work of 5 seconds or more.
    """
    terminal = sys.stderr.isatty()
    label = printable(label)
    if say is not None:
        say(about(label, seconds or 0.0))
    elif not terminal and (seconds or 0.0) >= WORTH_A_WORD:
        print(about(label, seconds or 0.0), file=sys.stderr, flush=True)
    if not terminal:
        yield
        return
    with _display() as bars:
        task = bars.add_task(label, total=None, about=seconds)
        try:
            yield
        finally:
            bars.remove_task(task)


@contextmanager
def hashing(label: str, size: int) -> Iterator[Callable[[int], None]]:
    """`progress` over `size` bytes that are read; nothing where that takes less than a second."""
    if size < HASHED_IN_A_SECOND:
        yield lambda n: None
        return
    with progress(f"{label} (bytes)", size) as advance:
        yield advance


class _Lines:
    """The plain lines of a `progress`. inner: it is within another one's block."""

    def __init__(self, label: str, total: int, *, inner: bool) -> None:
        self._label, self._total, self._inner = label, total, inner
        self._began = self._said = time.monotonic()
        self._done = self._tenth = self._lines = 0
        self._first: tuple[float, int] | None = None  # when, and how much was done then

    def advance(self, n: int) -> None:
        """n more units are done."""
        self._done += n
        now = time.monotonic()
        tenth = PLAIN_LINES * self._done // max(self._total, 1)
        if n <= 0:
            return
        since, before = self._first or (self._began, 0)
        if self._due(tenth, now - self._said):
            self._tenth, self._said, self._lines = tenth, now, self._lines + 1
            left = (now - since) / (self._done - before) * (self._total - self._done)
            took = clock(now - self._began)
            rest = f"{clock(left)} left" if self._done < self._total else f"took {took}"
            line = f"{self._label}: {self._done} of {self._total}, {rest}"
            print(line, file=sys.stderr, flush=True)
        self._first = self._first or (now, self._done)

    def _due(self, tenth: int, waited: float) -> bool:
        if self._inner:
            return waited >= INNER_SECONDS
        if tenth > self._tenth and waited >= LEAST_SECONDS:
            return True
        # the first units took what it took to begin, and tell little of the others
        return self._first is not None and waited >= (
            MOST_SECONDS if self._lines else FIRST_SECONDS
        )


def clock(seconds: float) -> str:
    """1:05, or 2:03:04 from an hour on; seconds are rounded."""
    whole = round(max(seconds, 0.0))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(label: str, seconds: float) -> str:
    """`label` with the time that the work may take, where that is worth a word: from 5 seconds."""
    if seconds < WORTH_A_WORD:
        return label
    return f"{label}, about {_roughly(seconds)}"


def _roughly(seconds: float) -> str:
    """Two minutes of work are no 1:57: what is known is the order of things."""
    step = 5 if seconds < 60 else 30 if seconds < 600 else 300
    return clock(step * max(1, round(seconds / step)))


@contextmanager
def _display() -> Iterator[Progress]:
    """The bars that are on the terminal, or new ones for the length of the block."""
    global _on_terminal
    if _on_terminal is not None:
        yield _on_terminal
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Times(ProgressColumn):
        """Percent and time left; of work without units the time since it began."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                seconds = task.fields.get("about")
                rest = (
                    f" of about {_roughly(seconds)}" if seconds and seconds >= WORTH_A_WORD else ""
                )
                return Text(f"{clock(task.elapsed or 0.0)}{rest}")
            left = "-:--" if task.time_remaining is None else clock(task.time_remaining)
            return Text(f"{task.percentage:3.0f} %  {left} left")

    # what is printed meanwhile goes above the bars, unless it goes elsewhere
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(BAR_WIDTH),
        Times(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:
        _on_terminal = bars
        try:
            yield bars
        finally:
            _on_terminal = None
