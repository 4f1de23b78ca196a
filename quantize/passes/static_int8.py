"""The pass of `StaticInt8Qdq`: QuantizeLinear and DequantizeLinear around each product.

    x -> q(x) with one scale and zero point that were measured on text -> MatMul with 8-bit weights

The form that toolchains of accelerators read. ONNX Runtime's CPU kernels multiply 8-bit codes as
integers; 16-bit activations it turns back to float32 first. Weights are uint8 around 128: signed
ones saturate in the 16-bit sums of CPUs without VNNI.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from retnet_edge.quantize.calibration.statistics import ActivationStatistics
from retnet_edge.quantize.graphs.edit import Weight, add_initializer, replace
from retnet_edge.quantize.numerics.ranges import Range, find_range, scale_and_zero
from retnet_edge.quantize.numerics.rounding import ZERO_POINT, quantize_channels
from retnet_edge.quantize.passes.embedding_gather import replace_gather
from retnet_edge.quantize.passes.outliers import add_products, split_outliers
from retnet_edge.quantize.passes.smoothing import divide, smoothed
from retnet_edge.quantize.recipes.schemes import StaticInt8Qdq


def apply_static_int8(
    model: ir.Model, weight: Weight, scheme: StaticInt8Qdq, activations: ActivationStatistics | None
) -> None:
    """Replace every node that reads `weight`; codes stand [inputs, outputs] in the graph.

    activations: what it is multiplied with (None where it is only looked up in). Raises InputError
    where a matrix that is looked up in is to be smoothed.
    """
    matrix = weight.matrix()
    s = None
    if scheme.smooth is not None:
        matrix, activations, s = smoothed(weight, activations, scheme.smooth)
    codes, scales = quantize_channels(matrix)
    code_value = add_initializer(model, f"{weight.name}.codes", codes.T)
    scale_value = add_initializer(model, f"{weight.name}.scales", scales)
    middle = np.full(scales.shape, ZERO_POINT, dtype=np.uint8)
    middles = add_initializer(model, f"{weight.name}.zeros", middle)

    def multiply(x: ir.Value, limits: Range, part: str) -> list[ir.Node]:
        scale, zero = scale_and_zero(limits, scheme.activation_bits)
        kind = np.uint8 if scheme.activation_bits == 8 else np.uint16
        name = f"{weight.name}.{part}"
        how = [
            add_initializer(model, f"{name}_scale", np.array(scale)),
            add_initializer(model, f"{name}_zero", np.array(zero, dtype=kind)),
        ]
        to_codes = ir.node("QuantizeLinear", [x, *how])
        back = ir.node("DequantizeLinear", [to_codes.outputs[0], *how])
        w = ir.node("DequantizeLinear", [code_value, scale_value, middles], {"axis": 1})
        return [to_codes, back, w, ir.node("MatMul", [back.outputs[0], w.outputs[0]])]

    for product in weight.all_matmuls:
        assert activations is not None
        x = product.inputs[0]
        nodes: list[ir.Node] = [] if s is None else [divide(model, x, weight.name, s)]
        x = nodes[0].outputs[0] if nodes else x
        assert x is not None
        if scheme.tail is None:
            limits = find_range(
                activations.rows, activations.range, scheme.range, scheme.activation_bits
            )
            nodes += multiply(x, limits, "input")
        else:
            threshold = scheme.tail * activations.rms
            parts = split_outliers(model, x, weight.name, threshold)
            products = []
            for part, name, of in zip(
                parts, ("body", "tail"), activations.split(threshold), strict=True
            ):
                limits = find_range(of.rows, of.range, scheme.range, scheme.activation_bits)
                products.append(multiply(part.outputs[0], limits, name))
            nodes += add_products(parts, *products)
        replace(model, product, nodes)
    for gather in weight.gathers:
        replace_gather(model, gather, code_value, scale_value)
