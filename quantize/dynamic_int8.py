"""The pass of `DynamicInt8`: DynamicQuantizeLinear, MatMulInteger, and a scale on what comes out.

Codes are uint8 on both sides: signed weights saturate in the 16-bit sums of CPUs without VNNI.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from retnet_edge.quantize.graph_edit import Weight, add_initializer, replace
from retnet_edge.quantize.rounding import ZERO_POINT, quantize_channels


def apply_dynamic_int8(model: ir.Model, weight: Weight) -> None:
    """Replace every node that reads `weight`; codes stand [inputs, outputs] in the graph."""
    codes, scales = quantize_channels(weight.matrix())
    code_value = add_initializer(model, f"{weight.name}.codes", codes.T)
    scale_value = add_initializer(model, f"{weight.name}.scales", scales)
    zero = add_initializer(model, "weight_zero_point", np.array(ZERO_POINT, dtype=np.uint8))
    for product in (*weight.products, *(product for _, product in weight.transposed)):
        x = ir.node("DynamicQuantizeLinear", [product.inputs[0]], num_outputs=3)
        x_codes, x_scale, x_zero = x.outputs
        total = ir.node("MatMulInteger", [x_codes, code_value, x_zero, zero])
        as_float = ir.node("Cast", [total.outputs[0]], {"to": ir.DataType.FLOAT})
        scale = ir.node("Mul", [x_scale, scale_value])
        product_nodes = [x, total, as_float, scale]
        result = ir.node("Mul", [as_float.outputs[0], scale.outputs[0]])
        replace(model, product, [*product_nodes, result])
    for lookup in weight.lookups:
        _replace_lookup(model, lookup, code_value, scale_value)


def _replace_lookup(model: ir.Model, lookup: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    """Rows of the embedding are columns of the head's codes: [d, B, T] -> [B, T, d], scaled."""
    ids = lookup.inputs[1]
    columns = ir.node("Gather", [codes, ids], {"axis": 1})
    rows = ir.node("Transpose", [columns.outputs[0]], {"perm": [1, 2, 0]})
    as_float = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
    zero = add_initializer(model, "weight_zero_point_float", np.array(ZERO_POINT, dtype=np.float32))
    centred = ir.node("Sub", [as_float.outputs[0], zero])
    scale = ir.node("Gather", [scales, ids], {"axis": 0})
    last = add_initializer(model, "last_axis", np.array([-1], dtype=np.int64))
    column = ir.node("Unsqueeze", [scale.outputs[0], last])
    result = ir.node("Mul", [centred.outputs[0], column.outputs[0]])
    replace(model, lookup, [columns, rows, as_float, centred, scale, column, result])
