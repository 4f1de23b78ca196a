"""Rows of an embedding out of 8-bit codes that stand the way a product reads them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from retnet_edge.quantize.graphs.edit import add_initializer, replace
from retnet_edge.quantize.numerics.rounding import ZERO_POINT


def replace_gather(model: ir.Model, gather: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    """Rows of the embedding are columns of codes [d, vocab]: [d, B, T] -> [B, T, d], scaled."""
    ids = gather.inputs[1]
    columns = ir.node("Gather", [codes, ids], {"axis": 1})
    rows = ir.node("Transpose", [columns.outputs[0]], {"perm": [1, 2, 0]})
    as_float = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
    zero = add_initializer(model, "weight_zero_point_float", np.array(ZERO_POINT, dtype=np.float32))
    centred = ir.node("Sub", [as_float.outputs[0], zero])
    scale = ir.node("Gather", [scales, ids], {"axis": 0})
    last = add_initializer(model, "last_axis", np.array([-1], dtype=np.int64))
    column = ir.node("Unsqueeze", [scale.outputs[0], last])
    result = ir.node("Mul", [centred.outputs[0], column.outputs[0]])
    replace(model, gather, [columns, rows, as_float, centred, scale, column, result])
