"""One way to show that long work is going on: a bar on a terminal, plain lines elsewhere.

Both say how long it still takes. Work whose parts cannot be counted shows the time that has passed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_LINES = 10
LEAST_SECONDS = 1.0
"""BackendPair two plain lines, and before the first: what is done sooner needs none."""
FIRST_SECONDS, MOST_SECONDS = 5.0, 300.0
"""Until the first plain line, and between two, at most: a tenth of long work is long too."""
BAR_WIDTH = 24

_on_terminal: Progress | None = None  # the display that runs: a terminal has room for one


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show `label` on standard error while the block runs; yields advance(n), n of `total` units.

    On a terminal a bar with the time left; elsewhere a line with the time left after 5 seconds, at
    every tenth of the way and every 5 minutes, and once a second at most. Within another one's
    block it is a second bar.
    """
    if sys.stderr.isatty():
        with _display() as bars:
            task = bars.add_task(label, total=max(total, 1))
            try:
                yield lambda n: bars.advance(task, n)
            finally:
                bars.remove_task(task)
        return
    began = said = time.monotonic()
    done = shown = lines = 0

    def advance(n: int) -> None:
        nonlocal done, shown, said, lines
        done += n
        now = time.monotonic()
        tenth = PLAIN_LINES * done // max(total, 1)
        waited = now - said
        overdue = waited >= (MOST_SECONDS if lines else FIRST_SECONDS)
        if not done or not (overdue or (tenth > shown and waited >= LEAST_SECONDS)):
            return
        shown, said, lines = tenth, now, lines + 1
        left = clock((now - began) / done * (total - done))
        rest = f"{left} left" if done < total else f"took {clock(now - began)}"
        print(f"{label}: {done} of {total}, {rest}", file=sys.stderr, flush=True)

    yield advance


@contextmanager
def working(label: str, seconds: float | None = None) -> Iterator[None]:
    """Show on a terminal that one call whose parts cannot be counted is going on, and since when.

    seconds: how long it may take, shown beside. Elsewhere nothing is shown: say before it what is
    done, and `about` how long it takes.
    """
    if not sys.stderr.isatty():
        yield
        return
    with _display() as bars:
        task = bars.add_task(label, total=None, about=seconds)
        try:
            yield
        finally:
            bars.remove_task(task)


def clock(seconds: float) -> str:
    """1:05, or 2:03:04 from an hour on; seconds are rounded."""
    whole = round(max(seconds, 0.0))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(label: str, seconds: float) -> str:
    """`label` with the time that the work may take, where that is worth a word: from 5 seconds."""
    if seconds < 5:
        return label
    # two minutes of work are no 1:57: what is known is the order of things
    step = 5 if seconds < 60 else 30 if seconds < 600 else 300
    return f"{label} (about {clock(step * max(1, round(seconds / step)))})"


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
                rest = f" of about {clock(seconds)}" if seconds and seconds >= 5 else ""
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
