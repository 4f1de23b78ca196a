"""A `Bench` as tables for a terminal (a test a column), as Markdown and CSV (a test a row)."""

from __future__ import annotations

import csv
import io

from rich.console import Console

from retnet_edge.runtime.bench.records import Bench, BenchRow, Quartiles
from retnet_edge.runtime.session.operators import OperatorTime
from retnet_edge.tables import show_facts, show_notes, show_table

Facts = list[tuple[str, str]]
HEADINGS = ("test", "depth", "batch", "threads", "tokens/s", "ms", "GB/s", "of bandwidth")
_SPREADS = ("rate", "milliseconds")


def facts(bench: Bench) -> Facts:
    """What stands above the rows: the bundle, the machine, load times, memory."""
    found = [
        ("bundle", f"{bench.bundle}: {bench.model}, {bench.parameters:,} parameters"),
        ("recipe", f"{bench.recipe} on {bench.backend} {bench.versions[bench.backend]}"),
        ("machine", f"{bench.processor}, {bench.cores} cores"),
        *(
            (f"read bandwidth, {_threads(count)}", f"{_figure(read)} GB/s")
            for count, read in bench.bandwidth.items()
        ),
        ("weights a step reads", f"{bench.weights_bytes:,} bytes"),
        ("states of a sequence", f"{bench.state_bytes:,} bytes"),
        ("first load", f"{bench.load.first:.0f} ms"),
        ("later loads", f"{_figure(bench.load.later)} ms"),
    ]
    if (used := bench.memory) is not None:
        found += [
            ("resident, steady", f"{used.steady:,} bytes"),
            ("resident, peak", f"{used.peak:,} bytes"),
            ("anonymous, steady", f"{used.anonymous:,} bytes"),
            ("file-backed, steady", f"{used.file_backed:,} bytes"),
            ("resident before the bundle", f"{used.base:,} bytes"),
        ]
    return found


def cells(row: BenchRow) -> tuple[str, ...]:
    """A row's texts, in the order of HEADINGS; figures as median (quartiles)."""
    return (
        f"{row.test} {row.tokens}",
        f"{row.depth:,}",
        str(row.batch),
        str(row.threads),
        _figure(row.rate),
        _figure(row.milliseconds),
        _gigabytes(row),
        _share(row),
    )


def print_bench(bench: Bench, console: Console) -> None:
    """The facts, a table with a column a test, and the warnings."""
    show_facts(console, "", facts(bench))
    rows = bench.rows
    table = [
        ("depth", *(f"{row.depth:,}" for row in rows)),
        ("batch", *(f"{row.batch}" for row in rows)),
        ("threads", *(f"{row.threads}" for row in rows)),
        *_spread_rows("tokens/s", [row.rate for row in rows]),
        *_spread_rows("ms", [row.milliseconds for row in rows]),
        ("GB/s", *(_gigabytes(row) for row in rows)),
        ("of bandwidth", *(_share(row) for row in rows)),
    ]
    header = ("test", *(f"{row.test}\n{row.tokens:,}" for row in rows))
    notes = ["Medians of the repetitions.", *MEANINGS]
    show_table(console, "Speed", header, table, notes=notes)
    show_notes(console, [f"warning: {warning}" for warning in bench.warnings])


MEANINGS = (
    "ms: of a prompt, to its first new token; of generate, one step.",
    "GB/s: weights and states that a step moves.",
)
NOTE = " ".join(("median (quartiles).", *MEANINGS))


def _spread_rows(name: str, spreads: list[Quartiles]) -> list[tuple[str, ...]]:
    """The median and, below it, the quartiles."""
    return [
        (name, *(_short(spread.median) for spread in spreads)),
        ("  lower quartile", *(_short(spread.low) for spread in spreads)),
        ("  upper quartile", *(_short(spread.high) for spread in spreads)),
    ]


def to_markdown(bench: Bench) -> str:
    """The same tables in Markdown."""
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts(bench)), ""]
    lines += [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    lines += [f"| {' | '.join(cells(row))} |" for row in bench.rows]
    lines += ["", NOTE, *(f"\nWarning: {warning}" for warning in bench.warnings)]
    return "\n".join(lines) + "\n"


def to_csv(bench: Bench) -> str:
    """One line a row, figures unrounded, spreads as three columns."""
    fields = list(BenchRow.__struct_fields__)
    names = [
        part
        for name in fields
        for part in (
            [f"{name}_{q}" for q in ("low", "median", "high")] if name in _SPREADS else [name]
        )
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["bundle", "recipe", "backend", *names])
    for row in bench.rows:
        values: list[object] = []
        for name in fields:
            value = getattr(row, name)
            values += (
                [value.low, value.median, value.high] if isinstance(value, Quartiles) else [value]
            )
        writer.writerow([bench.bundle, bench.recipe, bench.backend, *values])
    return out.getvalue()


def print_profile(operators: list[OperatorTime], steps: int, console: Console) -> None:
    """Time by operator, the largest first."""
    total = sum(operator.microseconds for operator in operators)
    rows = [
        (
            operator.name,
            f"{operator.calls / steps:g}",
            f"{operator.microseconds / steps:.1f}",
            f"{100 * operator.microseconds / max(total, 1e-9):.1f} %",
        )
        for operator in sorted(operators, key=lambda o: -o.microseconds)
    ]
    rows.append(("all", "", f"{total / steps:.1f}", "100.0 %"))
    show_table(console, "Time of a step", ("operator", "calls", "µs", "share"), rows)


def _gigabytes(row: BenchRow) -> str:
    return "" if row.gigabytes is None else f"{row.gigabytes:.1f}"


def _share(row: BenchRow) -> str:
    return "" if row.share is None else f"{100 * row.share:.0f} %"


def _figure(spread: Quartiles) -> str:
    return f"{_short(spread.median)} ({_short(spread.low)} – {_short(spread.high)})"


def _short(value: float) -> str:
    """Three digits or more."""
    return (
        f"{value:,.0f}"
        if value >= 1000
        else f"{value:.{3 if value < 1 else 2 if value < 100 else 1}f}"
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
