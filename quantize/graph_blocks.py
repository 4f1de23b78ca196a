"""Matrices in blocks as a quantized graph holds them: read from its constants, and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.quantize.rounding import Blocks, pack_nibbles, unpack_nibbles

CODES, SCALES, ZEROS = ".codes", ".scales", ".zeros"
LOOKUP_SCALES = ".scales3"  # the scales with the rank of the codes


def read_blocks(model: ir.Model) -> dict[str, Blocks]:
    """Every matrix that a MatMulNBits multiplies with, by the weight's name."""
    found = {}
    for node in model.graph:
        if node.op_type != "MatMulNBits":
            continue
        codes = node.inputs[1]
        assert codes is not None
        assert codes.name is not None
        found[codes.name.removesuffix(CODES)] = blocks_of(node)
    return found


def blocks_of(node: ir.Node) -> Blocks:
    """What the constants of a MatMulNBits hold."""
    bits = node.attributes["bits"].as_int()
    codes, scales = constant(node, 1), constant(node, 2)
    zeros = constant(node, 3) if len(node.inputs) > 3 else None
    return unpacked(bits, codes, scales, zeros)


def unpacked(
    bits: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
) -> Blocks:
    """The constants with a code a byte, and a zero for every block."""
    if bits == 4:
        codes = unpack_nibbles(codes)
        if zeros is not None:
            zeros = unpack_nibbles(zeros)[:, : scales.shape[1]]
    if zeros is None:
        zeros = np.full(scales.shape, 1 << (bits - 1), dtype=np.uint8)
    return Blocks(codes, scales, zeros, bits)


def write_blocks(model: ir.Model, matrices: Mapping[str, Blocks]) -> None:
    """Put codes and scales in the place of those in the graph; zeros stay as they are."""
    for name, blocks in matrices.items():
        codes = blocks.codes if blocks.bits == 8 else pack_nibbles(blocks.codes)
        _set(model, name + CODES, codes)
        _set(model, name + SCALES, blocks.scales)
        if name + LOOKUP_SCALES in model.graph.initializers:
            _set(model, name + LOOKUP_SCALES, blocks.scales[..., None])


def constant(node: ir.Node, index: int) -> NDArray[Any]:
    """The array that an input of a node is."""
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _set(model: ir.Model, name: str, array: NDArray[Any]) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    assert tuple(value.const_value.shape.numpy()) == array.shape, (name, array.shape)
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
