"""Does every recipe pass `verify` in every form of graphs, step and prefill alike?

    python -m benchmarks.quantization.recipe_forms checkpoints/edge-15m --calibration TEXT.txt

Each built-in recipe, and `int8` with both smaller states, is applied to the `ort` graphs, the
`portable` graphs and the ExecuTorch programs of a checkpoint, and the bundle verified: steps
against float64, the prefill against steps, kernels against NumPy, memory. A form that cannot take
a recipe has to say so before any work. Results go to benchmarks/results/recipe-forms.json, and a
row that is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.pipeline.verify import verify
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import RECIPES
from retnet_edge.quantize.recipes.recipe import Recipe, with_state
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Backend
from retnet_edge.runtime.report.verdict import BackendResult

RESULTS = Path(__file__).parents[1] / "results" / "recipe-forms.json"
FORMS: dict[str, tuple[Literal["onnx", "executorch"], Literal["ort", "portable"], Backend]] = {
    "ort": ("onnx", "ort", "onnxruntime"),
    "portable": ("onnx", "portable", "onnxruntime"),
    "executorch": ("executorch", "ort", "executorch"),
}


def recipes_of(form: str) -> list[Recipe]:
    """Those of the form's backend, and the smaller states."""
    found = list(RECIPES[FORMS[form][2]])
    return [*found, *(with_state(found[0], state) for state in ("float16", "int8"))]


def row(measured: BackendResult) -> dict[str, Any]:
    """What is kept of a verified bundle."""
    figures, prefill = measured.parity.figures, measured.parity.prefill
    assert prefill is not None
    return {
        "verified": not measured.reasons,
        "reasons": list(measured.reasons),
        "checks": len(measured.checks),
        "tokens": figures.tokens,
        "step_kl": figures.mean_kl,
        "top1": figures.top1_agreement,
        "prefill_kl": prefill.mean_kl,
    }


def measure(source: Path, recipe: Recipe, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Quantize and verify; or the sentence of a refusal, and whether it came before any work."""
    out = folder / "bundle.edge"
    began = time.perf_counter()
    try:
        quantize(
            source,
            out,
            recipe=recipe,
            checkpoint=args.checkpoint,
            calibration=args.calibration,
            say=lambda _: None,
        )
    except InputError as error:
        return {"refused": str(error), "seconds": time.perf_counter() - began}
    verdict = verify(
        out,
        checkpoint=args.checkpoint,
        text=args.text,
        tokens=args.tokens,
        memory_steps=args.memory_steps,
        baseline=False,
        threads=1,
        say=lambda _: None,
    )
    return {**row(verdict.backends[0]), "needs": Bundle.open(out).manifest.graph("step").needs}


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("form", "recipe", "verified", "mean KL, steps", "after a prefill", "top-1")
    for form, rows in results.items():
        for name, found in rows.items():
            if "refused" in found:
                table.add_row(form, name, f"refused in {found['seconds']:.2f} s", "", "", "")
                continue
            table.add_row(
                form,
                name,
                "yes" if found["verified"] else "; ".join(found["reasons"]),
                f"{found['step_kl']:.1e}",
                f"{found['prefill_kl']:.1e}",
                f"{100 * found['top1']:.2f} %",
            )
    Console(width=110).print(table)


def main() -> None:
    """Measure what is not in the results yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="held-out text [the checkpoint's heldout.txt]")
    parser.add_argument("--tokens", type=int, default=4_096)
    parser.add_argument("--memory-steps", type=int, default=8_000)
    parser.add_argument("--forms", nargs="*", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.text = args.text or args.checkpoint / "heldout.txt"
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for form in args.forms:
            backend, flavour, _ = FORMS[form]
            known = results.setdefault(form, {})
            missing = [recipe for recipe in recipes_of(form) if recipe.name not in known]
            if not missing:
                continue
            source = Path(folder) / f"{form}.edge"
            export(args.checkpoint, source, to=[backend], flavour=flavour, say=lambda _: None)
            for recipe in missing:
                with tempfile.TemporaryDirectory(dir=folder) as inner:
                    known[recipe.name] = measure(source, recipe, args, Path(inner))
                print(form, recipe.name, known[recipe.name], flush=True)
                args.out.write_text(json.dumps(results, indent=2) + "\n")
    show(results)


if __name__ == "__main__":
    main()
