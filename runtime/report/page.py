"""What a person reads of a verification: one HTML page on its own (on a terminal: `terminal.py`).

A column is one backend of one bundle. A page of one column shows it in full; with more there is a
table of them side by side first.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from retnet_edge.runtime.bundle.manifest import Manifest
from retnet_edge.runtime.memory.memory import Memory
from retnet_edge.runtime.parity.backend_pairs import BackendPair
from retnet_edge.runtime.report.tables import (
    BACKEND_PAIR_HEADER,
    BLOCK_HEADER,
    POSITION_HEADER,
    PROBE_HEADER,
    PROFILE_HEADER,
    WORST_HEADER,
    backend_pair_rows,
    block_rows,
    bundle_rows,
    memory_rows,
    parity_rows,
    position_rows,
    probe_rows,
    profile_rows,
    side_rows,
    worst_rows,
)
from retnet_edge.runtime.report.verdict import BackendResult, Verdict

ReportEntry = tuple[str, Manifest, Verdict]
"""A bundle of a report: what it is called, its manifest, what was found."""


class Column(NamedTuple):
    """One backend of one bundle."""

    name: str
    manifest: Manifest
    measured: BackendResult


def columns_of(entries: Sequence[ReportEntry]) -> list[Column]:
    """Every backend of every bundle, named by the backend alone where there is one bundle."""
    return [
        Column(
            column_name(name, measured.backend) if len(entries) > 1 else measured.backend,
            manifest,
            measured,
        )
        for name, manifest, verdict in entries
        for measured in verdict.backends
    ]


def labels(bundles: Sequence[str]) -> dict[str, str]:
    """What each of some bundles is called: its directory's name, or its path where two share it."""
    names = [Path(bundle).resolve().name for bundle in bundles]
    alone = len(set(names)) == len(names)
    return {path: name if alone else path for path, name in zip(bundles, names, strict=True)}


def column_name(bundle: str, backend: str) -> str:
    """What a backend of one of several bundles is called."""
    return f"{bundle} · {backend}"


def render_report(
    title: str, entries: Sequence[ReportEntry], between: Sequence[BackendPair] = ()
) -> str:
    """report.html as text: no external resources, no script, the same bytes for the same figures.

    between: beyond what the verdicts hold. Needs jinja2 and matplotlib (the `export` extra).
    """
    import jinja2

    from retnet_edge.runtime.report.plots import draw_memory, draw_parity, draw_side_by_side

    template = (
        files("retnet_edge.runtime.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    columns = columns_of(entries)
    cases = memory_cases(entries)
    several = len(columns) > 1
    return environment.from_string(template).render(
        title=title,
        subtitles=[
            f"{name}: {m.model.kind}, {m.model.parameters:,} parameters, recipe "
            f"{m.quantization.recipe}"
            for name, m, _ in entries
        ],
        status="verified" if all(v.verified for _, _, v in entries) else "unverified",
        reasons=all_reasons(entries),
        side_header=("figure", *(c.name for c in columns)),
        side_rows=side_rows([(c.manifest, c.measured) for c in columns]) if several else [],
        backend_pair_header=BACKEND_PAIR_HEADER,
        backend_pair_rows=backend_pair_rows(
            [*(p for _, _, v in entries for p in v.between), *between]
        ),
        columns=[
            {
                "heading": f"{c.name}: " if several else "",
                "checks": c.measured.checks,
                "parity_rows": parity_rows(c.measured.parity),
                "position_rows": position_rows(c.measured.parity),
                "probe_rows": probe_rows(c.measured.parity),
                "block_rows": block_rows(c.measured.parity),
                "worst_rows": worst_rows(c.measured.parity),
                "profile_rows": profile_rows(c.measured),
                "plots": draw_parity(c.measured.parity, f"c{index}-" if several else ""),
            }
            for index, c in enumerate(columns)
        ],
        position_header=POSITION_HEADER,
        probe_header=PROBE_HEADER,
        block_header=BLOCK_HEADER,
        worst_header=WORST_HEADER,
        profile_header=PROFILE_HEADER,
        memory_header=("bytes", *(name for name, _, _ in cases)),
        memory_rows=memory_rows([c for _, c, _ in cases], [p for _, _, p in cases]),
        bundles=[
            {
                "heading": f"Bundle {name}" if len(entries) > 1 else "Bundle",
                "rows": bundle_rows(manifest, verdict.measured_with),
                "files": [
                    (file, f"{entry.size:,}", entry.sha256)
                    for file, entry in sorted(manifest.files.items())
                    if not file.startswith("reports/")
                ],
            }
            for name, manifest, verdict in entries
        ],
        plots={
            **draw_memory([(name, case) for name, case, _ in cases]),
            **(
                draw_side_by_side([(c.name, c.measured.parity) for c in columns]) if several else {}
            ),
        },
    )


def all_reasons(entries: Sequence[ReportEntry]) -> list[str]:
    """Why not verified; a bundle's name in front where there are several."""
    return [
        f"{name}: {reason}" if len(entries) > 1 else reason
        for name, _, verdict in entries
        for reason in verdict.reasons
    ]


def memory_cases(entries: Sequence[ReportEntry]) -> list[tuple[str, Memory, int | None]]:
    """(name, memory, planned bytes) of every column that has one, then of the first baseline."""
    columns = columns_of(entries)
    cases = [
        (c.name if len(columns) > 1 else c.measured.memory.model, c.measured.memory, planned)
        for c in columns
        if c.measured.memory is not None
        for planned in [c.measured.planned_bytes]
    ]
    baselines = [verdict.baseline for _, _, verdict in entries if verdict.baseline is not None]
    return [*cases, *((case.model, case, None) for case in baselines[:1])]
