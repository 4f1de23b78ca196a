"""The pass of weights in blocks: MatMul -> MatMulNBits, Gather -> GatherBlockQuantized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.quantize.graphs.block_tensors import GATHER_SCALES, SCALES, kernel_parts
from retnet_edge.quantize.graphs.edit import Weight, add_initializer, replace
from retnet_edge.quantize.numerics.gptq import gptq_blocks
from retnet_edge.quantize.numerics.rounding import (
    FLOAT16_SCALE_RANGE,
    BlockQuantized,
    Codes,
    Floats,
    pack,
    round_blocks,
)
from retnet_edge.quantize.passes.outliers import split_outliers
from retnet_edge.quantize.recipes.schemes import BlockInt

CONTRIB = "com.microsoft"
INT8_COMPUTE = 4  # MatMulNBits' accuracy_level; without it 8-bit weights run 70 times slower


def quantize_weight(
    weight: Weight, scheme: BlockInt, gram: NDArray[np.floating] | None
) -> BlockQuantized:
    """Codes and scales of a matrix; gram: second moments of its inputs, which GPTQ needs.

    Raises InputError, naming the matrix, where a scale is larger than float16 can hold.
    """
    matrix, symmetric = weight.matrix(), scheme.symmetric
    if not scheme.gptq:
        blocks = round_blocks(matrix, scheme.block, scheme.bits, symmetric=symmetric)
    else:
        assert gram is not None
        blocks = gptq_blocks(matrix, gram, scheme.block, scheme.bits, symmetric=symmetric)
    largest = FLOAT16_SCALE_RANGE[1]
    if scheme.bits < 8 and blocks.scales.max(initial=0.0) >= largest:
        raise InputError(
            f"{weight.name} holds {float(np.abs(matrix).max()):g}: the scale of a block of "
            f"{scheme.bits} bits would be above {largest:g}, more than float16 can hold; give it 8 "
            "bits or float32"
        )
    return blocks


def apply_blocks(
    model: ir.Model,
    weight: Weight,
    scheme: BlockInt,
    blocks: BlockQuantized,
    input_rms: Mapping[str, float],
) -> None:
    """Replace every node that reads `weight` by ones that read `blocks`.

    input_rms: see `activations.py`. Raises InputError for a lookup of codes with zero points.
    """
    if weight.gathers and not scheme.symmetric:
        raise InputError(
            f"{weight.name} is looked up in, which needs symmetric codes; {scheme.name} has zero "
            "points"
        )
    stored = _Stored.of(model, weight, blocks, zeros=not scheme.symmetric)
    for product in weight.all_matmuls:
        x = product.inputs[0]
        if scheme.tail is None:
            nodes = _multiplied(model, x, stored)
        else:
            # body and tail are rows of one product, which reads the weights once
            parts = split_outliers(model, x, weight.name, scheme.tail * input_rms[weight.name])
            rows = ir.node("Concat", [part.outputs[0] for part in parts], {"axis": -2})
            both = _multiplied(model, rows.outputs[0], stored)
            halves = ir.node(
                "Split", both[-1].outputs, {"axis": -2, "num_outputs": 2}, num_outputs=2
            )
            nodes = [*parts, rows, *both, halves, ir.node("Add", halves.outputs)]
        replace(model, product, nodes)
    for gather in weight.gathers:
        replace(model, gather, _gathered(model, gather, stored))
    model.opset_imports[CONTRIB] = 1


@dataclass(frozen=True)
class _Stored:
    """A matrix [outputs, inputs] in blocks as constants of a graph.

    parts: what the kernels read, as bits, codes and zero points (none where they are symmetric).
    """

    name: str
    shape: tuple[int, int]
    blocks: BlockQuantized
    scales: Floats
    parts: tuple[tuple[int, ir.Value, ir.Value | None], ...]

    @classmethod
    def of(cls, model: ir.Model, weight: Weight, blocks: BlockQuantized, *, zeros: bool) -> _Stored:
        """`blocks` of a weight, whose constants are added to the graph."""
        parts = list(kernel_parts(blocks))

        def constant(end: str, codes: Codes, bits: int) -> ir.Value:
            return add_initializer(model, weight.name + end, pack(codes, bits))

        outputs, inputs = weight.matrix().shape
        return cls(
            weight.name,
            (outputs, inputs),
            blocks,
            parts[0][0].scales,
            tuple(
                (
                    part.bits,
                    constant(codes_end, part.codes, part.bits),
                    constant(zeros_end, part.zeros, part.bits) if zeros else None,
                )
                for part, codes_end, zeros_end in parts
            ),
        )


def _multiplied(model: ir.Model, x: ir.Value | None, stored: _Stored) -> list[ir.Node]:
    """The nodes that multiply `x` with a matrix; the last one has the result."""
    scales = add_initializer(model, stored.name + SCALES, stored.scales)
    outputs, inputs = stored.shape

    def product(x: ir.Value | None, bits: int, codes: ir.Value, zeros: ir.Value | None) -> ir.Node:
        attributes = {
            "K": inputs,
            "N": outputs,
            "bits": bits,
            "block_size": stored.blocks.block,
            "accuracy_level": INT8_COMPUTE,
        }
        sources = [x, codes, scales] if zeros is None else [x, codes, scales, zeros]
        return ir.node("MatMulNBits", sources, attributes, domain=CONTRIB)

    high, *low = stored.parts
    nodes = [product(x, *high)]
    for part in low:
        # of x and not of the product: it is shorter, and a power of two changes none of its codes
        quarter = ir.node("Mul", [x, _quarter(model)])
        nodes += [quarter, product(quarter.outputs[0], *part)]
        nodes.append(ir.node("Add", [nodes[0].outputs[0], nodes[-1].outputs[0]]))
    return nodes


def _gathered(model: ir.Model, gather: ir.Node, stored: _Stored) -> list[ir.Node]:
    """The nodes that take the rows that `gather` takes; the last one has the result."""
    # the same scales with the rank of the codes, which this operator asks for
    scales = add_initializer(model, stored.name + GATHER_SCALES, stored.scales[..., None])
    _, count, block = stored.blocks.codes.shape

    def rows(bits: int, codes: ir.Value, _: ir.Value | None) -> ir.Node:
        attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 2}
        sources = [codes, gather.inputs[1], scales]
        return ir.node("GatherBlockQuantized", sources, attributes, domain=CONTRIB)

    high, *low = stored.parts
    nodes = [rows(*high)]
    for part in low:
        found = rows(*part)
        quarter = ir.node("Mul", [found.outputs[0], _quarter(model)])
        total = ir.node("Add", [nodes[0].outputs[0], quarter.outputs[0]])
        nodes += [found, quarter, total]
    _describe(gather, nodes, count, block)
    nodes.append(_joined(model, nodes[-1].outputs[0]))
    _describe(gather, nodes[-1:], count * block)
    inputs = stored.shape[1]
    if count * block != inputs:
        nodes.append(_shortened(model, nodes[-1].outputs[0], inputs))
    return nodes


def _quarter(model: ir.Model) -> ir.Value:
    return add_initializer(model, "quarter", np.array(0.25, dtype=np.float32))


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


def _describe(gather: ir.Node, nodes: Iterable[ir.Node], *dims: int) -> None:
    """Types and shapes [B, T, *dims] of results, which shape inference cannot know."""
    ids = gather.inputs[1]
    assert ids is not None
    assert ids.shape is not None
    for node in nodes:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([ids.shape[0], ids.shape[1], *dims])
