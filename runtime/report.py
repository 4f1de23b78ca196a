"""What a person reads of a verification: one HTML page on its own, and tables on a terminal."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Literal

import msgspec

from retnet_edge.runtime.manifest import Manifest
from retnet_edge.runtime.memory import Memory
from retnet_edge.runtime.parity import Parity
from retnet_edge.runtime.probes import FAR_POSITION
from retnet_edge.runtime.verdict import Check

if TYPE_CHECKING:
    from rich.console import Console

Rows = list[tuple[str, ...]]

POSITION_HEADER = (
    "positions", "tokens", "mean KL", "99 % KL", "largest error", "mean error", "top-1",
    "ppl ratio", "state error", "state rel.",
)  # fmt: skip
TERMINAL_COLUMNS = (0, 2, 4, 6, 7, 9)  # of POSITION_HEADER: what fits 80 characters
PLACE_HEADER = ("place", "tokens", "largest error", "mean error", "mean KL", "top-1", "state error")


class Verdict(msgspec.Struct, frozen=True):
    """What `verify` found. reasons: why the bundle is not verified; empty where it is.

    memory is None where the system cannot measure it; baseline is the memory of a key-value cache
    Transformer, for comparison only. measured_with: versions of what ran it.
    """

    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    parity: Parity
    memory: Memory | None
    baseline: Memory | None
    measured_with: dict[str, str]

    @property
    def verified(self) -> bool:
        """True where every figure is within its bound."""
        return not self.reasons

    @property
    def status(self) -> Literal["verified", "unverified"]:
        """ "verified" or "unverified"."""
        return "verified" if self.verified else "unverified"


def render_report(title: str, manifest: Manifest, verdict: Verdict) -> str:
    """report.html as text: no external resources, no script, the same bytes for the same figures.

    Needs jinja2 and matplotlib (the `export` extra).
    """
    import jinja2

    from retnet_edge.runtime.plots import draw_plots

    template = files("retnet_edge.runtime").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    cases = [case for case in (verdict.memory, verdict.baseline) if case is not None]
    return environment.from_string(template).render(
        title=title,
        subtitle=f"{manifest.model.kind}, {manifest.model.parameters:,} parameters, recipe "
        f"{manifest.quantization.recipe}",
        status=verdict.status,
        reasons=verdict.reasons,
        checks=verdict.checks,
        parity_rows=parity_rows(verdict.parity),
        position_header=POSITION_HEADER,
        position_rows=position_rows(verdict.parity),
        place_header=PLACE_HEADER,
        place_rows=place_rows(verdict.parity),
        memory_header=("bytes", *(case.model for case in cases)),
        memory_rows=memory_rows(cases),
        bundle_rows=bundle_rows(manifest, verdict.measured_with),
        file_rows=[
            (name, f"{entry.size:,}", entry.sha256)
            for name, entry in sorted(manifest.files.items())
            if not name.startswith("reports/")
        ],
        plots=draw_plots(verdict.parity, verdict.memory, verdict.baseline),
    )


def print_report(title: str, verdict: Verdict, console: Console | None = None) -> None:
    """The figures as tables on `console` (None: standard output)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()

    def table(name: str, header: tuple[str, ...], rows: Rows) -> None:
        shown = Table(*header, title=name, title_justify="left", highlight=False)
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in rows:
            shown.add_row(*map(Text, row))
        console.print(shown)

    rows: Rows = [
        (c.name, c.value, c.bound, "within" if c.passed else "OUTSIDE") for c in verdict.checks
    ]
    table(f"{title}: {verdict.status}", ("figure", "measured", "bound", "verdict"), rows)
    table("Parity", ("figure", "value"), parity_rows(verdict.parity))
    rows = [tuple(row[i] for i in TERMINAL_COLUMNS) for row in position_rows(verdict.parity)]
    table("Against position", tuple(POSITION_HEADER[i] for i in TERMINAL_COLUMNS), rows)
    if places := place_rows(verdict.parity):
        table("Far positions", PLACE_HEADER, places)
    cases = [case for case in (verdict.memory, verdict.baseline) if case is not None]
    if cases:
        table("Memory", ("bytes", *(case.model for case in cases)), memory_rows(cases))
    for reason in verdict.reasons:
        console.print(Text(reason, style="red"))


def number(value: float | None, digits: str = ".3g") -> str:
    """A figure as text; a dash for one that was not measured."""
    return "–" if value is None else format(value, digits)


def percent(value: float) -> str:
    """A share as a percentage with two decimals."""
    return f"{100 * value:.2f} %"


def parity_rows(parity: Parity) -> Rows:
    """(name, value) of the figures over all positions."""
    f = parity.figures
    rows: Rows = [
        ("held-out tokens, contexts", f"{f.tokens:,}, {parity.contexts:,}"),
        ("logit error, largest / mean", f"{f.max_abs_logit_error:.3g} / "
         f"{f.mean_abs_logit_error:.3g}"),
        ("KL, mean", number(f.mean_kl)),
        ("KL, 50 % / 90 % / 99 %", f"{f.p50_kl:.3g} / {f.p90_kl:.3g} / {f.p99_kl:.3g}"),
        ("KL, largest", number(f.max_kl)),
        ("KL, first halves / second halves / ratio", f"{parity.first_half.mean_kl:.3g} / "
         f"{parity.second_half.mean_kl:.3g} / {parity.halves_kl_ratio:.3g}"),
        ("top-1 agreement", percent(f.top1_agreement)),
        ("perplexity, reference / bundle", f"{f.perplexity_reference:.4f} / "
         f"{f.perplexity_bundle:.4f}"),
        ("perplexity ratio", number(f.perplexity_ratio, ".5f")),
        ("bits per token, reference / bundle", f"{parity.bits_per_token_reference:.4f} / "
         f"{parity.bits_per_token_bundle:.4f}"),
        ("state error, largest / relative", f"{number(f.max_abs_state_error)} / "
         f"{number(f.relative_state_error)}"),
    ]  # fmt: skip
    if parity.bits_per_byte_reference is not None:
        both = (
            f"{parity.bits_per_byte_reference:.4f} / {number(parity.bits_per_byte_bundle, '.4f')}"
        )
        rows.append(("bits per byte, reference / bundle", both))
    if (prefill := parity.prefill) is not None:
        name = f"prefill of {prefill.tokens:,} tokens + 1 step, against steps"
        rows.append((f"{name}: logits, largest", number(prefill.max_abs_logit_error)))
        both = f"{prefill.max_abs_state_error:.3g} / {prefill.relative_state_error:.3g}"
        rows.append((f"{name}: states, largest / relative", both))
        rows.append((f"mean KL of {prefill.following} steps after it", number(prefill.mean_kl)))
    if (golden := parity.golden) is not None:
        both = f"{golden.near_logit_error:.3g} / {golden.far_logit_error:.3g}"
        rows.append((f"golden.npz: logits, largest / from position {FAR_POSITION:,}", both))
        rows.append(("golden.npz: states, relative", number(golden.relative_state_error)))
    return rows


def position_rows(parity: Parity) -> Rows:
    """One row a bucket of positions, under POSITION_HEADER."""
    rows: Rows = []
    for bucket in parity.buckets:
        f = bucket.figures
        figures = (f.mean_kl, f.p99_kl, f.max_abs_logit_error, f.mean_abs_logit_error)
        rows.append((
            f"{bucket.first:,} to {bucket.last:,}", f"{f.tokens:,}", *map(number, figures),
            percent(f.top1_agreement), number(f.perplexity_ratio, ".5f"),
            number(f.max_abs_state_error), number(f.relative_state_error),
        ))  # fmt: skip
    return rows


def place_rows(parity: Parity) -> Rows:
    """One row a far place (and the near one it is held against), under PLACE_HEADER."""
    rows: Rows = []
    for place in parity.places:
        f = place.figures
        figures = (f.max_abs_logit_error, f.mean_abs_logit_error, f.mean_kl)
        rows.append((
            f"{place.position:,}, after {place.prefix:,} tokens", f"{f.tokens:,}",
            *map(number, figures), percent(f.top1_agreement), number(f.max_abs_state_error),
        ))  # fmt: skip
    return rows


def memory_rows(cases: list[Memory]) -> Rows:
    """One row a figure, one column a bundle."""

    def slope(case: Memory, kind: str) -> str:
        s = case.anonymous_slope if kind == "anonymous" else case.file_backed_slope
        return f"{s.bytes_per_token:,.3f} [{s.low:,.3f}, {s.high:,.3f}]"

    if not cases:
        return []
    return [
        ("steps (after a warm-up of)", *(f"{c.steps:,} ({c.warmup:,})" for c in cases)),
        ("anonymous, bytes a token [95 %]", *(slope(c, "anonymous") for c in cases)),
        ("state, bytes a token by the manifest", *(f"{c.state_bytes_per_token:,}" for c in cases)),
        ("file-backed, bytes a token [95 %]", *(slope(c, "file-backed") for c in cases)),
        ("file-backed growth", *(f"{c.file_backed_growth:,}" for c in cases)),
        ("states at the end, measured", *(f"{c.state_bytes:,}" for c in cases)),
        ("states at the end, by the manifest", *(f"{c.state_bytes_manifest:,}" for c in cases)),
        ("process before the bundle", *(f"{c.base_bytes:,}" for c in cases)),
        ("resident after the warm-up", *(f"{c.opened_bytes:,}" for c in cases)),
        ("anonymous at the end", *(f"{c.anonymous[-1]:,}" for c in cases)),
        ("file-backed at the end", *(f"{c.file_backed[-1]:,}" for c in cases)),
    ]


def bundle_rows(manifest: Manifest, measured_with: dict[str, str]) -> Rows:
    """(fact, value): model, recipe, states, provenance, versions."""
    size = sum(e.size for n, e in manifest.files.items() if not n.startswith("reports/"))
    quantized: dict[str, int] = {}
    for tensor in manifest.quantization.tensors:
        quantized[tensor.scheme] = quantized.get(tensor.scheme, 0) + 1
    schemes = ", ".join(f"{count} × {scheme}" for scheme, count in sorted(quantized.items()))
    return [
        ("model", f"{manifest.model.kind}, {manifest.model.parameters:,} parameters"),
        ("vocabulary", f"{manifest.model.vocab_size:,}"),
        ("bytes on disk", f"{size:,}"),
        ("state bytes of a sequence", f"{manifest.state_bytes(1):,} after one token"),
        ("recipe", manifest.quantization.recipe),
        ("quantized matrices", schemes or "none"),
        ("checkpoint SHA-256", manifest.provenance.checkpoint_sha256),
        *((f"made with {k}", v) for k, v in sorted(manifest.provenance.versions.items())),
        *((f"verified with {k}", v) for k, v in sorted(measured_with.items())),
    ]
