"""What the matrix products of a bundle see on text: second moments of their inputs.

The fp32 prefill graph runs over contexts, many at once, from an empty state to their last position:
the states that text leaves behind are part of what is seen, not first tokens only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.quantize.exposed import ExposedStep
from retnet_edge.quantize.graph_edit import product_inputs
from retnet_edge.runtime.bundle import Bundle

SPAN = 128  # tokens of a call
SEQUENCES = 12
CONTEXT = 2048


def input_grams(
    bundle: Bundle, wanted: Callable[[str], bool], contexts: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """H = Σ xᵀ x [in, in] of what each weight wanted is multiplied with, over contexts [B, T].

    A product of the last token only (the head) sees one token of every 128.
    """
    file = bundle.manifest.graph("prefill").file
    model = ir.load(bundle.file(file))
    observed = product_inputs(model, file, wanted)
    if not observed:
        return {}
    graph = ExposedStep(bundle, model, observed.values())
    grams: dict[str, NDArray[np.float64]] = {}
    states = graph.zero_states(len(contexts))
    for start in range(0, contexts.shape[1], SPAN):
        found, states = graph.run(contexts[:, start : start + SPAN], start, states)
        for name, value in observed.items():
            rows = found[str(value.name)]
            rows = rows.reshape(-1, rows.shape[-1])
            grams[name] = grams.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
    return grams


def sampled_contexts(
    bundle: Bundle, sequences: int = SEQUENCES, length: int = CONTEXT
) -> NDArray[np.int64]:
    """Tokens [sequences, length] that the model writes: sampled from its own predictions."""
    file = bundle.manifest.graph("step").file
    graph = ExposedStep(bundle, ir.load(bundle.file(file)), ())
    rng = np.random.default_rng(0)
    tokens = np.empty((sequences, length), dtype=np.int64)
    tokens[:, 0] = rng.integers(bundle.manifest.model.vocab_size, size=sequences)
    states = graph.zero_states(sequences)
    for position in range(length - 1):
        found, states = graph.run(tokens[:, position : position + 1], position, states)
        logits = found["logits"].astype(np.float64)
        # argmax of logits and Gumbel noise is a sample of their softmax
        tokens[:, position + 1] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
    return tokens
