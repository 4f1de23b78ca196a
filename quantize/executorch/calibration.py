"""What a checkpoint's matrix products see on real text: ranges, and second moments of their inputs.

Text runs through the graph in chunks of 64 tokens, which gives every product the inputs that the
recurrent step gives it, one position after the other from an empty state to position 2,047: the
states that text leaves behind, not zeros, and positions spread over contexts, not first tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from retnet_edge.data.contexts import calibration_contexts
from retnet_edge.lowering.xnnpack_graph import XnnpackGraph
from retnet_edge.model.retnet import RetNet
from retnet_edge.progress import progress

CHUNK = 64


@dataclass
class LinearStatistics:
    """Of one product x Wᵀ: smallest and largest input and output; gram: Σ xᵀ x [in, in] float32.

    gram is None where it was not asked for.
    """

    gram: Tensor | None
    inputs: tuple[float, float] = (0.0, 0.0)
    outputs: tuple[float, float] = (0.0, 0.0)


def calibration_text(
    tokenizer: Tokenizer, path: Path, field: str = "text", *, end: int | None = None
) -> list[Tensor]:
    """The contexts of `calibration_contexts`, [1, T] each."""
    contexts = calibration_contexts(tokenizer, path, field, end=end)
    return [torch.from_numpy(ids)[None] for ids in contexts]


def collect_statistics(
    model: RetNet, contexts: Sequence[Tensor], *, wanted: Collection[str], grams: Collection[str]
) -> dict[str, LinearStatistics]:
    """Run contexts [1, T] int64 through the model; what each wanted linear map saw, by its name.

    grams: those of them whose second moments are kept. Tokens after the last whole chunk of 64 are
    left out; the head sees the last token of each chunk.
    """
    graph = XnnpackGraph(model, CHUNK).eval()
    statistics: dict[str, LinearStatistics] = {}

    def hook(name: str, x: Tensor, y: Tensor) -> None:
        width = x.shape[-1]
        found = statistics.setdefault(
            name, LinearStatistics(torch.zeros(width, width) if name in grams else None)
        )
        found.inputs = _widened(found.inputs, x)
        found.outputs = _widened(found.outputs, y)
        if found.gram is not None:
            rows = x.reshape(-1, width)
            found.gram += rows.T @ rows

    for name in wanted:
        graph.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: hook(name, inputs[0], output)
        )
    chunks = sum(ids.shape[1] // CHUNK for ids in contexts)
    with torch.no_grad(), progress("calibrate (tokens)", CHUNK * chunks) as advance:
        for ids in contexts:
            states = model.initial_states(1)
            for start in range(0, ids.shape[1] - CHUNK + 1, CHUNK):
                position = torch.tensor([start])
                _, *states = graph(ids[:, start : start + CHUNK], position, *states)
                advance(CHUNK)
    assert statistics.keys() == set(wanted)
    return statistics


def _widened(limits: tuple[float, float], x: Tensor) -> tuple[float, float]:
    return min(limits[0], float(x.min())), max(limits[1], float(x.max()))
