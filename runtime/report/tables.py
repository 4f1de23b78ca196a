"""The tables of a verification's page: rows of text (a terminal's are in `terminal_tables.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retnet_edge.runtime.bundle.manifest import Manifest
from retnet_edge.runtime.memory.memory import Memory
from retnet_edge.runtime.parity.backend_pairs import BackendPair
from retnet_edge.runtime.parity.parity import Parity
from retnet_edge.runtime.parity.probes import FAR_POSITION
from retnet_edge.runtime.report.verdict import BackendResult

Rows = list[tuple[str, ...]]

POSITION_HEADER = (
    "positions", "tokens", "mean KL", "99 % KL", "largest error", "mean error", "top-1",
    "ppl ratio", "state error", "state rel.",
)  # fmt: skip
PROBE_HEADER = ("place", "tokens", "largest error", "mean error", "mean KL", "top-1", "state error")

WORST_HEADER = ("KL", "context, position", "text", "follows", "float64 says", "bundle says")
BLOCK_HEADER = ("after block", "error, relative")
PROFILE_HEADER = ("operator", "calls a step", "µs a step", "share")
PROFILE_ROWS = 10
BACKEND_PAIR_HEADER = (
    "first | second", "tokens", "largest error", "KL", "top-1", "ppl ratio", "state rel.",
)  # fmt: skip


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
        ("top-1 / top-5 agreement", f"{percent(f.top1_agreement)} / {percent(f.top5_agreement)}"),
        ("Δp of the token that follows, mean / rms", f"{100 * f.mean_delta_p:+.3f} % / "
         f"{percent(f.rms_delta_p)}"),
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


def probe_rows(parity: Parity) -> Rows:
    """One row a far place (and the near one it is held against), under PROBE_HEADER."""
    rows: Rows = []
    for place in parity.places:
        f = place.figures
        figures = (f.max_abs_logit_error, f.mean_abs_logit_error, f.mean_kl)
        rows.append((
            f"{place.position:,}, after {place.prefix:,} tokens", f"{f.tokens:,}",
            *map(number, figures), percent(f.top1_agreement), number(f.max_abs_state_error),
        ))  # fmt: skip
    return rows


def worst_rows(parity: Parity) -> Rows:
    """One row a position of large KL, under WORST_HEADER; tokens in quotes, which show spaces."""

    def token(text: str | None) -> str:
        return "–" if text is None else f"“{text}”"

    return [
        (
            f"{place.kl:.3g}",
            f"{place.context + 1:,}, {place.position:,}",
            f"…{place.before}" if place.position else place.before,
            *map(token, (place.follows, place.best_reference, place.best_bundle)),
        )
        for place in parity.worst
    ]


def block_rows(parity: Parity) -> Rows:
    """One row a block, under BLOCK_HEADER."""
    return [(str(error.block), number(error.relative)) for error in parity.blocks]


def memory_rows(cases: Sequence[Memory], planned: Sequence[int | None]) -> Rows:
    """One row a figure, one column a case; planned: by the memory plan of the step's own file."""

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
        ("planned by the step's own file", *(number(p, ",d") for p in planned)),
        ("process before the bundle", *(f"{c.base_bytes:,}" for c in cases)),
        ("resident after the warm-up", *(f"{c.opened_bytes:,}" for c in cases)),
        ("anonymous at the end", *(f"{c.anonymous[-1]:,}" for c in cases)),
        ("of it above the process before", *(f"{above(c):,}" for c in cases)),
        ("file-backed at the end", *(f"{c.file_backed[-1]:,}" for c in cases)),
        ("load, seconds", *(f"{c.load_seconds:.3f}" for c in cases)),
        ("step on one thread, ms [quartiles]", *(map(milliseconds, cases))),
        ("tokens a second", *(f"{c.tokens_per_second:,.0f}" for c in cases)),
    ]


def above(case: Memory) -> int:
    """Anonymous bytes at the end above those of the process before the bundle."""
    return case.anonymous[-1] - case.base_anonymous_bytes


def milliseconds(case: Memory) -> str:
    """The median step and its quartiles."""
    low, middle, high = case.step_milliseconds
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def slope(case: Memory) -> str:
    """Anonymous bytes a token and their 95 % interval."""
    s = case.anonymous_slope
    return f"{s.bytes_per_token:.3g} [{s.low:.3g}, {s.high:.3g}]"


def graph_bytes(manifest: Manifest, measured: BackendResult) -> int:
    """Of a backend's graphs and weights."""
    return sum(manifest.files[name].size for name in manifest.files_of(measured.backend))


def side_rows(columns: Sequence[tuple[Manifest, BackendResult]]) -> Rows:
    """One row a figure, one column a backend of a bundle: what a reader chooses by."""

    def far(measured: BackendResult) -> str:
        return number(max((p.figures.mean_kl for p in measured.parity.places[1:]), default=None))

    def last_block(measured: BackendResult) -> str:
        return number(measured.parity.blocks[-1].relative if measured.parity.blocks else None)

    def memory(measured: BackendResult, show: Callable[[Memory], str]) -> str:
        return "–" if measured.memory is None else show(measured.memory)

    found = [measured for _, measured in columns]
    figures = [measured.parity.figures for measured in found]
    prefills = [measured.parity.prefill for measured in found]
    return [
        ("recipe", *(manifest.quantization.recipe for manifest, _ in columns)),
        ("figures out of bounds", *(f"{len(m.reasons)} of {len(m.checks)}" for m in found)),
        ("bytes of graphs and weights", *(f"{graph_bytes(*column):,}" for column in columns)),
        ("logit error, largest", *(number(f.max_abs_logit_error) for f in figures)),
        ("KL, mean", *(number(f.mean_kl) for f in figures)),
        ("KL, 99 %", *(number(f.p99_kl) for f in figures)),
        ("top-1 agreement", *(percent(f.top1_agreement) for f in figures)),
        ("top-5 agreement", *(percent(f.top5_agreement) for f in figures)),
        ("Δp, rms", *(percent(f.rms_delta_p) for f in figures)),
        ("bits per byte", *(number(m.parity.bits_per_byte_bundle, ".4f") for m in found)),
        ("error after the last block", *map(last_block, found)),
        ("perplexity ratio", *(number(f.perplexity_ratio, ".5f") for f in figures)),
        ("state error, relative", *(number(f.relative_state_error) for f in figures)),
        (f"KL at position {FAR_POSITION:,}", *map(far, found)),
        ("KL of steps after a prefill", *(number(p.mean_kl if p else None) for p in prefills)),
        ("anonymous, bytes a token [95 %]", *(memory(m, slope) for m in found)),
        ("planned bytes by the step's file", *(number(m.planned_bytes, ",d") for m in found)),
        ("anonymous above the process", *(memory(m, lambda c: f"{above(c):,}") for m in found)),
        ("load, seconds", *(memory(m, lambda c: f"{c.load_seconds:.3f}") for m in found)),
        ("step, ms [quartiles]", *(memory(m, milliseconds) for m in found)),
        ("tokens a second", *(memory(m, lambda c: f"{c.tokens_per_second:,.0f}") for m in found)),
    ]


def profile_rows(measured: BackendResult) -> Rows:
    """The ten operators that take longest, under PROFILE_HEADER."""
    steps = measured.profiled_steps
    total = sum(operator.microseconds for operator in measured.operators)
    longest = sorted(measured.operators, key=lambda operator: -operator.microseconds)
    return [
        (
            operator.name,
            f"{operator.calls / steps:,.0f}",
            f"{operator.microseconds / steps:,.1f}",
            f"{100 * operator.microseconds / total:.1f} %",
        )
        for operator in longest[:PROFILE_ROWS]
        if total
    ]


def backend_pair_rows(pairs: Sequence[BackendPair]) -> Rows:
    """One row a pair, under BACKEND_PAIR_HEADER."""
    return [
        (
            f"{pair.recipe}: {pair.first} | {pair.second}",
            f"{pair.figures.tokens:,}",
            number(pair.figures.max_abs_logit_error),
            number(pair.figures.mean_kl),
            percent(pair.figures.top1_agreement),
            number(pair.figures.perplexity_ratio, ".5f"),
            number(pair.figures.relative_state_error),
        )
        for pair in pairs
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
