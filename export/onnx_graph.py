"""Lowering to ONNX: `torch.onnx.export(dynamo=True)`, and a graph without its traces."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Sequence

import onnx_ir as ir
import torch

from retnet_edge.export.contract import Lowering
from retnet_edge.quiet import hushed
from retnet_edge.runtime.bundle.manifest import StateSpec

OPSETS = {"ort": 23, "portable": 18}
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: its modules from the outside in, its own name
PORTABLE_IR = 8  # the file format of ONNX 1.13, which had operator set 18


def lowering_seconds(layers: int) -> float:
    """How long a graph of so many layers takes, roughly: the exporter walks through every one."""
    return 3.0 + 0.35 * layers


def lower_onnx(lowering: Lowering, states: Sequence[StateSpec]) -> ir.Model:
    """The graph as an ONNX model whose inputs and outputs have the step contract's names."""
    # the exporter prints progress and warns of things that are as they should be
    with hushed(), contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            lowering.module.eval(),
            lowering.example,
            dynamo=True,
            opset_version=OPSETS[lowering.flavour],
            input_names=["tokens", "position", *(state.input for state in states)],
            output_names=["logits", *(state.output for state in states)],
            dynamic_shapes=lowering.dynamic_shapes,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _name_blocks(model)
    _strip(model)
    if lowering.flavour == "portable":
        model.ir_version = PORTABLE_IR
    return model


def _name_blocks(model: ir.Model) -> None:
    """Call what block N adds up, the residual stream after it, "blocks.N"."""
    last: dict[str, ir.Value] = {}
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if node.op_type == "Add" and len(scopes) == 3 and scopes[1].startswith("blocks."):
            last[scopes[1]] = node.outputs[0]
    for name, value in last.items():
        value.name = name


def _strip(model: ir.Model) -> None:
    """Drop the exporter's traces (module paths, source lines of this machine)."""
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
