"""Rows of the tables that a verification prints on a terminal: one figure each, a cell a column.

The page's rows (`tables.py`) put up to three figures into a cell; here there is no room for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from retnet_edge.runtime.memory.memory import Memory
from retnet_edge.runtime.memory.slope import Slope
from retnet_edge.runtime.parity.backend_pairs import BackendPair
from retnet_edge.runtime.parity.parity import Parity
from retnet_edge.runtime.parity.probes import FAR_POSITION, PositionProbe
from retnet_edge.runtime.report.page import Column
from retnet_edge.runtime.report.tables import Rows, above, graph_bytes, number, percent

T = TypeVar("T")


def _of(
    label: str, parts: Sequence[T | None], value: Callable[[T], float | None]
) -> tuple[str, ...]:
    """A row of what only some columns have: a dash for the others."""
    return (label, *(number(None if part is None else value(part)) for part in parts))


def parity_table(columns: Sequence[Column]) -> Rows:
    """(figure, a text for each column): everything that was measured over all positions."""
    found = [c.measured.parity for c in columns]
    figures = [parity.figures for parity in found]
    prefill = next((parity.prefill for parity in found if parity.prefill is not None), None)

    def row(label: str, value: Callable[[Parity], float | None], digits: str = ".3g") -> None:
        rows.append((label, *(number(value(parity), digits) for parity in found)))

    def share(label: str, values: Sequence[float]) -> None:
        rows.append((label, *map(percent, values)))

    def far(parity: Parity) -> float | None:
        return max((place.figures.mean_kl for place in parity.places[1:]), default=None)

    rows: Rows = []
    row("held-out tokens", lambda p: p.figures.tokens, ",d")
    row("contexts", lambda p: p.contexts, ",d")
    sizes = [graph_bytes(c.manifest, c.measured) for c in columns]
    rows.append(("graphs and weights, bytes", *(f"{size:,}" for size in sizes)))
    row("largest logit error", lambda p: p.figures.max_abs_logit_error)
    row("mean logit error", lambda p: p.figures.mean_abs_logit_error)
    row("KL", lambda p: p.figures.mean_kl)
    row("KL, 50 %", lambda p: p.figures.p50_kl)
    row("KL, 90 %", lambda p: p.figures.p90_kl)
    row("KL, 99 %", lambda p: p.figures.p99_kl)
    row("KL, largest", lambda p: p.figures.max_kl)
    row("KL, first halves", lambda p: p.first_half.mean_kl)
    row("KL, second halves", lambda p: p.second_half.mean_kl)
    row("  their ratio", lambda p: p.halves_kl_ratio)
    row(f"KL at {FAR_POSITION:,}", far)
    share("top-1 agreement", [f.top1_agreement for f in figures])
    share("top-5 agreement", [f.top5_agreement for f in figures])
    rows.append(("Δp, mean", *(f"{100 * f.mean_delta_p:+.3f} %" for f in figures)))
    share("Δp, rms", [f.rms_delta_p for f in figures])
    row("perplexity", lambda p: p.figures.perplexity_bundle, ".4f")
    row("  float64 model", lambda p: p.figures.perplexity_reference, ".4f")
    row("  their ratio", lambda p: p.figures.perplexity_ratio, ".5f")
    row("bits per token", lambda p: p.bits_per_token_bundle, ".4f")
    row("  float64 model", lambda p: p.bits_per_token_reference, ".4f")
    row("bits per byte", lambda p: p.bits_per_byte_bundle, ".4f")
    row("  float64 model", lambda p: p.bits_per_byte_reference, ".4f")
    row("largest state error", lambda p: p.figures.max_abs_state_error)
    row("  relative", lambda p: p.figures.relative_state_error)
    row("error after last block", lambda p: p.blocks[-1].relative if p.blocks else None)
    if prefill is not None:
        prefills = [parity.prefill for parity in found]
        tokens = f"prefill of {prefill.tokens:,}"
        rows.append(_of(f"{tokens}: logit error", prefills, lambda p: p.max_abs_logit_error))
        rows.append(_of("  state error", prefills, lambda p: p.max_abs_state_error))
        rows.append(_of("  state error, relative", prefills, lambda p: p.relative_state_error))
        rows.append(_of(f"  KL of {prefill.following} steps after", prefills, lambda p: p.mean_kl))
    goldens = [parity.golden for parity in found]
    if any(goldens):
        rows.append(_of("golden.npz: logit error", goldens, lambda g: g.near_logit_error))
        rows.append(_of(f"  at {FAR_POSITION:,}", goldens, lambda g: g.far_logit_error))
        rows.append(_of("  state error, relative", goldens, lambda g: g.relative_state_error))
    return rows


def position_table(columns: Sequence[Parity]) -> Rows:
    """(positions, mean KL of each column): replayed contexts are the same for all."""
    places = [(bucket.first, bucket.last) for bucket in columns[0].buckets]
    found = [{(b.first, b.last): b.figures.mean_kl for b in parity.buckets} for parity in columns]
    return [
        (f"{first:,} to {last:,}", *(number(by_place.get((first, last))) for by_place in found))
        for first, last in places
    ]


def place_table(places: Sequence[PositionProbe]) -> Rows:
    """(figure, a text for each place), under the places' positions."""
    figures = [place.figures for place in places]
    return [
        ("after tokens", *(f"{place.prefix:,}" for place in places)),
        ("tokens", *(f"{f.tokens:,}" for f in figures)),
        ("largest logit error", *(number(f.max_abs_logit_error) for f in figures)),
        ("mean logit error", *(number(f.mean_abs_logit_error) for f in figures)),
        ("KL", *(number(f.mean_kl) for f in figures)),
        ("top-1 agreement", *(percent(f.top1_agreement) for f in figures)),
        ("largest state error", *(number(f.max_abs_state_error) for f in figures)),
    ]


def pair_table(pairs: Sequence[BackendPair]) -> Rows:
    """(figure, a text for each pair)."""
    figures = [pair.figures for pair in pairs]
    return [
        ("recipe", *(pair.recipe for pair in pairs)),
        ("tokens", *(f"{f.tokens:,}" for f in figures)),
        ("largest logit error", *(number(f.max_abs_logit_error) for f in figures)),
        ("KL", *(number(f.mean_kl) for f in figures)),
        ("top-1 agreement", *(percent(f.top1_agreement) for f in figures)),
        ("perplexity ratio", *(number(f.perplexity_ratio, ".5f") for f in figures)),
        ("state error, relative", *(number(f.relative_state_error) for f in figures)),
    ]


def memory_table(cases: Sequence[Memory], planned: Sequence[int | None]) -> Rows:
    """(figure, a text for each case); planned: bytes by the memory plan of the step's own file."""
    rows: Rows = []

    def row(label: str, value: Callable[[Memory], float], digits: str = ",d") -> None:
        rows.append((label, *(format(value(case), digits) for case in cases)))

    def slope(label: str, value: Callable[[Memory], Slope]) -> None:
        row(label, lambda case: value(case).bytes_per_token, ",.3f")
        row("  95 % from", lambda case: value(case).low, ",.3f")
        row("  95 % to", lambda case: value(case).high, ",.3f")

    row("steps", lambda case: case.steps)
    row("  after a warm-up of", lambda case: case.warmup)
    slope("growth, anonymous", lambda case: case.anonymous_slope)
    row("  states by the manifest", lambda case: case.state_bytes_per_token)
    slope("growth, file-backed", lambda case: case.file_backed_slope)
    row("  in all", lambda case: case.file_backed_growth)
    row("states at the end", lambda case: case.state_bytes)
    row("  by the manifest", lambda case: case.state_bytes_manifest)
    rows.append(("planned by the step's file", *(number(size, ",d") for size in planned)))
    row("process before the bundle", lambda case: case.base_bytes)
    row("resident after the warm-up", lambda case: case.opened_bytes)
    row("anonymous at the end", lambda case: case.anonymous[-1])
    row("  above process before", above)
    row("file-backed at the end", lambda case: case.file_backed[-1])
    row("load, s", lambda case: case.load_seconds, ".3f")
    row("step on one thread, ms", lambda case: case.step_milliseconds[1], ".3f")
    row("  lower quartile", lambda case: case.step_milliseconds[0], ".3f")
    row("  upper quartile", lambda case: case.step_milliseconds[2], ".3f")
    row("tokens/s", lambda case: case.tokens_per_second, ",.0f")
    return rows
