"""Kernel parity, apart from quantization error: the quantized graph against the same in NumPy.

The graph's standard operators are evaluated by `onnx.reference` (NumPy), the contrib operators by
the formulas that they stand for, on the same fake-quantized weights and activations. What differs
is the backend's arithmetic and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from retnet_edge.errors import InputError
from retnet_edge.quantize.calibration.instrumented import Array, InstrumentedGraph, step_feeds
from retnet_edge.quantize.graphs.block_tensors import blocks_of, constant, unpacked
from retnet_edge.quantize.numerics.fake_quantized import (
    block_int8_product,
    dynamic_int8_product,
    static_int8_product,
)
from retnet_edge.quantize.numerics.rounding import (
    BlockQuantized,
    dequantize,
    symmetric_zero_point,
    unpack,
)
from retnet_edge.runtime.backends.ort.options import has_int16_activations
from retnet_edge.runtime.bundle.bundle import Bundle

_Formula = Callable[[Any], NDArray[np.float64]]


class KernelParity(msgspec.Struct, frozen=True):
    """Largest absolute differences between ONNX Runtime and NumPy over `tokens` steps.

    `product_error`: of any quantized matrix product, on the inputs that the running graph gave it.
    `logit_error_*`: of the whole step from the same token and state: median, and largest, over the
    steps. An activation on the edge between two int8 codes may round the other way in the other
    arithmetic, and then moves logits by more than rounding does; `steps_within` is the share of
    steps whose logits agree to 1e-4 all the same. int16_activations: there are 16-bit ones.
    """

    tokens: int
    products: int
    product_error: float
    logit_error_median: float
    logit_error_max: float
    steps_within: float
    int16_activations: bool = False


@dataclass(frozen=True)
class _Product:
    """A quantized matrix product: names of its input and output, and its formula."""

    input: str
    output: str
    formula: _Formula


def measure_kernel_parity(bundle: Bundle, tokens: NDArray[np.int64]) -> KernelParity:
    """Step through `tokens` [T] on ONNX Runtime, and redo every step in NumPy."""
    model = ir.load(bundle.file(bundle.manifest.graph("step").file))
    products = _products(model)
    outputs = [value.name for value in model.graph.outputs]
    evaluator = _evaluator(model)
    taps = {name for product in products for name in (product.input, product.output)}
    values = [v for node in model.graph for v in node.outputs if v.name in taps]
    step = InstrumentedGraph(bundle, model, values)
    states = step.zero_states()
    product_error, logit_errors = 0.0, []
    for position, token in enumerate(tokens):
        feeds = step_feeds(int(token), position, states)
        expected = dict(zip(outputs, evaluator.run(outputs, feeds), strict=True))
        found, states = step.run(int(token), position, states)
        logit_errors.append(float(np.abs(found["logits"] - expected["logits"]).max()))
        for product in products:
            error = np.abs(found[product.output] - product.formula(found[product.input])).max()
            product_error = max(product_error, float(error))
    return KernelParity(
        tokens=len(tokens),
        products=len(products),
        product_error=product_error,
        logit_error_median=float(np.median(logit_errors)),
        logit_error_max=max(logit_errors),
        steps_within=float(np.mean(np.array(logit_errors) <= 1e-4)),
        int16_activations=has_int16_activations(bundle.manifest),
    )


def _evaluator(model: ir.Model) -> ReferenceEvaluator:
    """The graph in NumPy. Small constants lie in the proto; weights are read into it."""
    whole = ir.from_proto(ir.to_proto(model))
    # QuantizeLinear of set 18 is not in onnx.reference; in 19 it, and all else here, is the same
    whole.opset_imports[""] = max(19, whole.opset_imports[""])
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            whole.graph.initializers[name].const_value = ir.tensor(tensor.numpy(), name=name)
    return ReferenceEvaluator(ir.to_proto(whole), new_ops=list(_CONTRIB_OPERATORS))


def _products(model: ir.Model) -> list[_Product]:
    found = []
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            output = node.outputs[0]

            formula = _block_formula(blocks_of(node))

        elif node.op_type == "MatMulInteger":
            quantizer = _made_by(node, 0)
            last = _reader(_reader(node))
            scale = _made_by(last, 1)
            codes, scales = constant(node, 1), constant(scale, 1)
            output = last.outputs[0]
            node = quantizer

            formula = _dynamic_formula(codes, scales)

        elif node.op_type == "MatMul" and _reads_codes(node):
            output = node.outputs[0]
            back, weights = _made_by(node, 0), _made_by(node, 1)
            codes, scales = constant(weights, 0), constant(weights, 1)
            formula = _static_formula(constant(back, 1), constant(back, 2), codes, scales)
            node = _made_by(back, 0)

        else:
            continue
        source = node.inputs[0]
        assert source is not None
        assert source.name is not None
        assert output.name is not None
        found.append(_Product(source.name, output.name, formula))
    return found


def _block_formula(blocks: BlockQuantized) -> _Formula:
    return lambda x: block_int8_product(x, blocks.codes, blocks.scales, blocks.zeros)


def _dynamic_formula(codes: Array, scales: Array) -> _Formula:
    return lambda x: dynamic_int8_product(x, codes, scales)


def _static_formula(scale: Array, zero: Array, codes: Array, scales: Array) -> _Formula:
    return lambda x: static_int8_product(x, scale, zero, codes, scales)


def _made_by(node: ir.Node, index: int) -> ir.Node:
    """The node that makes an input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = None if value is None else value.producer()
    if producer is None:
        raise _unknown(node)
    return producer


def _reads_codes(node: ir.Node) -> bool:
    """True where the second input is dequantized."""
    value = node.inputs[1]
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _reader(node: ir.Node) -> ir.Node:
    """The one node that reads the first output of `node`."""
    usages = tuple(node.outputs[0].uses())
    if len(usages) != 1:
        raise _unknown(node)
    return usages[0].node


def _unknown(node: ir.Node) -> InputError:
    return InputError(
        f"the step graph's {node.op_type} {node.name!r} stands in no product that a scheme makes"
    )


class MatMulNBits(OpRun):
    """com.microsoft.MatMulNBits, 8, 4 and 2 bits, accuracy level 4."""

    op_domain = "com.microsoft"

    def _run(
        self,
        x: Array,
        codes: Array,
        scales: Array,
        zeros: Array | None = None,
        *,
        bits: int = 4,
        **_: Any,
    ) -> tuple[Array]:
        blocks = unpacked(bits, codes, scales, zeros)
        y = block_int8_product(x, blocks.codes, blocks.scales, blocks.zeros)
        return (y.astype(np.float32),)


class GatherBlockQuantized(OpRun):
    """com.microsoft.GatherBlockQuantized along axis 0 of [rows, blocks, block]."""

    op_domain = "com.microsoft"

    def _run(
        self, codes: Array, ids: Array, scales: Array, *, bits: int = 4, **_: Any
    ) -> tuple[Array]:
        rows = unpack(codes[ids], bits)
        return (dequantize(rows, scales[ids][..., 0], symmetric_zero_point(bits)),)


class LinearAttention(OpRun):
    """com.microsoft.LinearAttention, update rule "gated", T = 1: paper, eq. 6."""

    op_domain = "com.microsoft"

    def _run(
        self,
        q: Array,
        k: Array,
        v: Array,
        state: Array,
        log_decay: Array,
        scale: float = 1.0,
        **_: Any,
    ) -> tuple[Array, Array]:
        batch, heads, key_dim, value_dim = state.shape
        q, k = q.reshape(batch, heads, 1, key_dim), k.reshape(batch, heads, key_dim, 1)
        v = v.reshape(batch, heads, 1, value_dim)
        state = np.exp(log_decay).reshape(batch, heads, 1, 1) * state + k * v
        return (scale * (q @ state)).reshape(batch, 1, heads * value_dim), state


_CONTRIB_OPERATORS = (MatMulNBits, GatherBlockQuantized, LinearAttention)
