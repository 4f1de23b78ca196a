"""Lowering of the step contract to ONNX: `torch.onnx.export(dynamo=True)`, names, checks."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

OPSET = 23


def lower(
    module: nn.Module,
    example: tuple[Tensor, Tensor, list[Tensor]],
    dynamic_shapes: tuple[object, object, object],
    state_inputs: Sequence[str],
    state_outputs: Sequence[str],
) -> ir.Model:
    """`module(tokens, position, states)` as an ONNX model with the step contract's names."""
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["tokens", "position", *state_inputs],
            output_names=["logits", *state_outputs],
            dynamic_shapes=dynamic_shapes,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    return program.model
