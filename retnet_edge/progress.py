"""One way to show that long work is going on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_LINES = 10


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show `label` on standard error while the block runs; yields advance(n), n of `total` units.

    On a terminal a bar with the time left; elsewhere a line at every tenth of the way, at most.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda n: bar.advance(task, n)
        return
    done = shown = 0

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        tenth = PLAIN_LINES * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)

    yield advance
