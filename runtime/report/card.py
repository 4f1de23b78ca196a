"""A section for a model card: what was quantized, what it costs, and how that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from retnet_edge.runtime.bundle.manifest import Manifest
from retnet_edge.runtime.report.page import ReportEntry, columns_of
from retnet_edge.runtime.report.tables import graph_bytes, number, percent, slope
from retnet_edge.runtime.report.verdict import BackendResult

HEADER = (
    "recipe", "backend", "MB", "perplexity ratio", "bits a byte", "KL, mean", "KL, 99 %", "top-1",
    "top-5", "state, bytes", "growth, bytes a token", "verified",
)  # fmt: skip


def model_card(entries: Sequence[ReportEntry]) -> str:
    """Markdown of bundles of one checkpoint: a table with a row for every backend of each."""
    columns = columns_of(entries)
    _, manifest, verdict = entries[0]
    parity = columns[0].measured.parity
    f = parity.figures
    lines = [
        "## Quantization and export",
        "",
        f"{manifest.model.parameters:,} parameters ({manifest.model.kind}), checkpoint SHA-256 "
        f"`{manifest.provenance.checkpoint_sha256}`.",
        "",
        _line(HEADER),
        _line(["---"] * len(HEADER)),
        *(_line(_row(column.manifest, column.measured)) for column in columns),
        "",
        f"Against the checkpoint in float64 on {f.tokens:,} held-out tokens in {parity.contexts:,} "
        f"contexts, step by step: its perplexity is {f.perplexity_reference:.4f} "
        f"({number(parity.bits_per_byte_reference, '.4f')} bits a byte). KL is KL(float64 ‖ "
        "bundle) in nats a token; top-5 is the share of the five likeliest tokens that both have. "
        "Growth is of anonymous memory while the text gets longer, with its 95 % interval.",
        "",
        "Measured by `retnet-edge verify` with "
        + ", ".join(f"{name} {value}" for name, value in sorted(verdict.measured_with.items()))
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _row(manifest: Manifest, measured: BackendResult) -> list[str]:
    f, parity, memory = measured.parity.figures, measured.parity, measured.memory
    return [
        manifest.quantization.recipe,
        measured.backend,
        f"{graph_bytes(manifest, measured) / 1e6:.1f}",
        number(f.perplexity_ratio, ".5f"),
        number(parity.bits_per_byte_bundle, ".4f"),
        number(f.mean_kl, ".2e"),
        number(f.p99_kl, ".2e"),
        percent(f.top1_agreement),
        percent(f.top5_agreement),
        f"{manifest.state_bytes(1):,}",
        "–" if memory is None else slope(memory),
        "no" if measured.reasons else "yes",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
