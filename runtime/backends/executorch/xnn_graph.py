"""Judging a graph for XNNPACK: every number in it fits every other, and the data that it names.

XNNPACK reads a constant by the dimensions that its value declares, and trusts the order of the
nodes; so a graph is taken where each node's output has the shape that its inputs give.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retnet_edge.runtime.backends.executorch.flatbuffer import (
    MOST_BYTES,
    TYPE,
    DamagedError,
    Reader,
    Table,
)
from retnet_edge.runtime.backends.executorch.schemas import XNN_GRAPH

Shape = tuple[int, ...]
Argument = tuple[int, Shape]
"""XNNPACK's number of the type, and the dimensions."""

_HEADER = struct.Struct("<4s4sHIIIQ")
_IDENTIFIERS = (b"XN00", b"XN01")
_NONE = 0xFFFFFFFF  # XNN_INVALID_VALUE_ID
_MOST_ELEMENTS = 1 << 36
_MOST_DIMENSIONS = 6
# bits of an element, by XNNPACK's number of the type
_BITS = {1: 32, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8, 7: 32, 8: 4, 9: 8, 10: 4, 12: 32, 14: 16}
_UNARY = (
    *("Softmax", "Sigmoid", "Clamp", "Floor", "Convert", "SquareRoot", "Ceiling", "Hardswish"),
    *("LeakyReLU", "Negate", "Square", "ELU", "Abs", "ReciprocalSquareRoot", "Log", "Gelu"),
    *("Tanh", "Exp", "Sin", "Copy", "Cos"),
)
_BINARY = ("Add", "Div", "Minimum", "Multiply", "Subtract", "Maximum")
_INPUTS = (
    *("input_id", "input1_id", "input2_id", "input3_id", "input4_id", "input5_id"),
    *("filter_id", "bias_id"),
)
_KEEP_DIMENSIONS = 64


def check_graph(
    read: Callable[[int, int], bytes],
    whole: int,
    named: Mapping[str, int],
    arguments: Sequence[Argument],
) -> set[int]:
    """The places among a call's arguments that the graph writes.

    Raises DamagedError where XNNPACK may not be given the graph. read(offset, size): of its
    segment, which has `whole` bytes. named: the program's named data and their bytes. arguments: of
    the call; a value's external id is a place among them.
    """
    if whole < _HEADER.size:
        raise DamagedError("a graph for XNNPACK has no header")
    _, magic, length, start, size, data, data_size = _HEADER.unpack(read(0, _HEADER.size))
    if magic != b"XH00" or length != _HEADER.size or start + size > whole or size > MOST_BYTES:
        raise DamagedError("a graph for XNNPACK does not lie within its segment")
    if data > whole or data_size > whole - data:
        raise DamagedError("the constants of a graph for XNNPACK do not lie within its segment")
    body = read(start, size)
    kind = body[4:8]
    if kind not in _IDENTIFIERS:
        raise DamagedError("a graph for XNNPACK is of another kind than XN00 and XN01")
    graph = Reader(memoryview(body), XNN_GRAPH).root("XNNGraph", kind)
    if graph["constant_buffer"]:
        raise DamagedError("a graph for XNNPACK holds constants where none are written")
    if graph["num_externs"] != len(arguments):
        raise DamagedError(f"a call of {len(arguments)} values has {graph['num_externs']} of them")
    sizes = _constants(graph["constant_data"] or [], named, data_size)
    values = _Values(sizes, arguments)
    for value in graph["xvalues"] or []:
        values.add(value["xvalue_union"])
    for node in graph["xnodes"] or []:
        values.compute(node["xnode_union"])
    return values.finish()


def _constants(entries: list[Table], named: Mapping[str, int], data_size: int) -> list[int]:
    """Bytes of each constant, as many as there really are."""
    sizes = []
    for index, entry in enumerate(entries):
        key, offset, size = entry["named_key"], entry["offset"], entry["size"]
        if index == 0:
            sizes.append(0)  # stands for none
        elif key is None:
            if offset > data_size or size > data_size - offset:
                raise DamagedError(f"constant {index} of a graph lies outside its data")
            sizes.append(size)
        else:
            if key not in named:
                raise DamagedError(f"constant {index} of a graph is not among the named data")
            sizes.append(named[key])
    return sizes


class _Values:
    """The values of a graph so far, and what is known of them."""

    def __init__(self, sizes: list[int], arguments: Sequence[Argument]) -> None:
        self._sizes = sizes
        self._arguments = arguments
        self._shapes: dict[int, Shape] = {}
        self._types: dict[int, int] = {}
        self._known: set[int] = set()  # those that an input, a constant or a node gave
        self._outputs: set[int] = set()
        self._externals: set[int] = set()
        self._places: dict[int, int] = {}

    def add(self, value: Table | None) -> None:
        """A value as it stands in the graph."""
        quantized = None if value is None else value.get("quant_params")
        tensor = value if value is None or "tensor_value" not in value else value["tensor_value"]
        if value is None or tensor is None or ("tensor_value" in value) != (quantized is not None):
            raise DamagedError("a graph has a value of no known kind")
        number, dtype = tensor["id_out"], tensor["datatype"]
        shape = _shape(tensor["dims"], tensor["num_dims"])
        if number in self._shapes or number == _NONE or dtype not in _BITS or tensor["dq_datatype"]:
            raise DamagedError(f"value {number} of a graph is not one that can be")
        constant, external, flags = (
            tensor[name] for name in ("constant_buffer_idx", "external_id", "flags")
        )
        if flags not in (0, 1, 2) or (external != _NONE) != (flags != 0) or (constant and flags):
            raise DamagedError(f"value {number} of a graph is both inside and outside")
        self._shapes[number], self._types[number] = shape, dtype
        if constant:
            self._enough(constant, math.prod(shape) * _BITS[dtype], number)
            if _BITS[dtype] == 4 and shape and shape[-1] % 2:
                self._enough(constant, shape[0] * (shape[-1] + 1) * 4, number)
            self._known.add(number)
        if flags:
            if external in self._externals or external >= len(self._arguments):
                raise DamagedError(f"value {number} of a graph is no argument of its call")
            if self._arguments[external] != (dtype, shape):
                raise DamagedError(f"value {number} of a graph is not what its call gives")
            self._externals.add(external)
            self._places[number] = external
            (self._known if flags == 1 else self._outputs).add(number)
        if quantized is not None:
            self._check_scales(quantized, shape, dtype, number)

    def _enough(self, constant: int, bits: int, number: int) -> None:
        if constant >= len(self._sizes) or bits > 8 * self._sizes[constant]:
            raise DamagedError(f"value {number} of a graph is larger than its data")

    def _check_scales(self, quantized: Table, shape: Shape, dtype: int, number: int) -> None:
        kind = quantized[TYPE]
        if kind == "PerTensorQuant":
            return
        if kind == "PerTokenDynamicQuant":
            if not 0 < quantized["num_nonbatch_dims"] <= len(shape):
                raise DamagedError(f"value {number} of a graph is quantized over no dimensions")
            return
        axis, scales = quantized["channel_dim"], quantized["scale"]
        if not 0 <= axis < len(shape) or scales is None:
            raise DamagedError(f"value {number} of a graph is quantized by a channel it lacks")
        needed, width = shape[axis], 32
        if kind == "PerChannelGroupQuant":
            group = quantized["group_size"]
            if len(shape) != 2 or axis != 0 or group <= 0 or shape[1] % group or dtype != 10:
                raise DamagedError(f"value {number} of a graph has groups that do not fit")
            needed, width = shape[0] * (shape[1] // group), 16
        if quantized["scale_buffer_idx"]:
            if quantized["num_scales"] != needed:
                raise DamagedError(f"value {number} of a graph has not {needed} scales")
            self._enough(quantized["scale_buffer_idx"], needed * width, number)
        elif len(scales) != needed:
            raise DamagedError(f"value {number} of a graph has not {needed} scales")

    def compute(self, node: Table | None) -> None:
        """A node: its inputs are known, and its output, known from now on, is what they give."""
        if node is None:
            raise DamagedError("a graph has a node of no known kind")
        kind, output = node[TYPE], node.get("output_id", _NONE)
        names = [name for name in _INPUTS if name in node]
        if kind.startswith("Concatenate"):
            names = names[: int(kind[-1])]
        ids = [node[name] for name in names if name != "bias_id" or node[name] != _NONE]
        if not ids or any(number not in self._known for number in ids):
            raise DamagedError(f"a node {kind} of a graph reads a value before it is there")
        if output not in self._shapes or output in self._known:
            raise DamagedError(f"a node {kind} of a graph writes what is not its own")
        inputs = [self._shapes[number] for number in ids]
        if node["flags"] & ~(_KEEP_DIMENSIONS if kind == "GlobalAvgPooling2d" else 0):
            raise DamagedError(f"a node {kind} of a graph has flags that no export writes")
        if kind not in ("Convert", "FullyConnected") and any(
            self._types[number] != self._types[output] for number in ids
        ):
            raise DamagedError(f"a node {kind} of a graph mixes types of numbers")
        found = output_shape(kind, node, inputs, self._shapes[output])
        if found != self._shapes[output]:
            raise DamagedError(
                f"a node {kind} of a graph has an output of {list(self._shapes[output])} where its "
                f"inputs give {list(found) if found is not None else 'none'}"
            )
        self._known.add(output)

    def finish(self) -> set[int]:
        """The places that the graph writes; every argument is taken, every output computed."""
        if len(self._externals) != len(self._arguments) or not self._outputs <= self._known:
            raise DamagedError("a graph leaves out an argument of its call")
        return {self._places[number] for number in self._outputs}


def _shape(dims: Any, count: int) -> Shape:
    shape = () if dims is None else tuple(int(dim) for dim in dims)
    if len(shape) != count or count > _MOST_DIMENSIONS or math.prod(shape) > _MOST_ELEMENTS:
        raise DamagedError(f"a value of a graph has the dimensions {list(shape)[:8]}")
    return shape


def output_shape(kind: str, node: Table, inputs: list[Shape], declared: Shape) -> Shape | None:
    """The shape that a node's output has; None where its inputs do not go together.

    declared: what its value says, of which a matrix product keeps the leading dimensions. Raises
    DamagedError for a node that no export writes.
    """
    first = inputs[0]
    if kind in _UNARY:
        return first
    if kind in _BINARY:
        return _broadcast(first, inputs[1])
    if kind == "FullyConnected":
        weight = inputs[1]
        if len(weight) != 2 or not first or first[-1] != weight[1]:
            return None
        if any(bias != (weight[0],) for bias in inputs[2:]):
            return None
        rows = math.prod(first[:-1])
        fits = declared and declared[-1] == weight[0] and math.prod(declared[:-1]) == rows
        return declared if fits else None
    if kind == "BatchMatrixMultiply":
        second = inputs[1]
        if len(first) < 2 or len(first) != len(second) or first[-1] != second[-2]:
            return None
        batch = _broadcast(first[:-2], second[:-2])
        return None if batch is None else (*batch, first[-2], second[-1])
    if kind == "GlobalAvgPooling2d":
        return (first[0], 1, 1, first[3]) if len(first) == 4 else None
    if kind == "StaticTranspose":
        order = [int(axis) for axis in _list(node["perm"], node["num_dims"])]
        return (
            tuple(first[axis] for axis in order) if sorted(order) == [*range(len(first))] else None
        )
    if kind == "StaticReshape":
        return _reshaped(first, [int(dim) for dim in _list(node["new_shape"], node["num_dims"])])
    if kind == "StaticSlice":
        begins = [int(dim) for dim in _list(node["offsets"], node["num_dims"])]
        lengths = [int(dim) for dim in _list(node["sizes"], node["num_dims"])]
        if not len(begins) == len(lengths) == len(first):
            return None
        if any(b + n > dim for b, n, dim in zip(begins, lengths, first, strict=True)):
            return None
        return tuple(lengths)
    if kind.startswith("Concatenate"):
        axis = node["axis"]
        if axis >= len(first):
            return None
        rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}
        if len(rest) != 1 or any(len(shape) != len(first) for shape in inputs):
            return None
        return (*first[:axis], sum(shape[axis] for shape in inputs), *first[axis + 1 :])
    raise DamagedError(f"a graph has a node {kind}, which no export of retnet-edge writes")


def _list(found: Any, count: int) -> Any:
    if found is None or len(found) != count:
        raise DamagedError("a node of a graph counts its dimensions wrongly")
    return found


def _broadcast(first: Shape, second: Shape) -> Shape | None:
    rank = max(len(first), len(second))
    pairs = zip(
        (1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second, strict=True
    )
    found = []
    for a, b in pairs:
        if a != b and 1 not in (a, b):
            return None
        found.append(b if a == 1 else a)
    return tuple(found)


def _reshaped(shape: Shape, new: list[int]) -> Shape | None:
    """A zero stands for what is left over."""
    total, rest = math.prod(shape), math.prod(dim for dim in new if dim)
    if new.count(0) == 1 and total % rest == 0:
        return tuple(dim or total // rest for dim in new)
    return tuple(new) if math.prod(new) == total else None
