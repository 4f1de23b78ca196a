"""What recipes cost on held-out text, with and without each trick: perplexity, KL and top-1.

    python -m benchmarks.quantization.held_out checkpoints/edge-15m --calibration CALIBRATION.txt

Every bundle steps through the same contexts, many at once where none changes another, beside the
checkpoint in float64: ratio of perplexities, mean KL(float64 ‖ bundle), share of positions whose
best token is the same.
Results go to benchmarks/results/quantization.json, and a recipe that is there already for the same
tokens, weights and version of its row is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from retnet_edge.data.contexts import text_contexts
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import Checkpoint, load_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.progress import progress
from retnet_edge.quantize.calibration.instrumented import InstrumentedGraph
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import find_recipe
from retnet_edge.quantize.recipes.recipe import Recipe, Rule, with_state
from retnet_edge.quantize.recipes.schemes import BlockInt4, DynamicInt8, Scheme, StaticInt8Qdq
from retnet_edge.quantize.recipes.toml_file import STATES, read_recipe
from retnet_edge.runtime.backends.ort.graph import batch_shares_scales
from retnet_edge.runtime.bundle.bundle import Bundle

RESULTS = Path(__file__).parents[1] / "results" / "quantization.json"
PLAIN = "int8+int8-state, plainly rounded"
SPAN = 32  # positions of all sequences whose float64 logits are held at once


@dataclasses.dataclass
class Sums:
    """Of one bundle: tokens, and sums over them (surprise in nats, of the token that follows)."""

    tokens: int = 0
    surprise: float = 0.0
    surprise_reference: float = 0.0
    kl: float = 0.0
    agrees: int = 0

    def add(self, p: Tensor, q: Tensor, targets: Tensor) -> None:
        """Log probabilities [B, vocab], float64, of the reference and of the bundle; tokens [B]."""
        self.tokens += len(targets)
        self.surprise -= float(q.gather(-1, targets[:, None]).sum())
        self.surprise_reference -= float(p.gather(-1, targets[:, None]).sum())
        self.kl += float((p.exp() * (p - q)).sum())
        self.agrees += int((p.argmax(-1) == q.argmax(-1)).sum())

    def figures(self) -> dict[str, float]:
        """What is printed."""
        return {
            "tokens": self.tokens,
            "perplexity": float(np.exp(self.surprise / self.tokens)),
            "perplexity_ratio": float(
                np.exp((self.surprise - self.surprise_reference) / self.tokens)
            ),
            "mean_kl": self.kl / self.tokens,
            "top1": self.agrees / self.tokens,
        }


class Stepped:
    """A bundle's step graph beside some sequences, which all are at one position."""

    def __init__(self, path: Path, sequences: int, *, plain: bool, threads: int) -> None:
        """plain: a graph with int8 states, without its dither."""
        bundle = Bundle.open(path)
        model = ir.load(bundle.file(bundle.manifest.graph("step").file))
        if plain:
            plainly_rounded(model)
        groups = sequences if batch_shares_scales(bundle.manifest) else 1
        self._graph = InstrumentedGraph(bundle, model, (), threads)
        self._groups = np.array_split(np.arange(sequences), groups)
        self._states = [self._graph.zero_states(len(group)) for group in self._groups]

    def logits(self, tokens: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Tokens [B] at a position -> logits [B, vocab] of those that follow."""
        found = []
        for i, group in enumerate(self._groups):
            values, self._states[i] = self._graph.run(
                tokens[group, None], position, self._states[i]
            )
            found.append(values["logits"])
        return np.concatenate(found)


def measure(
    bundles: dict[str, Path],
    source: Checkpoint,
    contexts: Sequence[NDArray[np.int64]],
    device: str = "cpu",
    threads: int = 0,
) -> dict[str, dict[str, float]]:
    """Figures of each bundle over all contexts, which run side by side.

    device: of the reference, and where both are compared. threads: of a bundle's products.
    """
    assert isinstance(source.model, RetNet)
    reference = RetNet(source.model.config)
    reference.load_state_dict(source.model.state_dict())
    reference.to(torch.float64).to(device).eval()
    tokens = np.stack(contexts)
    sequences, length = tokens.shape
    stepped = {
        n: Stepped(path, sequences, plain=n == PLAIN, threads=threads)
        for n, path in bundles.items()
    }
    sums = {name: Sums() for name in bundles}
    past = None
    with progress("held-out positions", length - 1) as advance, torch.no_grad():
        for start in range(0, length - 1, SPAN):
            span = tokens[:, start : min(start + SPAN, length - 1)]
            position = torch.full((sequences,), start, device=device)
            ids = torch.from_numpy(span).to(device)
            logits, past = reference(ids, states=past, position=position)
            p = logits.log_softmax(-1)
            for t in range(span.shape[1]):
                targets = torch.from_numpy(tokens[:, start + t + 1]).to(device)
                for name, graph in stepped.items():
                    found = torch.from_numpy(graph.logits(span[:, t], start + t)).to(device)
                    sums[name].add(p[:, t], found.double().log_softmax(-1), targets)
            advance(span.shape[1])
    return {name: found.figures() for name, found in sums.items()}


def rewritten(name: str, of: str, change: Callable[[Scheme], Scheme]) -> Recipe:
    """The recipe `of` with every scheme changed."""
    recipe = find_recipe(of)
    rules = tuple(Rule(rule.pattern, change(rule.scheme)) for rule in recipe.rules)
    return dataclasses.replace(recipe, name=name, rules=rules)


def without(field: str, value: Any) -> Callable[[Scheme], Scheme]:
    """Set a field of every scheme that has it."""

    def change(scheme: Any) -> Scheme:
        has = hasattr(scheme, field)
        changed: Scheme = dataclasses.replace(scheme, **{field: value}) if has else scheme
        return changed

    return change


def recipes() -> dict[str, Recipe]:
    """The rows of the table: built-in recipes, and each without its trick."""
    plain = ("int8", "int8-dynamic", "int8-weight", "int4", "int4-weight")
    found = {name: find_recipe(name) for name in plain}
    for name, field, value in (
        ("int4 without GPTQ", "gptq", False),
        ("int4 without zero points", "symmetric", True),
    ):
        found[name] = rewritten(name, "int4", without(field, value))
    name = "int8-dynamic, tails where int8 has them"
    found[name] = rewritten(name, "int8", lambda s: DynamicInt8(tail=getattr(s, "tail", None)))
    everywhere = (
        Rule("*.out.weight", BlockInt4(32, tail=2.0, symmetric=False, gptq=True)),
        *find_recipe("int4").rules[1:],
    )
    found["int4 in output projections too"] = Recipe(
        "int4", everywhere, find_recipe("int4").tolerance
    )
    for name in ("int8-static", "int8-static-16"):
        found[name] = find_recipe(name)
    for method in ("min-max", "percentile", "entropy"):
        name = f"int8-static, {method}"
        found[name] = rewritten(name, "int8-static", without("range", method))
    name = "int8-static without the split"
    found[name] = rewritten(name, "int8-static", without("tail", None))
    found["int8-static, smoothed instead of split"] = smoothed()
    for state in STATES[1:]:
        recipe = with_state(find_recipe("int8"), state)
        found[recipe.name] = recipe
    found[PLAIN] = with_state(find_recipe("int8"), "int8")
    return found


def smoothed() -> Recipe:
    """`int8-static` with SmoothQuant where it has tails split off."""
    recipe = find_recipe("int8-static")
    rules = (Rule("embedding.weight", StaticInt8Qdq()), Rule("*", StaticInt8Qdq(smooth=0.5)))
    return dataclasses.replace(recipe, rules=rules)


def plainly_rounded(model: ir.Model) -> None:
    """Take the dither out of a graph with int8 states: ⌊x + 1/2⌋ at every position."""
    constants = model.graph.initializers
    noise = constants["dither_noise"].const_value
    assert noise is not None
    halves = np.full(noise.shape.numpy(), 0.5, dtype=np.float32)
    constants["dither_noise"].const_value = ir.tensor(halves, name="dither_noise")
    constants["dither_turn"].const_value = ir.tensor(np.int64(0), name="dither_turn")


def make_bundles(
    folder: Path, rows: dict[str, Recipe], source: Checkpoint, calibration: Path | None
) -> dict[str, Path]:
    """The bundle of each recipe, in `folder`."""
    exported = folder / "fp32.edge"
    if rows:
        export(source.path, exported, say=lambda text: None)
    return {
        name: quantize(exported, folder / f"{index}.edge", recipe=recipe, calibration=calibration)
        for index, (name, recipe) in enumerate(rows.items())
    }


def bits_a_weight(bundle: Bundle) -> float:
    """Bits of the weights file for each element of a quantized or float32 matrix."""
    elements = sum(int(np.prod(t.shape)) for t in bundle.manifest.quantization.tensors)
    return 8 * bundle.file("weights.bin").stat().st_size / elements


def show(found: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table("recipe", "bits a weight", "perplexity ratio", "mean KL", "top-1")
    for name, figures in found.items():
        table.add_row(
            name,
            f"{figures['bits_a_weight']:.2f}",
            f"{figures['perplexity_ratio']:.5f}",
            f"{figures['mean_kl']:.2e}",
            f"{100 * figures['top1']:.2f} %",
        )
    Console(width=100).print(table)


def chosen(rows: dict[str, Recipe], only: Iterable[str]) -> dict[str, Recipe]:
    """The rows named; all of them where none is."""
    names = list(only) or list(rows)
    return {name: rows[name] for name in names}


def main() -> None:
    """Measure what is not in the results yet, and print the whole table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, help="none: text that the model writes")
    parser.add_argument("--text", type=Path, help="held-out text [the checkpoint's heldout.txt]")
    parser.add_argument("--tokens", type=int, default=204_800)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--only", nargs="*", default=[], help="rows to measure")
    parser.add_argument("--recipes", type=Path, nargs="*", default=[], help="files of more rows")
    parser.add_argument("--bundles", type=Path, nargs="*", default=[], help="ready: a row each")
    parser.add_argument("--device", default="cpu", help="of the float64 model")
    parser.add_argument("--threads", type=int, default=0, help="of a bundle [one a core]")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    source = load_checkpoint(args.checkpoint)
    text = args.text or args.checkpoint / "heldout.txt"
    contexts = text_contexts(source.tokenizer, text, args.tokens, args.context)
    key = f"{args.checkpoint.name}: {len(contexts)} contexts of {args.context} of {text.name}"
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    known = results.setdefault(key, {})
    ready = {Bundle.open(p).manifest.quantization.recipe: p for p in args.bundles}
    rows = recipes() | {found.name: found for found in map(read_recipe, args.recipes)}
    wanted = {} if ready and not args.only else chosen(rows, args.only)
    missing = {n: r for n, r in wanted.items() if n not in known}
    missing_bundles = {n: p for n, p in ready.items() if n not in known}
    if missing or missing_bundles:
        with tempfile.TemporaryDirectory() as folder:
            bundles = make_bundles(Path(folder), missing, source, args.calibration)
            bundles |= missing_bundles
            bits = {name: bits_a_weight(Bundle.open(path)) for name, path in bundles.items()}
            for name, figures in measure(
                bundles, source, contexts, args.device, args.threads
            ).items():
                known[name] = {**figures, "bits_a_weight": bits[name]}
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    show(known)


if __name__ == "__main__":
    main()
