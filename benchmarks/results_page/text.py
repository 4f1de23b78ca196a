"""The sections of docs/results.md on the comparisons: tables, and in words what they say."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import combinations

from benchmarks.comparisons.head_shape_records import ShapeCosts
from benchmarks.comparisons.records import Failed, Record, Result
from benchmarks.comparisons.runs import ABLATIONS, CONTEXTS, SEEDS, SMALLEST, Run, Size, Variant

Records = dict[str, Record]

FIRST_SEED = SEEDS[0]
PAPER_FULL = 26.05
PAPER_ABLATIONS: dict[Variant, float] = {
    "no-gate": 27.84,
    "no-group-norm": 27.54,
    "gamma-1": 27.86,
    "one-gamma": 27.02,
    "small-heads": 27.68,
}
"""In-domain perplexity at 200M parameters (paper, table 6)."""
IN_WORDS: dict[Variant, str] = {
    "retnet": "RetNet, all parts",
    "transformer": "Transformer",
    "no-gate": "no swish gate",
    "no-group-norm": "no group norm",
    "gamma-1": "γ = 1",
    "one-gamma": "one γ, 127/128",
    "small-heads": "smaller heads",
    "wide-heads": "wide heads",
}
COMPARED: tuple[Size, ...] = ("10m", "25m", "60m")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    ]


def set_up(records: Records) -> list[str]:
    """What all runs have in common, and what not, from their own options."""
    abouts = [record.about for record in records.values()]

    def each(name: str) -> str:
        return _listed({_number(about.options[name]) for about in abouts})

    rates = {about.size: about.options["lr"] for about in abouts}
    rates_text = _listed([f"{rate:g} ({_size(size)})" for size, rate in rates.items()])
    tokens = sorted({r.result.tokens for r in records.values() if r.result})
    trained = _listed({f"{n / 1e6:.1f}M" for n in tokens})
    held = _listed({f"{about.train_tokens / 1e6:.1f}M" for about in abouts})
    epochs = _listed({f"{n / abouts[0].train_tokens:.1f}" for n in tokens})
    return [
        f"Each model saw {trained} tokens in {each('steps')} steps; the training text holds "
        f"{held}, so it was read {epochs} times. All had the same tokenizer and text, and seed "
        f"{FIRST_SEED} where no other is named; AdamW, learning rate {rates_text}, warm-up "
        f"{each('warmup')} steps, cosine to a tenth, clip {each('clip')}, dropout "
        f"{each('dropout')}, {each('precision')}. The rates were tuned for neither architecture. "
        "Perplexity (a token) and bits a byte are those of "
        "`checkpoints/edge-15m/heldout.txt`, every token, in float32, in contexts as long as in "
        f"training. Trained on {_listed({about.device for about in abouts})}, torch "
        f"{_listed({about.torch for about in abouts})}, "
        f"{_listed({str(about.parallel) for about in abouts})} processes at once.",
    ]


def sizes(records: Records) -> list[str]:
    """RetNet beside the Transformer, by size."""
    pairs = [(size.upper(), *_pair(records, Run("retnet", size))) for size in COMPARED]
    rows, words = _versus([(size, ours, theirs) for size, ours, theirs in pairs], "At {}")
    if not rows:
        return []
    gaps = _gaps((ours, theirs) for _, ours, theirs in pairs)
    if len(gaps) > 1:
        listed = ", ".join(_percent(gap) for gap in gaps)
        words.append(f"RetNet's perplexity over the Transformer's, from small to large: {listed}.")
    if gaps:
        ahead = sum(gap < 0 for gap in gaps)
        agrees = "agrees" if ahead == 0 else "does not agree"
        words.append(
            "The paper sees RetNet ahead from about 2 billion parameters on (section 3.2, figure "
            f"5), far above these sizes; here RetNet is ahead at {ahead} of {len(gaps)}, which "
            f"{agrees} with that."
        )
    header = ["size", *_VERSUS_COLUMNS]
    return ["## RetNet against the Transformer", "", *table(header, rows), "", " ".join(words)]


def contexts(records: Records) -> list[str]:
    """RetNet beside the Transformer, by length of context."""
    pairs = [
        (str(context), *_pair(records, Run("retnet", SMALLEST, context))) for context in CONTEXTS
    ]
    rows, words = _versus(pairs, "At context {}")
    if len(rows) < 2:
        return []
    header = ["context", *_VERSUS_COLUMNS]
    text = (
        f"The {SMALLEST.upper()} models, as many tokens a step in each; trained and judged at the "
        "context's length."
    )
    return ["## Length of context", "", text, "", *table(header, rows), "", " ".join(words)]


def seeds(records: Records) -> list[str]:
    """Means and ranges where a run was repeated with other seeds."""
    groups = _by_seed(records)
    several = {key: found for key, found in groups.items() if len(found) > 1}
    if not several:
        return []
    rows = []
    for (variant, size, context), found in several.items():
        perplexities = [result.perplexity for result in found]
        mean = statistics.mean(perplexities)
        rows.append(
            [
                f"{IN_WORDS[variant]}, {_size(size)}, context {context}",
                str(len(found)),
                ", ".join(f"{p:.2f}" for p in perplexities),
                f"{mean:.2f}",
                f"{100 * (max(perplexities) - min(perplexities)) / mean:.2f} %",
            ]
        )
    words = []
    for (one, mine), (other, theirs) in combinations(several.items(), 2):
        a, b = ([result.perplexity for result in found] for found in (mine, theirs))
        names = f"{_name(one)} and {_name(other)}"
        if max(a) < min(b) or max(b) < min(a):
            better = one if max(a) < min(b) else other
            words.append(f"{names}: every seed of {_name(better)} is the better one.")
        else:
            words.append(f"{names}: the ranges overlap, so these seeds do not settle their order.")
    header = ["model", "seeds", "perplexities", "mean", "range"]
    return ["## Spread of seeds", "", *table(header, rows), "", " ".join(words)]


def ablations(records: Records) -> list[str]:
    """The paper's table 6 beside ours."""
    full = _result(records, Run("retnet", SMALLEST))
    runs = {variant: records.get(Run(variant, SMALLEST).name) for variant in ABLATIONS}
    known = {variant: record for variant, record in runs.items() if record}
    if full is None or not known:
        return []
    results = {v: r.result for v, r in known.items() if r.result}
    ours: dict[Variant, float] = {"retnet": full.perplexity}
    ours |= {variant: result.perplexity for variant, result in results.items() if result}
    paper: dict[Variant, float] = {"retnet": PAPER_FULL, **PAPER_ABLATIONS}
    rows = []
    for variant in sorted(ours, key=lambda variant: ours[variant]):
        record = records[Run(variant, SMALLEST).name]
        assert record.result is not None
        rows.append(
            [
                IN_WORDS[variant],
                f"{record.about.parameters:,}",
                f"{ours[variant]:.2f}",
                f"{record.result.bits_per_byte:.4f}",
                "" if variant == "retnet" else _percent(ours[variant] / ours["retnet"] - 1),
                f"{paper[variant]:.2f}",
                "" if variant == "retnet" else _percent(paper[variant] / PAPER_FULL - 1),
            ]
        )
    for variant, record in known.items():
        if isinstance(record.end, Failed):
            count = f"{record.about.parameters:,}"
            why = f"failed: {record.end.reason}"
            rows.append([IN_WORDS[variant], count, why, "", "", f"{paper[variant]:.2f}", ""])
    header = ["", "parameters", "perplexity", "bits a byte", "of all parts", "paper", "paper's"]
    text = (
        f"One part less, at {SMALLEST.upper()} (the paper: 200M, table 6). Without the gate, "
        "parameters are laid out as in a Transformer, as in the paper. Smaller heads are of half "
        "the width here (64 to 32), of a quarter there (256 to 64); the range of the decays stays."
    )
    words = order_in_words(ours, paper, _spread(records))
    return ["## Ablations", "", text, "", *table(header, rows), "", *words]


def order_in_words(
    ours: dict[Variant, float], paper: dict[Variant, float], spread: float | None
) -> list[str]:
    """Every pair whose order is not the paper's; `spread`: the widest range of seeds, relative."""
    lines = []
    for one, other in combinations(sorted(ours, key=lambda v: paper[v]), 2):
        if ours[one] <= ours[other]:
            continue
        gap = ours[one] / ours[other] - 1
        unsure = ""
        if spread is not None and gap <= spread:
            unsure = f"; that is within the range of seeds ({100 * spread:.2f} %)"
        lines.append(
            f"- the paper puts {IN_WORDS[one]} ({paper[one]:.2f}) before {IN_WORDS[other]} "
            f"({paper[other]:.2f}); here it comes after, {ours[one]:.2f} and {ours[other]:.2f}"
            f"{unsure}"
        )
    if not lines:
        return ["The order is the paper's."]
    count = len(ours) * (len(ours) - 1) // 2
    return [f"Where the order is not the paper's ({len(lines)} of {count} pairs):", "", *lines]


def head_shapes(records: Records, costs: ShapeCosts | None) -> list[str]:
    """Quality beside state bytes and CPU time of the two head shapes."""
    runs = [Run("wide-heads", "shape"), Run("retnet", "shape")]
    cpu = {shape.run: shape for shape in costs.shapes} if costs else {}
    rows = []
    for run in runs:
        record, cost = records.get(run.name), cpu.get(run.name)
        if record is None and cost is None:
            continue
        result = record.result if record else None
        if record:
            config = record.about.config
            shape = (config["heads"], config["key_head_dim"], config["value_head_dim"])
        else:
            assert cost is not None
            shape = (cost.heads, cost.key_head_dim, cost.value_head_dim)
        state = cost.state_bytes if cost else record.about.state_bytes if record else 0
        rows.append(
            [
                " × ".join(str(n) for n in shape),
                f"{record.about.parameters:,}" if record else "–",
                f"{result.perplexity:.2f}" if result else "–",
                f"{result.bits_per_byte:.4f}" if result else "–",
                f"{state:,}",
                f"{cost.milliseconds:.2f} ({cost.quartiles[0]:.2f} to {cost.quartiles[1]:.2f})"
                if cost
                else "–",
            ]
        )
    if not rows:
        return []
    words = ["d_model 768, three layers: few wide heads or many narrow ones."]
    if costs:
        words.append(
            f"Milliseconds: one token through the exported fp32 step, {costs.threads} thread of "
            f"{costs.machine}, the shapes in turns, median and quartiles of {costs.rounds} rounds "
            f"of {costs.steps} (`python -m benchmarks.comparisons heads`)."
        )
    wide, narrow = (_result(records, run) for run in runs)
    if wide and narrow:
        better, worse, name = (
            (wide, narrow, "wide") if wide.loss < narrow.loss else (narrow, wide, "narrow")
        )
        share = 100 * (worse.perplexity / better.perplexity - 1)
        words.append(
            f"The {name} heads predict better, by {share:.1f} % in perplexity; in the paper the "
            "wide ones do (key dim 256: 26.05, 64: 27.68, table 6)."
        )
    header = ["heads × keys × values", "parameters", "perplexity", "bits a byte", "state, bytes"]
    header.append("CPU ms a token")
    return ["## Shape of the heads", "", " ".join(words), "", *table(header, rows)]


_VERSUS_COLUMNS = [
    "parameters: RetNet",
    "Transformer",
    "perplexity: RetNet",
    "Transformer",
    "bits a byte: RetNet",
    "Transformer",
    "RetNet's perplexity",
]


def _versus(
    pairs: Iterable[tuple[str, Record | None, Record | None]], where: str
) -> tuple[list[list[str]], list[str]]:
    """Table rows, and a sentence for each pair of which both were trained."""
    rows, words = [], []
    for label, *pair in pairs:
        if not any(pair):
            continue
        results = [record.result if record else None for record in pair]
        ours, theirs = results
        gap = ours.perplexity / theirs.perplexity - 1 if ours and theirs else None
        rows.append(
            [
                label,
                *(f"{record.about.parameters:,}" if record else "–" for record in pair),
                *(f"{result.perplexity:.2f}" if result else "–" for result in results),
                *(f"{result.bits_per_byte:.4f}" if result else "–" for result in results),
                "–" if gap is None else _percent(gap),
            ]
        )
        if ours and theirs and gap is not None:
            better = "RetNet" if gap < 0 else "the Transformer"
            low, high = sorted((ours.perplexity, theirs.perplexity))
            words.append(
                f"{where.format(label)} {better} predicts better, {low:.2f} against {high:.2f}."
            )
    return rows, words


def _pair(records: Records, run: Run) -> tuple[Record | None, Record | None]:
    other = Run("transformer", run.size, run.context)
    return records.get(run.name), records.get(other.name)


def _result(records: Records, run: Run) -> Result | None:
    record = records.get(run.name)
    return record.result if record else None


def _gaps(pairs: Iterable[tuple[Record | None, Record | None]]) -> list[float]:
    results = [(a.result, b.result) for a, b in pairs if a and b]
    return [a.perplexity / b.perplexity - 1 for a, b in results if a and b]


def _by_seed(records: Records) -> dict[tuple[Variant, str, int], list[Result]]:
    groups: dict[tuple[Variant, str, int], list[Result]] = {}
    for record in sorted(records.values(), key=lambda record: record.about.seed):
        about = record.about
        if record.result:
            key = (_variant(about.variant), about.size, about.context)
            groups.setdefault(key, []).append(record.result)
    return groups


def _variant(name: str) -> Variant:
    return next(variant for variant in IN_WORDS if variant == name)


def _spread(records: Records) -> float | None:
    """The widest range of seeds, relative to its mean."""
    ranges = []
    for found in _by_seed(records).values():
        values = [result.perplexity for result in found]
        if len(values) > 1:
            ranges.append((max(values) - min(values)) / statistics.mean(values))
    return max(ranges, default=None)


def _size(name: str) -> str:
    return "head shapes" if name == "shape" else name.upper()


def _name(key: tuple[Variant, str, int]) -> str:
    return IN_WORDS[key[0]]


def _percent(share: float) -> str:
    text = f"{100 * share:+.1f} %"
    return text[1:] if text[1:] == "0.0 %" else text


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _listed(values: Iterable[str]) -> str:
    """Joined by commas; sets are sorted."""
    return ", ".join(sorted(values) if isinstance(values, set) else values)
