"""Tables and facts on a terminal: no line is wider than it, and no word is broken to fit.

Figures are rows, and what is measured (a backend, a bundle, a test) is a column. Where columns do
not fit beside one another, they go into further tables below, under the same rows. A console that
is no terminal gets everything in one table, on lines as long as they are.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retnet_edge.errors import printable

GAP = 2  # blanks between two columns
LEAST_LABEL = 24  # characters that a column of labels keeps, where it has as many
INDENT = "  "  # of a label's second line, and of facts below their title
ENDLESS = 10_000  # characters of a line that nobody wraps
FAILED = "FAIL"
"""At the end of a cell: the figure is out of its bound."""

Row = Sequence[str]


def standard_output() -> Console:
    """A console on standard output: as wide as the terminal, endless where it is none."""
    return Console() if sys.stdout.isatty() else Console(width=ENDLESS)


def show_table(
    console: Console,
    title: str,
    header: Row,
    rows: Sequence[Row],
    *,
    notes: Sequence[str] = (),
) -> None:
    """Print rows of text under `header`, labels on the left and figures on the right.

    Columns that the console has no room for follow in tables of their own. notes: sentences below.
    A line break in a cell is kept.
    """
    header, rows = _printable(header), [_printable(row) for row in rows]
    widths = [max(map(_width, cells)) for cells in zip(header, *rows, strict=True)]
    words = [word for row in (header, *rows) for word in row[0].split()]
    label = min(widths[0], max(LEAST_LABEL, *map(cell_len, words)))
    parts = _parts(widths[1:], console.width - label)
    start = 1
    for number, size in enumerate(parts):
        _say(console, f"{title}, continued" if number else title, "bold")
        chosen = [0, *range(start, start + size)]
        start += size
        room = console.width - sum(widths[i] + GAP for i in chosen[1:])
        label = max(min(widths[0], room), min(widths[0], LEAST_LABEL // 2))
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
        for i in chosen:
            table.add_column(
                Text(header[i]),
                justify="right" if i else "left",
                vertical="top",
                overflow="fold",
                width=label if i == 0 else None,
            )
        for row in rows:
            cells = [_wrapped(row[0], label), *(row[i] for i in chosen[1:])]
            table.add_row(*map(_cell, cells))
        console.print(table)
        if number + 1 < len(parts):
            console.print()
    show_notes(console, notes, "dim")
    console.print()


def show_facts(console: Console, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, a line each where it fits; a value of long words gets its own lines.

    title: printed above, unless it is empty.
    """
    if title:
        _say(console, title, "bold")
    facts = [(printable(name), printable(value)) for name, value in facts]
    names = min(max((len(name) for name, _ in facts), default=0), console.width // 2)
    for name, value in facts:
        start = f"{INDENT}{name:<{names}}{' ' * GAP}"
        room = console.width - len(start)
        if max(map(len, value.split()), default=0) <= room:
            first, *rest = textwrap.wrap(value, room, **_WORDS) or [""]
            lines = [start + first, *(" " * len(start) + line for line in rest)]
        else:
            room = max(console.width - 2 * len(INDENT), 1)
            lines = [INDENT + name]
            lines += [2 * INDENT + line for line in textwrap.wrap(value, room, **_HYPHENS)]
        for line in lines:
            _say(console, line.rstrip())
    console.print()


def show_notes(console: Console, sentences: Sequence[str], style: str = "") -> None:
    """Print sentences, each from the start of a line, broken between words."""
    for sentence in sentences:
        _say(console, sentence, style)


_HYPHENS: dict[str, Any] = {"break_on_hyphens": False}
_WORDS = {**_HYPHENS, "break_long_words": False}


def _say(console: Console, line: str, style: str = "") -> None:
    if line:
        console.print(Text(printable(line), style=style))


def _printable(row: Row) -> Row:
    return [printable(cell) for cell in row]


def _width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _cell(text: str) -> Text:
    return Text(text, style="bold red" if text.rstrip().endswith(FAILED) else "")


def _wrapped(label: str, width: int) -> str:
    """The label on lines of `width`, broken between words, the second one set in."""
    return "\n".join(textwrap.wrap(label, width, subsequent_indent=INDENT, **_WORDS)) or label


def _parts(widths: Sequence[int], room: int) -> list[int]:
    """Into how many columns each table is cut: as few tables as fit `room`, as even as they go."""
    count = len(widths)
    for tables in range(1, count + 1):
        sizes = [count * (i + 1) // tables - count * i // tables for i in range(tables)]
        ends = [sum(sizes[: i + 1]) for i in range(tables)]
        if all(
            sum(width + GAP for width in widths[end - size : end]) <= room
            for size, end in zip(sizes, ends, strict=True)
        ):
            return sizes
    return [1] * count
