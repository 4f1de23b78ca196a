"""What optimum's nearest to `int8-dynamic` costs beside the recipe itself, on an fp32 bundle.

    python -m benchmarks.quantization.optimum_recipe BUNDLE.edge checkpoints/edge-15m/heldout.txt

Applies both to the bundle's step graph (needs the extra optimum), feeds held-out text through all
three a token a step and prints perplexity, mean KL and top-1 agreement against fp32. One sequence
at a time: both graphs take one scale for a whole input, all rows of a batch included.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from retnet_edge.data.contexts import text_contexts
from retnet_edge.integrations.optimum.recipes import nearest_recipe, quantize_step
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.bundle.bundle import Bundle

Floats = NDArray[np.float64]


def open_graph(graph: Path) -> Any:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def log_probabilities(session: Any, tokens: NDArray[np.int64]) -> Iterator[Floats]:
    """After each of tokens [T]: log p [vocab] of the next one."""
    outputs = [value.name for value in session.get_outputs()]
    states: dict[str, Any] = {
        value.name: np.zeros((1, *value.shape[1:]), dtype=np.float32)
        for value in session.get_inputs()
        if value.name not in ("tokens", "position")
    }
    for n, token in enumerate(tokens):
        feeds = {"tokens": np.array([[token]]), "position": np.array([n]), **states}
        found = dict(zip(outputs, session.run(None, feeds), strict=True))
        states = {name: found[f"next_{name}"] for name in states}
        logits = found["logits"][0].astype(np.float64)
        logits -= logits.max()
        yield logits - np.log(np.exp(logits).sum())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=int, default=32, help="contexts (default: 32)")
    parser.add_argument("--length", type=int, default=512, help="tokens each (default: 512)")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    length = args.length + 1
    rows = np.stack(text_contexts(bundle.tokenizer(), args.text, args.rows * length, length))
    if len(rows) < args.rows:
        parser.error(f"{args.text} has {len(rows)} contexts; {args.rows} are needed")
    with tempfile.TemporaryDirectory() as folder:
        own = quantize(args.bundle, Path(folder) / "own.edge", recipe="int8-dynamic")
        step = bundle.file(bundle.manifest.graph("step").file)
        graphs = {
            "fp32": step,
            "int8-dynamic": own / step.name,
            "int8-dynamic-optimum": quantize_step(nearest_recipe("int8-dynamic"), step, folder),
        }
        loss, divergence, same = (dict.fromkeys(graphs, 0.0) for _ in range(3))
        sessions = [open_graph(graph) for graph in graphs.values()]
        for row in rows:
            runs = [log_probabilities(session, row[:-1]) for session in sessions]
            for following, *logs in zip(row[1:], *runs, strict=True):
                for name, log in zip(graphs, logs, strict=True):
                    loss[name] -= float(log[following])
                    divergence[name] += float(np.exp(logs[0]) @ (logs[0] - log))
                    same[name] += float(log.argmax() == logs[0].argmax())
    tokens = args.rows * args.length
    print(f"{tokens} tokens of {args.text} in {args.rows} contexts")
    for name in graphs:
        worse = np.expm1((loss[name] - loss["fp32"]) / tokens)
        print(
            f"{name:22} perplexity {np.exp(loss[name] / tokens):.3f} ({worse:+.3%})"
            f"  mean KL {divergence[name] / tokens:.2e}  top-1 {same[name] / tokens:.2%}"
        )


if __name__ == "__main__":
    main()
