"""The pass of weights stored in 16 bits: each is cast to float32 where it is read.

ONNX Runtime's CPU has no 16-bit products of its own on most machines, so it casts the matrices once
when it loads a graph: the file is half as large, memory and speed are those of float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from retnet_edge.errors import InputError
from retnet_edge.quantize.graphs.edit import Weight, add_initializer, cast_to_float32, replace
from retnet_edge.quantize.recipes.schemes import Half

_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def apply_half(model: ir.Model, weight: Weight, scheme: Half) -> None:
    """Replace a matrix by its 16-bit form, and everything that reads it by what reads that.

    Raises InputError, naming the matrix, for a value beyond the type's range (float16: 65,504).
    """
    assert weight.value.const_value is not None
    matrix = weight.value.const_value.numpy()
    with np.errstate(over="ignore"):  # the next line says it, with the name
        stored = matrix.astype(_TYPES[scheme.dtype].numpy())
    if not np.isfinite(stored).all():
        raise InputError(
            f"{weight.name} holds {float(np.abs(matrix).max()):g}, which {scheme.dtype} cannot; "
            "give its layer another scheme, such as float32"
        )
    halves = add_initializer(model, f"{weight.name}.{scheme.dtype}", stored)
    for gather in weight.gathers:
        rows = ir.node("Gather", [halves, gather.inputs[1]], {"axis": 0})
        rows.outputs[0].shape = gather.outputs[0].shape
        rows.outputs[0].type = halves.type
        cast = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
        replace(model, gather, [rows, cast])
    if weight.value.uses():
        whole = cast_to_float32(model, halves, f"{weight.name}.float32")
        ir.convenience.replace_all_uses_with(weight.value, whole)
