"""What the matrix products of a bundle see on text: second moments and samples of their inputs.

The fp32 prefill graph runs over contexts, many at once, from an empty state to their last position:
the states that text leaves behind are part of what is seen, not first tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.progress import progress
from retnet_edge.quantize.calibration.instrumented import (
    InstrumentedGraph,
    checked_logits,
    tap_inputs,
)
from retnet_edge.runtime.bundle.bundle import Bundle

Floats = NDArray[np.float32]

SPAN = 128  # tokens of a call
SHORT_SPAN = 16  # where the last tokens of calls are to be many
ROWS = 1024  # inputs of a product that are kept
SEQUENCES = 12
CONTEXT = 2048


def input_grams(
    bundle: Bundle, wanted: Callable[[str], bool], contexts: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """H = Σ xᵀ x [in, in] of what each weight wanted is multiplied with, over contexts [B, T].

    A product of the last token only (the head) sees one token of every 128.
    """
    grams: dict[str, NDArray[np.float64]] = {}
    for seen in _calls(bundle, wanted, contexts, SPAN):
        for name, rows in seen.items():
            grams[name] = grams.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
    return grams


def _calls(
    bundle: Bundle, wanted: Callable[[str], bool], contexts: NDArray[np.int64], span: int
) -> Iterator[dict[str, Floats]]:
    """Of every call of the prefill graph with `span` tokens: by a weight's name, the rows [n, K]
    that it is multiplied with. None where no weight is wanted.
    """
    tapped_graph = tap_inputs(bundle, "prefill", wanted)
    if tapped_graph is None:
        return
    graph, taps = tapped_graph
    states = graph.zero_states(len(contexts))
    with progress("calibrate (tokens)", contexts.size) as advance:
        for start in range(0, contexts.shape[1], span):
            tokens = contexts[:, start : start + span]
            found, states = graph.run(tokens, start, states)
            seen = {name: found[value] for name, value in taps.items()}
            yield {name: x.reshape(-1, x.shape[-1]) for name, x in seen.items()}
            advance(tokens.size)


@dataclass(frozen=True)
class ActivationStatistics:
    """Of what a matrix is multiplied with: extremes, the largest |x| of each input [K] over all
    tokens, and a sample of rows [n, K].
    """

    range: tuple[float, float]
    largest: Floats
    rows: Floats

    @property
    def rms(self) -> float:
        """Root mean square of the sample; 1 where it is all zero."""
        return float(np.sqrt(np.square(self.rows, dtype=np.float64).mean())) or 1.0

    def divided(self, s: Floats) -> ActivationStatistics:
        """The same of x / s. The extremes are those of the channels' largest, either sign."""
        rows, largest = self.rows / s, self.largest / s
        low, high = float(rows.min()), float(rows.max())
        most = float(largest.max())
        # a sample may miss the extreme; it lies on the side that the sample reaches further
        limits = (-most, high) if -low > high else (low, most)
        return ActivationStatistics(limits, largest, rows)

    def split(self, threshold: float) -> tuple[ActivationStatistics, ActivationStatistics]:
        """Body and tail, as `passes/outliers.py` says."""

        def of(low: float, high: float, rows: Floats) -> ActivationStatistics:
            return ActivationStatistics((low, high), np.abs(rows).max(axis=0), rows)

        low, high = self.range
        body = np.clip(self.rows, -threshold, threshold)
        return (
            of(max(low, -threshold), min(high, threshold), body),
            of(min(low + threshold, 0.0), max(high - threshold, 0.0), self.rows - body),
        )


def input_samples(
    bundle: Bundle, wanted: Callable[[str], bool], contexts: NDArray[np.int64]
) -> dict[str, ActivationStatistics]:
    """What each weight wanted is multiplied with, over contexts [B, T].

    A product of the last token only (the head) sees one token of every 16.
    """
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    largest: dict[str, Floats] = {}
    rows: dict[str, list[Floats]] = {}
    calls = -(-contexts.shape[1] // SHORT_SPAN)
    rng = np.random.default_rng(0)
    for seen in _calls(bundle, wanted, contexts, SHORT_SPAN):
        for name, x in seen.items():
            lows[name] = min(lows.get(name, np.inf), float(x.min()))
            highs[name] = max(highs.get(name, -np.inf), float(x.max()))
            largest[name] = np.maximum(largest.get(name, 0.0), np.abs(x).max(axis=0))
            rows.setdefault(name, []).append(rng.permutation(x)[: -(-ROWS // calls)])
    return {
        name: ActivationStatistics((lows[name], highs[name]), largest[name], np.concatenate(parts))
        for name, parts in rows.items()
    }


def sampled_contexts(
    bundle: Bundle, sequences: int = SEQUENCES, length: int = CONTEXT
) -> NDArray[np.int64]:
    """Tokens [sequences, length] that the model writes: sampled from its own predictions.

    Raises InputError where the model overflows.
    """
    file = bundle.manifest.graph("step").file
    graph = InstrumentedGraph(bundle, ir.load(bundle.file(file)), ())
    rng = np.random.default_rng(0)
    tokens = np.empty((sequences, length), dtype=np.int64)
    tokens[:, 0] = rng.integers(bundle.manifest.model.vocab_size, size=sequences)
    states = graph.zero_states(sequences)
    with progress("write text to calibrate on (steps)", length - 1) as advance:
        for position in range(length - 1):
            found, states = graph.run(tokens[:, position : position + 1], position, states)
            logits = checked_logits(found["logits"], bundle).astype(np.float64)
            # argmax of logits and Gumbel noise is a sample of their softmax
            tokens[:, position + 1] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
            advance(1)
    return tokens
