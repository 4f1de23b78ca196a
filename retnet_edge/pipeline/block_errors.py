"""The error after every block: a graph's residual stream beside that of the float64 model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.quantize.calibration.instrumented import InstrumentedGraph
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.parity import BlockError

SPAN = 128  # tokens of a call


def measure_block_errors(
    bundle: Bundle, expected: Sequence[NDArray[np.float64]], tokens: NDArray[np.int64]
) -> tuple[BlockError, ...]:
    """Over tokens [T] from an empty state, by ONNX Runtime's prefill graph.

    expected: what the float64 model's blocks give for them (`Float64Reference.block_outputs`).
    Empty for a bundle whose graph does not name what blocks add up (older bundles).
    """
    model = ir.load(bundle.file(bundle.manifest.graph("prefill").file))
    values = {value.name: value for node in model.graph for value in node.outputs}
    names = [f"blocks.{block}" for block in range(len(expected))]
    if any(name not in values for name in names):
        return ()
    graph = InstrumentedGraph(bundle, model, (values[name] for name in names))
    states, parts = graph.zero_states(), []
    for start in range(0, len(tokens), SPAN):
        found, states = graph.run(tokens[None, start : start + SPAN], start, states)
        parts.append([found[name][0] for name in names])
    return tuple(
        BlockError(block, _relative(np.concatenate(found).astype(np.float64), wanted))
        for block, (found, wanted) in enumerate(
            zip(zip(*parts, strict=True), expected, strict=True)
        )
    )


def _relative(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
