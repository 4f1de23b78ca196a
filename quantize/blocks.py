"""The pass of weights in blocks: MatMul -> MatMulNBits, Gather -> GatherBlockQuantized."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.quantize.gptq import gptq_blocks
from retnet_edge.quantize.graph_blocks import CODES, LOOKUP_SCALES, SCALES, ZEROS
from retnet_edge.quantize.graph_edit import Weight, add_initializer, replace
from retnet_edge.quantize.rounding import Blocks, pack_nibbles, round_blocks
from retnet_edge.quantize.schemes import BlockInt4, BlockInt8
from retnet_edge.quantize.tails import split_tail

CONTRIB = "com.microsoft"
INT8_COMPUTE = 4  # MatMulNBits' accuracy_level; without it 8-bit weights run 70 times slower


def quantize_weight(
    weight: Weight, scheme: BlockInt8 | BlockInt4, gram: NDArray[np.floating] | None
) -> Blocks:
    """Codes and scales of a matrix; gram: second moments of its inputs, which GPTQ needs."""
    bits = 8 if isinstance(scheme, BlockInt8) else 4
    if not scheme.gptq:
        return round_blocks(weight.matrix(), scheme.block, bits, symmetric=scheme.symmetric)
    assert gram is not None
    return gptq_blocks(weight.matrix(), gram, scheme.block, bits, symmetric=scheme.symmetric)


def apply_blocks(
    model: ir.Model,
    weight: Weight,
    scheme: BlockInt8 | BlockInt4,
    blocks: Blocks,
    input_rms: Mapping[str, float],
) -> None:
    """Replace every node that reads `weight` by ones that read `blocks`.

    input_rms: see `activations.py`. Raises InputError for a lookup of codes with zero points.
    """
    outputs, inputs = weight.matrix().shape
    symmetric = scheme.symmetric
    if weight.lookups and not symmetric:
        raise InputError(
            f"{weight.name} is looked up in, which needs symmetric codes; {scheme.name} has zero "
            "points"
        )
    codes = blocks.codes if blocks.bits == 8 else pack_nibbles(blocks.codes)
    code_value = add_initializer(model, weight.name + CODES, codes)
    scales = blocks.scales

    def multiply(x: ir.Value | None) -> ir.Node:
        scale_value = add_initializer(model, weight.name + SCALES, scales)
        attributes = {
            "K": inputs,
            "N": outputs,
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": INT8_COMPUTE,
        }
        sources = [x, code_value, scale_value]
        if not symmetric:
            zeros = blocks.zeros if blocks.bits == 8 else pack_nibbles(blocks.zeros)
            sources.append(add_initializer(model, weight.name + ZEROS, zeros))
        return ir.node("MatMulNBits", sources, attributes, domain=CONTRIB)

    for product in weight.all_products:
        x = product.inputs[0]
        if scheme.tail is None:
            nodes = [multiply(x)]
        else:
            # body and tail are rows of one product, which reads the weights once
            parts = split_tail(model, x, weight.name, scheme.tail * input_rms[weight.name])
            rows = ir.node("Concat", [part.outputs[0] for part in parts], {"axis": -2})
            both = multiply(rows.outputs[0])
            halves = ir.node("Split", both.outputs, {"axis": -2, "num_outputs": 2}, num_outputs=2)
            nodes = [*parts, rows, both, halves, ir.node("Add", halves.outputs)]
        replace(model, product, nodes)
    for lookup in weight.lookups:
        # the same scales with the rank of the codes, which this operator asks for
        scales3 = add_initializer(model, weight.name + LOOKUP_SCALES, scales[..., None])
        found = ir.node(
            "GatherBlockQuantized",
            [code_value, lookup.inputs[1], scales3],
            {"bits": blocks.bits, "block_size": blocks.block, "gather_axis": 0, "quantize_axis": 2},
            domain=CONTRIB,
        )
        nodes = [found, _joined(model, found.outputs[0])]
        if blocks.codes.shape[1] * blocks.block != inputs:
            nodes.append(_shortened(model, nodes[-1].outputs[0], inputs))
        _describe(lookup, blocks.codes.shape, nodes)
        replace(model, lookup, nodes)
    model.opset_imports[CONTRIB] = 1


def _joined(model: ir.Model, blocks: ir.Value) -> ir.Node:
    """[B, T, blocks, block] -> [B, T, blocks · block]."""
    shape = add_initializer(model, "join_blocks", np.array([0, 0, -1], dtype=np.int64))
    return ir.node("Reshape", [blocks, shape])


def _shortened(model: ir.Model, x: ir.Value, width: int) -> ir.Node:
    """Drop the padding of the last block."""

    def constant(name: str, number: int) -> ir.Value:
        return add_initializer(model, name, np.array([number], dtype=np.int64))

    bounds = [constant("block_start", 0), constant(f"block_stop_{width}", width)]
    return ir.node("Slice", [x, *bounds, constant("block_axis", 2)])


def _describe(lookup: ir.Node, codes: tuple[int, ...], nodes: list[ir.Node]) -> None:
    """Types and shapes of the intermediate values, which shape inference cannot know."""
    ids = lookup.inputs[1]
    assert ids is not None
    assert ids.shape is not None
    batch, tokens = ids.shape[0], ids.shape[1]
    shapes = [[batch, tokens, codes[1], codes[2]], [batch, tokens, codes[1] * codes[2]]]
    for node, shape in zip(nodes, shapes, strict=False):
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(shape)
