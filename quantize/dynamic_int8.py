"""The pass of `DynamicInt8`: DynamicQuantizeLinear, MatMulInteger, and a scale on what comes out.

Codes are uint8 on both sides: signed weights saturate in the 16-bit sums of CPUs without VNNI.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retnet_edge.quantize.graph_edit import Weight, add_initializer, replace
from retnet_edge.quantize.recipe import DynamicInt8
from retnet_edge.quantize.rounding import ZERO_POINT, quantize_channels
from retnet_edge.quantize.tails import split_tail


def apply_dynamic_int8(
    model: ir.Model, weight: Weight, scheme: DynamicInt8, input_rms: Mapping[str, float]
) -> None:
    """Replace every node that reads `weight`; codes stand [inputs, outputs] in the graph.

    input_rms: see `activations.py`.
    """
    codes, scales = quantize_channels(weight.matrix())
    code_value = add_initializer(model, f"{weight.name}.codes", codes.T)
    scale_value = add_initializer(model, f"{weight.name}.scales", scales)
    zero = add_initializer(model, "weight_zero_point", np.array(ZERO_POINT, dtype=np.uint8))

    def multiply(x: ir.Value | None) -> list[ir.Node]:
        quantizer = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
        x_codes, x_scale, x_zero = quantizer.outputs
        total = ir.node("MatMulInteger", [x_codes, code_value, x_zero, zero])
        as_float = ir.node("Cast", [total.outputs[0]], {"to": ir.DataType.FLOAT})
        scale = ir.node("Mul", [x_scale, scale_value])
        scaled = ir.node("Mul", [as_float.outputs[0], scale.outputs[0]])
        return [quantizer, total, as_float, scale, scaled]

    for product in weight.all_products:
        x = product.inputs[0]
        if scheme.tail is None:
            nodes = multiply(x)
        else:
            # a scale each, so a product each
            parts = split_tail(model, x, weight.name, scheme.tail * input_rms[weight.name])
            products = [multiply(part.outputs[0]) for part in parts]
            total = ir.node("Add", [nodes[-1].outputs[0] for nodes in products])
            nodes = [*parts, *products[0], *products[1], total]
        replace(model, product, nodes)
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
