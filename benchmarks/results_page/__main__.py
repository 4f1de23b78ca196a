"""Make docs/results.md, with its plots, from the committed metrics.

    python -m benchmarks.results_page

Reads benchmarks/results/comparisons/ (of `benchmarks.comparisons`) and, in
benchmarks/results/speed/, tables: {"title": …, "command": …, "device": …, "rows": [{column: value,
…}, …]}. A section appears where there is something measured to show.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.comparisons.head_shape_records import read_costs
from benchmarks.comparisons.records import read_folder
from benchmarks.results_page.plots import plots
from benchmarks.results_page.text import (
    Records,
    ablations,
    contexts,
    head_shapes,
    seeds,
    set_up,
    sizes,
    table,
)
from retnet_edge.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PAGE = "results.md"
INTRODUCTION = (
    "Written by `python -m benchmarks.results_page` from the metrics in `benchmarks/results/`: "
    "edit the script, not this page."
)


class Speed(msgspec.Struct, frozen=True):
    """One table of another benchmark; `notes` are paragraphs below it."""

    title: str
    command: str
    device: str
    rows: list[dict[str, str | int | float | bool | None]]
    notes: list[str] = []


def read_speed(path: Path) -> Speed:
    """A table. Raises InputError naming the file and what does not fit."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Speed)
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: not a table of figures: {error}") from error


def speed_section(speed: Speed) -> list[str]:
    """The rows as they are: columns in order of first appearance, absent ones a dash."""
    columns = list(dict.fromkeys(column for row in speed.rows for column in row))
    rows = [[cell(row.get(column)) for column in columns] for row in speed.rows]
    lines = [f"## {speed.title}", "", f"{speed.device}; `{speed.command}`", ""]
    lines += table(columns, rows)
    for note in speed.notes:
        lines += ["", note]
    return lines


def cell(value: Any) -> str:
    """A number with thousands separated and four significant digits; text as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def page(comparisons: Path, speed: Path, drawn: dict[str, bytes]) -> str:
    """The page's Markdown."""
    records: Records = read_folder(comparisons)
    costs = read_costs(comparisons)
    sections = [["# Results", "", INTRODUCTION]]
    sections += [speed_section(read_speed(path)) for path in sorted(speed.glob("*.json"))]
    compared = [sizes(records), contexts(records), seeds(records), ablations(records)]
    if any(compared):
        sections.append(["## How the models were trained", "", *set_up(records)])
    for section, plot, text in (
        (compared[0], "results-sizes.svg", "Validation curves by size"),
        (compared[1], "", ""),
        (compared[2], "", ""),
        (compared[3], "results-ablations.svg", "Validation curves of the ablations"),
    ):
        sections.append([*section, "", f"![{text}]({plot})"] if plot in drawn else section)
    sections.append(head_shapes(records, costs))
    if any(compared):
        sections.append(
            [
                "## Not compared",
                "",
                "RWKV, H3, Hyena and the linear Transformer of the paper's table 5 are not trained "
                "here, so its order (RetNet 26.05, H3 29.97, RWKV 30.92, Hyena 32.08, linear "
                "Transformer 40.24) is neither confirmed nor denied.",
            ]
        )
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def write_results(comparisons: Path, speed: Path, docs: Path) -> Path:
    """Write the page and its plots into `docs`."""
    drawn = plots(read_folder(comparisons))
    text = page(comparisons, speed, drawn)
    docs.mkdir(parents=True, exist_ok=True)
    for name, content in {**drawn, PAGE: text.encode()}.items():
        partial = docs / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, docs / name)
    return docs / PAGE


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results_page", description=(__doc__ or "").split("\n\n")[0]
    )
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--comparisons", type=Path, default=results / "comparisons")
    parser.add_argument("--speed", type=Path, default=results / "speed")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    try:
        print(write_results(args.comparisons, args.speed, args.docs))
    except InputError as error:
        print(f"results_page: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
