"""ExecuTorch programs as files of a bundle: lowered to XNNPACK, and described for the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from retnet_edge.lowering.xnnpack_graph import XnnpackGraph
from retnet_edge.model.retnet import RetNet
from retnet_edge.quiet import hushed
from retnet_edge.runtime.bundle.manifest import Delegation, GraphSpec, StateSpec, TensorSpec

STEP_FILE, PREFILL_FILE = "step.pte", "prefill.pte"
PREFILL_TOKENS = 64
"""Tokens of a call of prefill.pte; the rest of a prompt goes through the step."""


def example_inputs(tokens: int, states: Sequence[StateSpec]) -> tuple[torch.Tensor, ...]:
    """Zeros of the shapes of a program's inputs, for `tokens` tokens a call."""
    return (
        torch.zeros(1, tokens, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        *(torch.zeros(shape) for shape in _shapes(states)),
    )


def lowering_seconds(layers: int) -> float:
    """How long a program of so many layers takes, roughly: the exporter walks through every one."""
    return 5.0 + 2.0 * layers


def lower_executorch(
    graph: nn.Module, tokens: int, states: Sequence[StateSpec], vocab: int, path: Path
) -> GraphSpec:
    """Lower the graph for `tokens` tokens a call to XNNPACK, write it to `path`, and describe it.

    graph: an XnnpackGraph, whose weights may be torchao's quantized tensors, or what PT2E made of
    one.
    """
    with hushed():  # torchao tells of kernels for hardware that is not here
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower

    shapes = _shapes(states)
    with torch.no_grad(), hushed():
        exported = torch.export.export(graph, example_inputs(tokens, states))
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[XnnpackPartitioner()],
            constant_methods={
                "get_tokens": tokens,
                "get_vocab_size": vocab,
                "get_states": len(states),
            },
        )
        delegation = _delegation(edge.exported_program().graph_module)
        config = ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True)
        with path.open("wb") as file:
            program = edge.to_executorch(config)
            program.write_to_file(file)
    kind: Literal["step", "prefill"] = "step" if tokens == 1 else "prefill"

    def state_specs(side: Literal["input", "output"]) -> list[TensorSpec]:
        return [
            TensorSpec(getattr(state, side), state.dtype, shape)
            for state, shape in zip(states, shapes, strict=True)
        ]

    return GraphSpec(
        file=path.name,
        kind=kind,
        backend="executorch",
        inputs=(
            TensorSpec("tokens", "int64", (1, tokens)),
            TensorSpec("position", "int64", (1,)),
            *state_specs("input"),
        ),
        outputs=(TensorSpec("logits", "float32", (1, vocab)), *state_specs("output")),
        external_data=(),
        operator_sets={},
        delegation=delegation,
        planned_bytes=sum(program.executorch_program.execution_plan[0].non_const_buffer_sizes),
    )


def _shapes(states: Sequence[StateSpec]) -> list[tuple[int, ...]]:
    return [tuple(1 if dim == "batch" else int(dim) for dim in s.shape) for s in states]


def executorch_graphs(model: RetNet) -> list[tuple[str, XnnpackGraph]]:
    """File names and graphs of a bundle, in float32."""
    return [
        (STEP_FILE, XnnpackGraph(model, 1).eval()),
        (PREFILL_FILE, XnnpackGraph(model, PREFILL_TOKENS).eval()),
    ]


def delegation_line(spec: GraphSpec) -> str:
    """What XNNPACK took of a program, in a line."""
    delegation = spec.delegation
    assert delegation is not None
    rest = ", ".join(f"{count} × {name}" for name, count in delegation.rest.items())
    return (
        f"{spec.file}: {delegation.delegated} operators ({100 * delegation.share:.1f} %) in "
        f"{delegation.subgraphs} XNNPACK subgraph(s); outside: {rest or 'none'}"
    )


def _delegation(module: torch.fx.GraphModule) -> Delegation:
    """Which operators XNNPACK took. Reading an output of the subgraph is no operator."""
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(module)
    rest = {
        name: counts.non_delegated
        for name, counts in sorted(info.delegation_by_operator.items())
        if counts.non_delegated and name != "getitem"
    }
    delegated = sum(c.delegated for n, c in info.delegation_by_operator.items() if n != "getitem")
    return Delegation(info.num_delegated_subgraphs, delegated, rest)
