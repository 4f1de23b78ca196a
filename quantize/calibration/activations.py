"""How large the inputs of matrix products are, on text that the model writes itself.

No calibration text is needed: the fp32 step graph samples tokens from its own predictions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retnet_edge.progress import progress
from retnet_edge.quantize.calibration.instrumented import checked_logits, tap_inputs
from retnet_edge.runtime.bundle.bundle import Bundle

TOKENS = 256


def input_rms(bundle: Bundle, wanted: Callable[[str], bool]) -> dict[str, float]:
    """Root mean square of what is multiplied with each weight wanted, over 256 sampled tokens.

    A weight whose inputs are all zero gets 1. Raises InputError where the model overflows.
    """
    tapped_graph = tap_inputs(bundle, "step", wanted)
    if tapped_graph is None:
        return {}
    step, taps = tapped_graph
    squares: dict[str, list[float]] = {name: [] for name in taps}
    rng = np.random.default_rng(0)
    states = step.zero_states()
    token = int(rng.integers(bundle.manifest.model.vocab_size))
    with progress("measure inputs (tokens)", TOKENS) as advance:
        for position in range(TOKENS):
            found, states = step.run(token, position, states)
            for name, value in taps.items():
                squares[name].append(float(np.mean(np.square(found[value]))))
            logits = checked_logits(found["logits"], bundle)[0].astype(np.float64)
            probs = np.exp(logits - logits.max())
            token = int(rng.choice(len(probs), p=probs / probs.sum()))
            advance(1)
    return {name: float(np.sqrt(np.mean(seen))) or 1.0 for name, seen in squares.items()}
