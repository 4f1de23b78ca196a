"""Graphs written by hand, which recipes are applied to without a model or an export."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import Scheme
from retnet_edge.runtime.bundle.manifest import Tolerance

TOLERANCE = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=2.0, mean_kl=1.0, top1_agreement=0.0
)
Floats = NDArray[np.float32]


def recipe(*rules: tuple[str, Scheme]) -> Recipe:
    return Recipe("test", tuple(Rule(pattern, scheme) for pattern, scheme in rules), TOLERANCE)


def matrix(rows: int, columns: int) -> Floats:
    rng = np.random.default_rng(rows * columns)
    return rng.standard_normal((rows, columns)).astype(np.float32)


def graph(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Floats],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, list[int | str]],
) -> ir.Model:
    """Every output `y` of the graph is Identity of a node's `y_inner`, as no product is one."""
    proto = helper.make_model(
        helper.make_graph(
            [*nodes, *(helper.make_node("Identity", [f"{y}_inner"], [y]) for y in outputs)],
            "by hand",
            [helper.make_tensor_value_info(n, kind, dims) for n, (kind, dims) in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    return ir.from_proto(proto)


def two_products(a: str = "a.weight", b: str = "b.weight") -> ir.Model:
    """y = (x · a) · b."""
    return graph(
        [
            helper.make_node("MatMul", ["x", a], ["h"]),
            helper.make_node("MatMul", ["h", b], ["y_inner"]),
        ],
        {a: matrix(20, 30), b: matrix(30, 10)},
        {"x": (TensorProto.FLOAT, ["batch", 1, 20])},
        {"y": ["batch", 1, 10]},
    )


def language_model(vocab: int, width: int) -> ir.Model:
    """rows = the embedding's of `ids`; y = x · embeddingᵀ: a tied head and nothing between."""
    return graph(
        [
            helper.make_node("Gather", ["embedding.weight", "ids"], ["rows_inner"]),
            helper.make_node("Transpose", ["embedding.weight"], ["head"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "head"], ["y_inner"]),
        ],
        {"embedding.weight": matrix(vocab, width)},
        {
            "ids": (TensorProto.INT64, ["batch", "T"]),
            "x": (TensorProto.FLOAT, ["batch", 1, width]),
        },
        {"rows": ["batch", "T", width], "y": ["batch", 1, vocab]},
    )


def run(model: ir.Model, **feeds: NDArray[Any]) -> list[Floats]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    found: list[Floats] = session.run(None, feeds)
    return found


def matrices_of_codes(model: ir.Model) -> list[str]:
    """8-bit initializers that are no scalars."""
    return [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype in (ir.DataType.UINT8, ir.DataType.INT8) and value.shape
    ]


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph}
