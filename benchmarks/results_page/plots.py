"""Plots of docs/results.md: validation curves as SVG; the same figures give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from benchmarks.comparisons.records import Record
from benchmarks.comparisons.runs import ABLATIONS, SMALLEST, Run
from benchmarks.results_page.text import COMPARED, IN_WORDS, Records

COLOURS = ("#3987e5", "#d95926", "#2e9e6b", "#8a8983", "#b04fb3", "#c29a12")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retnet-edge",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
Line = tuple[str, Record, str, str]
"""Label, run, colour, line style."""


def plots(records: Records) -> dict[str, bytes]:
    """SVG files by name, those that there are runs for."""
    found: dict[str, bytes] = {}
    sizes: list[Line] = []
    for colour, size in zip(COLOURS, COMPARED, strict=False):
        for variant, style in (("retnet", "-"), ("transformer", "--")):
            record = records.get(f"{variant}-{size}")
            if record:
                label = f"{'RetNet' if variant == 'retnet' else 'Transformer'} {size.upper()}"
                sizes.append((label, record, colour, style))
    if sizes:
        found["results-sizes.svg"] = curves(sizes)
    parts: list[Line] = []
    for colour, part in zip(COLOURS, ("retnet", *ABLATIONS), strict=True):
        record = records.get(Run(part, SMALLEST).name)
        if record:
            parts.append((IN_WORDS[part], record, colour, "-"))
    if len(parts) > 1:
        found["results-ablations.svg"] = curves(parts)
    return found


def curves(lines: Sequence[Line]) -> bytes:
    """Validation bits a byte against millions of tokens seen; the first tenth is left out."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for label, record, colour, style in lines:
            last = record.curve[-1].tokens if record.curve else 0
            shown = [line for line in record.curve if line.tokens >= 0.1 * last]
            axes.plot(
                [line.tokens / 1e6 for line in shown],
                [line.valid_bits_per_byte for line in shown],
                label=label,
                color=colour,
                linestyle=style,
            )
        axes.set_xlabel("tokens seen, millions")
        axes.set_ylabel("validation bits a byte")
        axes.legend()
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
