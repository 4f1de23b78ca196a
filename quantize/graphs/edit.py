"""The weight matrices of a graph, where they are used, and putting new nodes in old ones' place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.errors import InputError


@dataclass(frozen=True)
class Weight:
    """A float32 matrix of a graph and every node that reads it.

    `matmuls`: MatMul nodes whose right side it is, with `transposed` products reading it through
    a Transpose (a tied head); `gathers`: Gather nodes that take its rows (an embedding).
    """

    name: str
    value: ir.Value
    matmuls: tuple[ir.Node, ...]
    transposed: tuple[tuple[ir.Node, ir.Node], ...]
    gathers: tuple[ir.Node, ...]

    @property
    def all_matmuls(self) -> tuple[ir.Node, ...]:
        """The MatMul nodes of both kinds."""
        return (*self.matmuls, *(product for _, product in self.transposed))

    def matrix(self) -> NDArray[np.float32]:
        """W [outputs, inputs] (of an embedding: [vocab, d_model])."""
        assert self.value.const_value is not None
        stored = self.value.const_value.numpy()
        return np.ascontiguousarray(stored.T if self.matmuls else stored)


def weight_matrices(model: ir.Model, where: str) -> list[Weight]:
    """Every float32 matrix among the initializers of `model`, in the graph's order.

    Raises InputError naming a matrix that is read by a node that no scheme can replace.
    """
    found = []
    for name, value in model.graph.initializers.items():
        if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != 2:
            continue
        if not name.endswith(".weight"):
            if any(node.op_type == "MatMul" for node, _ in value.uses()):
                raise InputError(
                    f"{where}: {name} was not quantized: MatMul reads it, and only matrices whose "
                    "name ends in .weight are quantized"
                )
            continue
        matmuls, transposed, gathers = [], [], []
        for node, index in value.uses():
            readers = [reader for reader, _ in node.outputs[0].uses()]
            if node.op_type == "MatMul" and index == 1:
                matmuls.append(node)
            elif node.op_type == "Gather" and index == 0:
                gathers.append(node)
            elif node.op_type == "Transpose" and all(r.op_type == "MatMul" for r in readers):
                transposed += [(node, reader) for reader in readers]
            else:
                raise InputError(
                    f"{where}: {name} was not quantized: {node.op_type} reads it, and only MatMul "
                    "and Gather can read a quantized matrix"
                )
        if matmuls and (transposed or gathers):
            raise InputError(f"{where}: {name} was not quantized: it is used both ways around")
        found.append(Weight(name, value, tuple(matmuls), tuple(transposed), tuple(gathers)))
    return found


def matmul_inputs(
    model: ir.Model, where: str, wanted: Callable[[str], bool]
) -> dict[str, ir.Value]:
    """What each weight wanted is multiplied with, by the weight's name.

    Raises InputError as `weight_matrices` does.
    """
    return {
        weight.name: value
        for weight in weight_matrices(model, where)
        if wanted(weight.name)
        for product in weight.all_matmuls
        if (value := product.inputs[0]) is not None
    }


def add_initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """A constant of the graph, made once for a name."""
    if name not in model.graph.initializers:
        # not ascontiguousarray, which makes a scalar one-dimensional
        tensor = ir.tensor(np.array(array, order="C"), name=name)
        model.graph.register_initializer(
            ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        )
    return model.graph.initializers[name]


def cast_to_float32(model: ir.Model, halves: ir.Value, name: str) -> ir.Value:
    """A constant of 16 bits as float32, made once for a name: ONNX Runtime casts it at load."""
    for node in model.graph:
        if node.outputs[0].name == name:
            return node.outputs[0]
    cast = ir.node("Cast", [halves], {"to": ir.DataType.FLOAT})
    whole = cast.outputs[0]
    whole.name, whole.shape, whole.type = name, halves.shape, ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(model.graph[0], cast)
    return whole


def replace(model: ir.Model, old: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Put `nodes` in the place of `old`; the last one's first output takes over its name."""
    result, replaced = nodes[-1].outputs[0], old.outputs[0]
    result.shape, result.type = replaced.shape, replaced.type
    name, replaced.name = replaced.name, f"{replaced.name}_unquantized"
    result.name = name
    model.graph.insert_before(old, nodes)
    ir.convenience.replace_all_uses_with(replaced, result)
    model.graph.remove(old, safe=True)


def drop_unused(model: ir.Model, weight: Weight) -> None:
    """Remove the transposes of a weight and the weight itself once nothing reads them."""
    for transpose in {id(node): node for node, _ in weight.transposed}.values():
        if not transpose.outputs[0].uses():
            model.graph.remove(transpose, safe=True)
    if not weight.value.uses():
        del model.graph.initializers[weight.name]
