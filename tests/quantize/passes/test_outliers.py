"""Tails: the split is exact, a product loses less by it, and nothing is stored a second time.

On graphs written by hand; of whole bundles see test_activations.py.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs_by_hand import (
    Floats,
    graph,
    language_model,
    matrices_of_codes,
    matrix,
    recipe,
    run,
    two_products,
)
from numpy.typing import NDArray
from onnx import TensorProto, helper

from retnet_edge.quantize.numerics.fake_quantized import block_int8_product, dynamic_int8_product
from retnet_edge.quantize.numerics.rounding import dequantize, quantize_blocks, quantize_channels
from retnet_edge.quantize.passes.outliers import split_outliers
from retnet_edge.quantize.quantize import apply_recipe
from retnet_edge.quantize.recipes.schemes import BlockInt8, DynamicInt8, Scheme

OUTPUTS = 24
SHAPES = ((1, 1), (3, 1), (1, 5), (3, 5))
SCHEMES = pytest.mark.parametrize("scheme", [BlockInt8, DynamicInt8])


def heavy_tailed(*shape: int, seed: int = 0) -> Floats:
    """Normal, but one channel in fifty is some thirty times as large."""
    x = np.random.default_rng(seed).standard_normal(shape)
    x[..., 7::50] = np.copysign(30.0, x[..., 7::50]) + x[..., 7::50]
    return x.astype(np.float32)


def rms(x: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def product(inputs: int, rank: int) -> ir.Model:
    """y = x · a, x of the rank given."""
    free: list[int | str] = ["batch", "T"]
    free = free[: rank - 1]
    return graph(
        [helper.make_node("MatMul", ["x", "a.weight"], ["y_inner"])],
        {"a.weight": matrix(inputs, OUTPUTS)},
        {"x": (TensorProto.FLOAT, [*free, inputs])},
        {"y": [*free, OUTPUTS]},
    )


def quantized(model: ir.Model, scheme: Scheme, x: Floats) -> ir.Model:
    apply_recipe(model, recipe(("*", scheme)), "g.onnx", {"a.weight": rms(x)})
    return model


def formula(scheme: type[Scheme], x: Floats, weight: Floats) -> NDArray[np.float64]:
    """What the kernel of a scheme makes of x, weight being W [outputs, inputs]."""
    if scheme is BlockInt8:
        return block_int8_product(x, *quantize_blocks(weight, 128))
    codes, scales = quantize_channels(weight)
    return dynamic_int8_product(x, codes.T, scales)


@pytest.mark.parametrize("threshold", [0.0, 1e-3, 1.0, 2.7, 1e4])
def test_body_and_tail_add_up(threshold: float) -> None:
    """Each has the sign of x, no body lies beyond the threshold, no tail where x is within."""
    model = graph([], {}, {"x": (TensorProto.FLOAT, ["n"])}, {"body": ["n"], "tail": ["n"]})
    identities = {node.outputs[0].name: node for node in model.graph}
    parts = split_outliers(model, model.graph.inputs[0], "a.weight", threshold)
    model.graph.insert_before(identities["body"], parts)
    for name, part in zip(("body", "tail"), parts, strict=True):
        identities[name].replace_input_with(0, part.outputs[0])
    edges = [0.0, threshold, np.nextafter(np.float32(threshold), 0), np.float32(1e30), 1e-30]
    x = np.concatenate([heavy_tailed(2_000), edges, np.negative(edges)]).astype(np.float32)
    body, tail = run(model, x=x)
    assert (np.abs(body + tail - x) <= np.spacing(np.abs(x))).all()
    exact = body.astype(np.float64) + tail
    assert (np.abs(exact - x) <= np.spacing(np.abs(x)) / 2).all()
    limit = np.float32(threshold)
    np.testing.assert_array_equal(body, np.clip(x, -limit, limit))
    assert (tail[np.abs(x) <= limit] == 0.0).all()
    assert (tail[x > 0.0] >= 0.0).all()
    assert (tail[x < 0.0] <= 0.0).all()


@SCHEMES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inputs", [52, 128, 200])
def test_a_product_of_heavy_tails_loses_less(
    scheme: type[BlockInt8 | DynamicInt8], shape: tuple[int, int], inputs: int
) -> None:
    """Against the same rounded weights times the inputs as they are: what is left is the inputs'
    rounding, in steps a third as large for all but one value in fifty.
    """
    weight = np.ascontiguousarray(matrix(inputs, OUTPUTS).T)
    if scheme is BlockInt8:
        rounded = dequantize(*quantize_blocks(weight, 128)).reshape(OUTPUTS, -1)[:, :inputs]
    else:
        rounded = dequantize(*quantize_channels(weight))
    draws = [heavy_tailed(*shape, inputs, seed=seed) for seed in range(8)]

    def errors(scheme: Scheme) -> Floats:
        model = quantized(product(inputs, 3), scheme, np.stack(draws))
        return np.stack([run(model, x=x)[0] - x @ rounded.T for x in draws])

    plain, split = errors(scheme()), errors(scheme(tail=2.0))
    assert plain.shape == (8, *shape, OUTPUTS)
    assert np.linalg.norm(split) < 0.5 * np.linalg.norm(plain)


@SCHEMES
@pytest.mark.parametrize("shape", [*SHAPES, (1,), (4,)])
@pytest.mark.parametrize("inputs", [52, 200])
@pytest.mark.parametrize("tail", [0.5, 2.0, 1e3])
def test_a_product_is_that_of_the_body_and_that_of_the_tail(
    scheme: type[BlockInt8 | DynamicInt8], shape: tuple[int, ...], inputs: int, tail: float
) -> None:
    """Row by row, whether or not there is an axis of time; a tail may be all zero."""
    x = heavy_tailed(*shape, inputs)
    (found,) = run(quantized(product(inputs, x.ndim), scheme(tail=tail), x), x=x)
    limit = np.float32(tail * rms(x))
    body = np.clip(x, -limit, limit)
    assert (x - body).any() == (tail < 1e3)
    weight = np.ascontiguousarray(matrix(inputs, OUTPUTS).T)
    wanted = formula(scheme, body, weight) + formula(scheme, x - body, weight)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()


@SCHEMES
def test_every_matrix_has_bounds_of_its_own(scheme: type[BlockInt8 | DynamicInt8]) -> None:
    model = two_products()
    apply_recipe(
        model, recipe(("*", scheme(tail=2.0))), "g.onnx", {"a.weight": 0.5, "b.weight": 3.0}
    )
    bounds = [
        [
            float(value.const_value.numpy())
            for value in node.inputs[1:]
            if value and value.const_value
        ]
        for node in model.graph
        if node.op_type == "Clip"
    ]
    assert bounds == [[-1.0, 1.0], [-6.0, 6.0]]


@SCHEMES
def test_the_codes_are_stored_once(scheme: type[BlockInt8 | DynamicInt8]) -> None:
    """And all that a graph with tails holds besides is the two bounds."""
    x = heavy_tailed(1, 1, 200)
    plain = quantized(product(200, 3), scheme(), x).graph.initializers
    split = quantized(product(200, 3), scheme(tail=2.0), x)
    matrices = [name for name in matrices_of_codes(split) if name != "weight_zero_point"]
    assert matrices == ["a.weight.codes"]
    added = split.graph.initializers.keys() - plain.keys()
    assert added == {"a.weight.body_low", "a.weight.body_high"}
    for name, value in plain.items():
        assert value.const_value is not None
        other = split.graph.initializers[name].const_value
        assert other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())


def test_blocks_read_their_weights_in_one_product() -> None:
    """Twice the rows of one product, and not two of them: a step's time is reading weights."""
    x = heavy_tailed(1, 1, 200)
    model = quantized(product(200, 3), BlockInt8(tail=2.0), x)
    assert [node.op_type for node in model.graph].count("MatMulNBits") == 1


@SCHEMES
@pytest.mark.parametrize("width", [40, 200])
def test_a_tied_head_with_tails(scheme: type[BlockInt8 | DynamicInt8], width: int) -> None:
    """The head's inputs are split; the rows looked up are those of the codes, as ever."""
    plain, split = language_model(50, width), language_model(50, width)
    x = heavy_tailed(2, 1, width)
    ids = np.array([[0, 49, 7], [7, 1, 48]])
    apply_recipe(plain, recipe(("*", scheme())), "g.onnx")
    (applied,) = apply_recipe(
        split, recipe(("*", scheme(tail=2.0))), "g.onnx", {"embedding.weight": rms(x)}
    )
    assert applied.scheme == scheme(tail=2.0).name
    assert applied.scheme == f"{scheme().name}-tail2"
    (rows, _), (same_rows, y) = run(plain, ids=ids, x=x), run(split, ids=ids, x=x)
    np.testing.assert_array_equal(rows, same_rows)
    limit = np.float32(2.0 * rms(x))
    body = np.clip(x, -limit, limit)
    weight = matrix(50, width)
    wanted = formula(scheme, body, weight) + formula(scheme, x - body, weight)
    assert np.abs(y - wanted).max() <= 1e-6 * np.abs(wanted).max()
    assert [n for n in split.graph.initializers if n.endswith(".codes")] == [
        "embedding.weight.codes"
    ]


@SCHEMES
def test_a_matrix_that_is_only_looked_up_has_no_tails(
    scheme: type[BlockInt8 | DynamicInt8],
) -> None:
    """Nothing is multiplied with it, so that there is no rms of its inputs either."""

    def embedding() -> ir.Model:
        return graph(
            [helper.make_node("Gather", ["embedding.weight", "ids"], ["rows_inner"])],
            {"embedding.weight": matrix(50, 200)},
            {"ids": (TensorProto.INT64, ["batch", "T"])},
            {"rows": ["batch", "T", 200]},
        )

    plain, split = embedding(), embedding()
    apply_recipe(plain, recipe(("*", scheme())), "g.onnx")
    apply_recipe(split, recipe(("*", scheme(tail=2.0))), "g.onnx", {})
    assert ir.to_proto(split) == ir.to_proto(plain)
