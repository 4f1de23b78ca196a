"""What to lower for a checkpoint: its graphs, with example inputs, dynamic axes and states.

The states are written down here once; the manifest carries them to everything after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim

from retnet_edge.export.kv_step import TransformerGraph
from retnet_edge.export.step import CHUNK, Form, RetNetGraph
from retnet_edge.model.checkpoint import LanguageModel
from retnet_edge.model.retnet import RetNet
from retnet_edge.model.transformer import Transformer
from retnet_edge.runtime.bundle.manifest import StateSpec

BATCH = Dim("batch", min=1, max=1 << 16)
EXAMPLE_BATCH = 2  # torch specialises a graph to an example size of 1
EXAMPLE_TOKENS = 5
Flavour = Literal["ort", "portable"]
"""ort: ONNX Runtime's fused operators. portable: operators of ONNX 18 alone."""


@dataclass(frozen=True)
class Lowering:
    """One graph to lower: `module(tokens, position, states)` and how to trace it."""

    kind: Literal["step", "prefill"]
    module: nn.Module
    example: tuple[Tensor, Tensor, list[Tensor]]
    dynamic_shapes: tuple[Any, Any, Any]
    flavour: Flavour = "ort"


def state_specs(model: LanguageModel) -> tuple[StateSpec, ...]:
    """The states of one sequence, in the order of the graphs' inputs."""
    config = model.config
    if isinstance(model, RetNet):
        shape = ("batch", config.heads, config.key_head_dim, model.config.value_head_dim)
        return tuple(
            StateSpec(f"state_{i}", f"next_state_{i}", "float32", shape)
            for i in range(config.layers)
        )
    cache = ("batch", config.heads, "past", config.key_head_dim)
    return tuple(
        StateSpec(f"{name}_{i}", f"next_{name}_{i}", "float32", cache)
        for i in range(config.layers)
        for name in ("key", "value")
    )


def lowerings(model: LanguageModel, flavour: Flavour = "ort") -> list[Lowering]:
    """The graphs of a checkpoint: step and prefill for a RetNet, step for the baseline."""
    if isinstance(model, Transformer):
        return [_transformer_step(model)]
    return [_retnet(model, "step", flavour), _retnet(model, "prefill", flavour)]


def _retnet(model: RetNet, kind: Literal["step", "prefill"], flavour: Flavour) -> Lowering:
    """The prefill's T is dynamic, 1 included. Fused, both graphs are the same but for that.

    The chunkwise form is traced with more than one chunk: one chunk is no special case.
    """
    states = model.initial_states(EXAMPLE_BATCH)
    form: Form = "fused" if flavour == "ort" else "plain" if kind == "step" else "chunkwise"
    tokens = {"fused": EXAMPLE_TOKENS, "plain": 1, "chunkwise": 2 * CHUNK + 44}[form]
    tokens = 1 if kind == "step" else tokens
    axes: dict[int, Any] = {0: BATCH}
    if kind == "prefill":
        axes[1] = Dim("tokens", min=CHUNK + 1 if form == "chunkwise" else 1, max=1 << 20)
    return Lowering(
        kind,
        RetNetGraph(model, form),
        (_zeros(EXAMPLE_BATCH, tokens), _zeros(EXAMPLE_BATCH), states),
        (axes, {0: BATCH}, [{0: BATCH} for _ in states]),
        flavour,
    )


def _transformer_step(model: Transformer) -> Lowering:
    config = model.config
    shape = (EXAMPLE_BATCH, config.heads, 3, config.key_head_dim)
    states = [torch.zeros(shape) for _ in range(2 * config.layers)]
    past = Dim("past", min=0, max=1 << 20)
    return Lowering(
        "step",
        TransformerGraph(model),
        (_zeros(EXAMPLE_BATCH, 1), _zeros(EXAMPLE_BATCH), states),
        ({0: BATCH}, {0: BATCH}, [{0: BATCH, 2: past} for _ in states]),
    )


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)
