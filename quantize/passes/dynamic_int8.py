"""The pass of `DynamicInt8`: DynamicQuantizeLinear, MatMulInteger, and a scale on what comes out.

Codes are uint8 on both sides: signed weights saturate in the 16-bit sums of CPUs without VNNI.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retnet_edge.quantize.calibration.statistics import ActivationStatistics
from retnet_edge.quantize.graphs.edit import Weight, add_initializer, replace
from retnet_edge.quantize.numerics.rounding import ZERO_POINT, quantize_channels
from retnet_edge.quantize.passes.embedding_gather import replace_gather
from retnet_edge.quantize.passes.outliers import add_products, split_outliers
from retnet_edge.quantize.passes.smoothing import divide, smoothed
from retnet_edge.quantize.recipes.schemes import DynamicInt8


def apply_dynamic_int8(
    model: ir.Model,
    weight: Weight,
    scheme: DynamicInt8,
    input_rms: Mapping[str, float],
    activations: ActivationStatistics | None = None,
) -> None:
    """Replace every node that reads `weight`; codes stand [inputs, outputs] in the graph.

    input_rms: see `activations.py`. activations: what it is multiplied with, which smoothing needs.
    Raises InputError where a matrix that is looked up in is to be smoothed.
    """
    matrix, s, rms = weight.matrix(), None, None
    if scheme.smooth is not None:
        matrix, activations, s = smoothed(weight, activations, scheme.smooth)
        rms = activations.rms
    codes, scales = quantize_channels(matrix)
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

    for product in weight.all_matmuls:
        x = product.inputs[0]
        nodes = [] if s is None else [divide(model, x, weight.name, s)]
        x = nodes[0].outputs[0] if nodes else x
        if scheme.tail is None:
            nodes += multiply(x)
        else:
            # a scale each, so a product each
            threshold = scheme.tail * (input_rms[weight.name] if rms is None else rms)
            parts = split_outliers(model, x, weight.name, threshold)
            nodes += add_products(parts, *(multiply(part.outputs[0]) for part in parts))
        replace(model, product, nodes)
    for gather in weight.gathers:
        replace_gather(model, gather, code_value, scale_value)
