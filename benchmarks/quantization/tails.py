"""What the tails of the int8 recipes buy and cost: with and without, in one run.

    python -m benchmarks.quantization.tails checkpoints/edge-15m

Quality: KL(float64 ‖ bundle) and top-1 agreement over held-out tokens. Speed: decode steps on one
thread, the bundles interleaved, the median of the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.speed.steps import step_milliseconds
from retnet_edge.data.contexts import text_contexts
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.reference import Float64Reference
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import RECIPES
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import BlockInt8, DynamicInt8
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.parity import measure_parity

ROUNDS = 15
STEPS = 200


def without_tails(recipe: Recipe) -> Recipe:
    """The same recipe with every tail left in its body."""
    rules = tuple(
        Rule(
            rule.pattern,
            rule.scheme
            if not isinstance(rule.scheme, BlockInt8 | DynamicInt8)
            else dataclasses.replace(rule.scheme, tail=None),
        )
        for rule in recipe.rules
    )
    return dataclasses.replace(recipe, name=f"{recipe.name} without tails", rules=rules)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=24_576)
    parser.add_argument("--context", type=int, default=2048)
    args = parser.parse_args()
    source = load_checkpoint(args.checkpoint)
    contexts = text_contexts(
        source.tokenizer, args.checkpoint / "heldout.txt", args.tokens, args.context
    )
    reference = Float64Reference(source)
    with tempfile.TemporaryDirectory() as folder:
        exported = export(args.checkpoint, Path(folder) / "fp32.edge", say=lambda text: None)
        recipes = [r for recipe in RECIPES["onnxruntime"] for r in (without_tails(recipe), recipe)]
        sessions = {"fp32": open_session(Bundle.open(exported), threads=1)}
        rows: dict[str, list[str]] = {"fp32": ["", "", ""]}
        for index, recipe in enumerate(recipes):
            out = quantize(
                exported, Path(folder) / f"{index}.edge", recipe=recipe, say=lambda text: None
            )
            session = open_session(Bundle.open(out), threads=1)
            figures = measure_parity(
                session, reference, contexts, allowed_error=None, text_bytes=None, places=False
            ).figures
            sessions[recipe.name] = session
            rows[recipe.name] = [
                f"{figures.mean_kl:.2e}",
                f"{100 * figures.top1_agreement:.2f} %",
                f"{figures.perplexity_ratio:.5f}",
            ]
        rounds: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(ROUNDS):
            for name, session in sessions.items():
                rounds[name].append(step_milliseconds(session, STEPS))
    fastest = min(statistics.median(times) for times in rounds.values())
    table = Table("recipe", "mean KL", "top-1", "perplexity", "ms a step", "of the fastest")
    for name, times in rounds.items():
        median = statistics.median(times)
        table.add_row(name, *rows[name], f"{median:.3f}", f"{median / fastest:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
