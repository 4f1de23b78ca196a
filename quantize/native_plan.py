"""The plan of a native backend, read off a quantized graph whose weights lie in their file.

The products of a RetNet stand in a chain, and so do its norms: in a graph's order they are those of
layer 0, layer 1, … and last the head and the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec
import onnx_ir as ir

from retnet_edge.config import RetNetConfig
from retnet_edge.errors import InputError
from retnet_edge.lowering.onnx_files import WEIGHTS_FILE
from retnet_edge.quantize.recipes.recipe import Recipe
from retnet_edge.quantize.recipes.schemes import BlockInt4, BlockInt8
from retnet_edge.runtime.backends.native.library import NOT_BUILT, native_available
from retnet_edge.runtime.backends.native.plan import (
    PLAN_VERSION,
    Bits,
    Data,
    FileRange,
    Plan,
    PlannedLayer,
    PlannedMatrix,
    check_plan,
    retnet_config,
)
from retnet_edge.runtime.backends.native.table import TABLE_FILE, encode_table
from retnet_edge.runtime.bundle.manifest import Backend, GraphSpec, ModelSpec, TensorSpec

_PRODUCTS, _NORMS = 4, 3  # of a layer
_PRODUCT_OPERATORS = ("MatMulNBits", "MatMul", "MatMulInteger")
_HEAD_NORM = ".head_norm.weight"  # where it is no RMSNormalization (`eps · Z_n`)


def write_native_plan(
    models: Mapping[str, ir.Model], graphs: Sequence[GraphSpec], spec: ModelSpec, folder: Path
) -> list[GraphSpec]:
    """Write the plan of graphs that `save_models` wrote into `folder`; what the manifest records.

    models: by file; graphs: the records of the same, for ONNX Runtime. Raises InputError naming a
    matrix that the native backend cannot multiply with.
    """
    step = next(graph.file for graph in graphs if graph.kind == "step")
    config = retnet_config(spec, TABLE_FILE)
    plan = _plan(models[step], config)
    check_plan(plan, config, (folder / WEIGHTS_FILE).stat().st_size, TABLE_FILE)
    (folder / TABLE_FILE).write_bytes(encode_table(plan, config))
    return _specs(graphs)


def check_native(recipes: Mapping[Backend, Recipe]) -> None:
    """Raises InputError where the native backend could not run what the recipes make of a bundle,
    as far as they tell."""
    recipe = recipes.get("onnxruntime")
    if recipe is None:
        raise InputError(
            "the native backend reads the weights of ONNX graphs: export to onnx as well"
        )
    if recipe.state != "float32":
        raise InputError(
            f"recipe {recipe.name} keeps its states in {recipe.state}; the native backend keeps "
            "float32"
        )
    for rule in recipe.rules:
        if not isinstance(rule.scheme, BlockInt8 | BlockInt4):
            raise InputError(
                f"recipe {recipe.name}: rule {rule.pattern!r} is {rule.scheme.name}; the native "
                "backend takes blocks of 8 or 4 bits"
            )
    if not native_available():
        raise InputError(NOT_BUILT)


def _plan(model: ir.Model, config: RetNetConfig) -> Plan:
    products = [n for n in model.graph if n.op_type in _PRODUCT_OPERATORS]
    for node in products:
        if node.op_type != "MatMulNBits" or _bits(node) not in (4, 8):
            raise InputError(
                f"the native backend cannot multiply with {_weight_name(node)}: it takes matrices "
                "in blocks of 4 or 8 bits, and graphs of the ort flavour"
            )
    norms = [_data(weight) for n in model.graph if (weight := _norm_weight(n)) is not None]
    gathers = [n for n in model.graph if n.op_type == "GatherBlockQuantized"]
    if len(gathers) != 1:
        raise InputError("the native backend takes an embedding in blocks of 4 or 8 bits")
    wanted = (_PRODUCTS * config.layers + 1, _NORMS * config.layers + 1)
    if (len(products), len(norms)) != wanted:
        raise InputError(
            f"the native backend reads {wanted[0]} products and {wanted[1]} norms off the step "
            f"graph of {config.layers} layers; this one has {len(products)} and {len(norms)}"
        )
    matrices = [_product(node) for node in products]
    layers = []
    for i in range(config.layers):
        before, head, after = norms[_NORMS * i : _NORMS * (i + 1)]
        qkvg, out, inner, down = matrices[_PRODUCTS * i : _PRODUCTS * (i + 1)]
        layers.append(PlannedLayer(before, head, after, qkvg, out, inner, down))
    embedding = matrices[-1] if config.tie_embeddings else _lookup(gathers[0], config)
    return Plan(PLAN_VERSION, embedding, matrices[-1], norms[-1], tuple(layers))


def _weight_name(node: ir.Node) -> str:
    """The weight's name without what a scheme has put behind it."""
    value = node.inputs[1]
    found = "" if value is None or value.name is None else value.name
    return found.partition(".weight")[0] + ".weight"


def _norm_weight(node: ir.Node) -> ir.Value | None:
    """The scale of a norm, where the node has one."""
    if node.op_type == "RMSNormalization":
        return node.inputs[1]
    for value in node.inputs if node.op_type == "Mul" else ():
        if value is not None and (value.name or "").endswith(_HEAD_NORM):
            return value
    return None


def _bits(node: ir.Node) -> int:
    return _number(node, "bits")


def _number(node: ir.Node, name: str) -> int:
    """An attribute. Raises InputError where the node does not say it."""
    attribute = node.attributes.get(name)
    if attribute is None or attribute.type != ir.AttributeType.INT:
        raise InputError(f"the step graph's {node.op_type} {node.name!r} does not say its {name}")
    return attribute.as_int()


def _product(node: ir.Node) -> PlannedMatrix:
    """What a MatMulNBits multiplies with."""
    return _matrix(node, _number(node, "N"), _number(node, "K"))


def _lookup(node: ir.Node, config: RetNetConfig) -> PlannedMatrix:
    """What a GatherBlockQuantized takes rows of."""
    return _matrix(node, config.vocab_size, config.d_model)


def _matrix(node: ir.Node, rows: int, inputs: int) -> PlannedMatrix:
    """The node's constants are codes, scales and, where they are not all the middle, zeros."""
    constants = [
        constant for value in node.inputs if value is not None and (constant := _constant(value))
    ]
    if len(constants) not in (2, 3):
        raise InputError(
            f"the native backend cannot multiply with {_weight_name(node)}: codes and scales, and "
            "zero points if any, have to be constants"
        )
    codes, scales, *zeros = constants
    return PlannedMatrix(
        rows=rows,
        inputs=inputs,
        bits=cast(Bits, _bits(node)),
        block=_number(node, "block_size"),
        codes=_data(codes),
        scales=_data(scales),
        scale_dtype="float16" if scales.dtype == ir.DataType.FLOAT16 else "float32",
        zeros=_data(zeros[0]) if zeros else None,
    )


def _constant(value: ir.Value) -> ir.Value | None:
    """The initializer that a value is, or that it is cast from."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast":
        value, producer = producer.inputs[0] or value, None
    return value if producer is None and value.const_value is not None else None


def _data(value: ir.Value) -> Data:
    """Where a constant lies, or its bytes."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor):
        return FileRange(tensor.offset or 0, tensor.nbytes)
    return tensor.tobytes()


def _specs(graphs: Sequence[GraphSpec]) -> list[GraphSpec]:
    """The plan as the manifest records it: one file for both kinds, one sequence, in place."""

    def one(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            msgspec.structs.replace(s, shape=tuple(1 if d == "batch" else d for d in s.shape))
            for s in specs
        )

    return [
        msgspec.structs.replace(
            graph,
            file=TABLE_FILE,
            backend="native",
            inputs=one(graph.inputs),
            outputs=one(graph.outputs),
            external_data=(WEIGHTS_FILE,),
            operator_sets={},
            operators=(),
            needs=None,
            serves_step=True,
            states_in_place=True,
        )
        for graph in graphs
    ]
