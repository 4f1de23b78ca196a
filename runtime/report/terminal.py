"""A verification on a terminal: the page's figures in tables of at most 80 characters.

A row is a figure and a column a backend of a bundle, under a short name; a line above the tables
says what the names stand for. What the page puts into one cell (a median and its quartiles) is a
row each here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console

from retnet_edge.runtime.parity.backend_pairs import BackendPair
from retnet_edge.runtime.parity.parity import Parity
from retnet_edge.runtime.report.page import (
    Column,
    ReportEntry,
    all_reasons,
    column_name,
    columns_of,
    memory_cases,
)
from retnet_edge.runtime.report.tables import POSITION_HEADER, Rows, position_rows
from retnet_edge.runtime.report.terminal_tables import (
    memory_table,
    pair_table,
    parity_table,
    place_table,
    position_table,
)
from retnet_edge.tables import FAILED, show_facts, show_notes, show_table, standard_output

SHORT_BACKENDS = {"onnxruntime": "onnx", "executorch": "et", "native": "native"}
LONGEST_NAME = 10  # characters of a bundle's name that heads a column; longer ones are numbered
PASSED = "ok"
POSITION_COLUMNS = (0, 2, 4, 6, 7, 9)  # of POSITION_HEADER: what fits 80 characters

_SHORTER = (
    ("positions with logits that are not finite", "logits not finite"),
    (" (nats)", ""),
    ("mean KL of second halves of contexts", "mean KL, second halves"),
    ("kernel parity: steps against the same graph in NumPy, median", "kernels: a step, median"),
    ("kernel parity: ", "kernels: "),
    ("95 % interval of anonymous memory (bytes a token)", "memory, bytes a token, 95 %"),
    ("its upper end (bytes a token)", "  its upper end"),
    ("anonymous memory (bytes a token)", "memory, bytes a token"),
    (" of steps after a prefill of ", " after a prefill of "),
    ("golden.npz: largest ", "golden.npz: "),
)
_PLACE = re.compile(r" at position ([\d,]+) after ([\d,]+) tokens")


class Names(NamedTuple):
    """What columns are called. legend: a fact for every name that does not speak for itself."""

    columns: tuple[str, ...]
    legend: list[tuple[str, str]]
    short: dict[str, str]
    """By the name that a comparison of backends gives a column, of several bundles."""


def names_of(entries: Sequence[ReportEntry]) -> Names:
    """Short names of every column: its backend's and, where there are several, its bundle's.

    A bundle's name of more than 10 characters is a number that the legend explains.
    """
    several = len(entries) > 1
    numbered = any(len(name) > LONGEST_NAME for name, _, _ in entries)
    columns, legend, short = [], [], {}
    for count, (name, manifest, verdict) in enumerate(entries, 1):
        if several:
            recipe = f"recipe {manifest.quantization.recipe}"
            legend.append((str(count), f"{name}, {recipe}") if numbered else (name, recipe))
        for measured in verdict.backends:
            backend = SHORT_BACKENDS[measured.backend]
            column = backend
            if several:
                column = f"{count} {backend}" if numbered else f"{name}\n{backend}"
            columns.append(column)
            short[column_name(name, measured.backend)] = column
    if not several:
        legend.append(("recipe", entries[0][1].quantization.recipe))
    used = {m.backend for _, _, verdict in entries for m in verdict.backends}
    if several or len(used) > 1:
        legend += [(s, long) for long, s in SHORT_BACKENDS.items() if long in used and s != long]
    return Names(tuple(columns), legend, short)


def print_report(
    title: str,
    entries: Sequence[ReportEntry],
    between: Sequence[BackendPair] = (),
    console: Console | None = None,
) -> None:
    """The figures as tables on `console` (None: standard output).

    between: columns of different bundles, compared.
    """
    console = console or standard_output()
    columns, names = columns_of(entries), names_of(entries)
    status = "verified" if all(v.verified for _, _, v in entries) else "unverified"
    show_facts(console, f"{title}: {status}", names.legend)
    header, rows = check_table(columns, names)
    show_table(console, "Figures and their bounds", header, rows)
    show_table(
        console,
        "Parity with the float64 model",
        ("figure", *names.columns),
        parity_table(columns),
        notes=["KL is KL(float64 model ‖ bundle) in nats, a mean over positions."],
    )
    if len(columns) == 1:
        _print_positions(console, columns[0].measured.parity)
    else:
        show_table(
            console,
            "Mean KL against position",
            ("positions", *names.columns),
            position_table([c.measured.parity for c in columns]),
        )
    if pairs := _pairs(entries, names, between):
        show_table(
            console,
            "One backend against the other",
            ("figure", *pairs),
            pair_table(list(pairs.values())),
            notes=["The first stands in the float64 model's place. Not judged."],
        )
    if cases := memory_cases(entries):
        measured = [c.measured.memory is not None for c in columns]
        known = [name for name, has in zip(names.columns, measured, strict=True) if has]
        others = [case.model for _, case, _ in cases[len(known) :]]
        show_table(
            console,
            "Memory and speed",
            ("figure", *known, *others),
            memory_table([case for _, case, _ in cases], [planned for _, _, planned in cases]),
            notes=["Memory in bytes. Growth: bytes a token, with its 95 % interval."],
        )
    show_notes(console, all_reasons(entries), "red")


def _print_positions(console: Console, parity: Parity) -> None:
    """Where the text was, for the only column that there is."""
    rows = [tuple(row[i] for i in POSITION_COLUMNS) for row in position_rows(parity)]
    header = tuple(POSITION_HEADER[i] for i in POSITION_COLUMNS)
    show_table(console, "Against position", header, rows)
    if parity.places:
        places = tuple(f"{place.position:,}" for place in parity.places)
        show_table(console, "Far positions", ("position", *places), place_table(parity.places))


def _pairs(
    entries: Sequence[ReportEntry], names: Names, between: Sequence[BackendPair]
) -> dict[str, BackendPair]:
    """Every comparison under the short names of its two columns, one below the other."""
    found = {}
    for name, _, verdict in entries:
        for pair in verdict.between:  # named by the backends alone
            first, second = (
                names.short[column_name(name, backend)] for backend in (pair.first, pair.second)
            )
            found[f"{first} |\n{second}"] = pair
    for pair in between:
        first, second = (names.short.get(name, name) for name in (pair.first, pair.second))
        found[f"{first} |\n{second}"] = pair
    return found


def short_name(check: str) -> str:
    """A check's name for a narrow column of labels."""
    for long, short in _SHORTER:
        check = check.replace(long, short)
    return _PLACE.sub(r" at \1 (after \2)", check)


def check_table(columns: Sequence[Column], names: Names) -> tuple[tuple[str, ...], Rows]:
    """Header and rows of every check of any column: figures with their marks, and bounds.

    The bound of an only column stands beside its figure, the bounds of several in a row below:
    each has its own.
    """
    checks = [{check.name: check for check in c.measured.checks} for c in columns]
    every = dict.fromkeys(name for by_name in checks for name in by_name)
    failed = any(not check.passed for by_name in checks for check in by_name.values())
    width = len(FAILED if failed else PASSED)
    rows: Rows = []
    for name in every:
        found = [by_name.get(name) for by_name in checks]
        figures = [
            "–" if k is None else f"{k.value} {PASSED if k.passed else FAILED:<{width}}"
            for k in found
        ]
        bounds = ["" if k is None else k.bound for k in found]
        if len(columns) == 1:
            rows.append((short_name(name), *figures, *bounds))
        else:
            rows.append((short_name(name), *figures))
            rows.append(("  bound", *(bound.replace(" to ", " to\n") for bound in bounds)))
    if len(columns) == 1:
        return ("figure", "measured", "bound"), rows
    return ("figure", *names.columns), rows
