"""Matrices in blocks as a quantized graph holds them: read from its constants, and put back.

Scales are constants of float32, which the kernels take: behind a Cast, where a host does not fold
it, MatMulNBits would pack its weights without them, and all of its outputs were 0. (Bundles of some
older versions have float16 and a Cast below 8 bits.) Kernels read 8, 4 or 2 bits. A matrix of 6 is
two of theirs, which share their scales:

    q = 4 q4 + q2,   (q - z) · s = (q4 - z4) · 4s + (q2 - z2) · 4s / 4
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.quantize.numerics.rounding import (
    BlockQuantized,
    pack,
    symmetric_zero_point,
    unpack,
)

CODES, LOW_CODES = ".codes", ".low_codes"
ZEROS, LOW_ZEROS = ".zeros", ".low_zeros"
SCALES = ".scales"
GATHER_SCALES = ".scales3"  # the scales with the rank of the codes

_TWO, _LOW = np.uint8(2), np.uint8(3)


def kernel_parts(blocks: BlockQuantized) -> Iterator[tuple[BlockQuantized, str, str]]:
    """What the kernels read, one or two, with the names' ends of their codes and zeros.

    The second, 2 bits of 6, stands for a quarter of what its scales say.
    """
    if blocks.bits != 6:
        yield blocks, CODES, ZEROS
        return
    scales = blocks.scales * np.float32(4)
    yield BlockQuantized(blocks.codes >> _TWO, scales, blocks.zeros >> _TWO, 4), CODES, ZEROS
    yield BlockQuantized(blocks.codes & _LOW, scales, blocks.zeros & _LOW, 2), LOW_CODES, LOW_ZEROS


def read_blocks(model: ir.Model) -> dict[str, BlockQuantized]:
    """Every matrix that a MatMulNBits multiplies with, by the weight's name."""
    found, low = {}, {}
    for node in model.graph:
        if node.op_type != "MatMulNBits":
            continue
        codes = node.inputs[1]
        assert codes is not None
        assert codes.name is not None
        if codes.name.endswith(LOW_CODES):
            low[codes.name.removesuffix(LOW_CODES)] = blocks_of(node)
        else:
            found[codes.name.removesuffix(CODES)] = blocks_of(node)
    return found | {name: _six_bits(found[name], part) for name, part in low.items()}


def _six_bits(high: BlockQuantized, low: BlockQuantized) -> BlockQuantized:
    """What `kernel_parts` took apart."""
    codes = high.codes << _TWO | low.codes
    zeros = high.zeros << _TWO | low.zeros
    return BlockQuantized(codes, high.scales / np.float32(4), zeros, 6)


def blocks_of(node: ir.Node) -> BlockQuantized:
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
) -> BlockQuantized:
    """The constants with a code a byte, and a zero for every block."""
    if zeros is None:
        zeros = np.full(scales.shape, symmetric_zero_point(bits), dtype=np.uint8)
    else:
        zeros = unpack(zeros, bits)[:, : scales.shape[1]]
    return BlockQuantized(unpack(codes, bits), scales, zeros, bits)


def fold_scales(model: ir.Model) -> None:
    """Store scales of 16 bits, which older versions cast to float32 in the graph, as float32."""
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Cast" else None
        if value is None or value.const_value is None:
            continue
        if not (value.name or "").endswith((SCALES, GATHER_SCALES)):
            continue
        whole = value.const_value.numpy().astype(np.float32)
        value.const_value = ir.tensor(whole, name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        model.graph.remove(node, safe=True)


def write_blocks(model: ir.Model, matrices: Mapping[str, BlockQuantized]) -> None:
    """Put codes and scales in the place of those in the graph; zeros stay as they are.

    Scales are float32 then, as `fold_scales` makes them.
    """
    fold_scales(model)
    for name, blocks in matrices.items():
        for part, codes, _ in kernel_parts(blocks):
            _set(model, name + codes, pack(part.codes, part.bits))
            _set(model, name + SCALES, part.scales)
            if name + GATHER_SCALES in model.graph.initializers:
                _set(model, name + GATHER_SCALES, part.scales[..., None])


def constant(node: ir.Node, index: int) -> NDArray[Any]:
    """The array that an input of a node is, or that an older version casts to it from float16."""
    value = node.inputs[index]
    assert value is not None
    cast = value.producer()
    if cast is not None:
        assert cast.op_type == "Cast"
        return constant(cast, 0).astype(np.float32)
    assert value.const_value is not None
    return value.const_value.numpy()


def _set(model: ir.Model, name: str, array: NDArray[Any]) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    old = value.const_value.numpy()
    assert old.shape == array.shape, (name, array.shape)
    value.const_value = ir.tensor(array.astype(old.dtype, order="C"), name=name)
