"""Recipes: which rule decides about a matrix, on graphs written by hand that need no export."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs_by_hand import (
    graph,
    language_model,
    matrices_of_codes,
    matrix,
    operators,
    recipe,
    run,
    two_products,
)
from onnx import TensorProto, helper

from retnet_edge.errors import InputError
from retnet_edge.quantize.numerics.rounding import dequantize, quantize_blocks, quantize_channels
from retnet_edge.quantize.quantize import apply_recipe
from retnet_edge.quantize.recipes.built_in import RECIPES, find_recipe
from retnet_edge.quantize.recipes.schemes import BlockInt8, DynamicInt8, Float32, Scheme


@pytest.mark.parametrize("name", ["int8-weight", "fp16", "bf16"])
def test_a_built_in_recipe_decides_about_every_matrix(name: str) -> None:
    model = two_products("a.inner.weight", "a.out.weight")
    applied = apply_recipe(model, find_recipe(name), "g.onnx", {"a.out.weight": 1.0})
    assert [(t.weight, t.shape) for t in applied] == [
        ("a.inner.weight", (30, 20)),
        ("a.out.weight", (10, 30)),
    ]
    assert all(t.scheme != "float32" for t in applied)
    assert ("MatMul" in operators(model)) == (name != "int8-weight")
    assert not {"a.inner.weight", "a.out.weight"} & set(model.graph.initializers)


def test_the_first_rule_that_matches_wins() -> None:
    rules = recipe(("a.*", Float32()), ("*.weight", DynamicInt8()))
    model = two_products()
    applied = apply_recipe(model, rules, "g.onnx")
    assert [(t.weight, t.rule, t.scheme) for t in applied] == [
        ("a.weight", "a.*", "float32"),
        ("b.weight", "*.weight", "int8-dynamic"),
    ]
    assert "a.weight" in model.graph.initializers
    assert operators(model) >= {"MatMul", "MatMulInteger"}
    for name, pattern in (
        ("a.weight", "a.*"),
        ("b.weight", "*.weight"),
        ("b.a.weight", "*.weight"),
    ):
        assert rules.rule_for(name).pattern == pattern


def test_a_rule_that_decides_about_nothing_is_refused() -> None:
    """One that matches no name, and one that others have forestalled."""
    for pattern in ("c.*", "b.*"):
        with pytest.raises(InputError, match=rf"recipe test: the rule '{pattern[0]}\.\*' decides"):
            apply_recipe(
                two_products(), recipe(("?.weight", BlockInt8()), (pattern, Float32())), "g.onnx"
            )


def test_a_matrix_that_no_rule_matches_is_refused() -> None:
    with pytest.raises(InputError, match=r"no rule matches the weight b\.weight \(a\.\*\)"):
        apply_recipe(two_products(), recipe(("a.*", BlockInt8())), "g.onnx")


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown recipe 'int3'; known for onnxruntime: int8,"):
        find_recipe("int3")
    with pytest.raises(InputError, match="recipe 'int4-weight' is for onnxruntime; known for exec"):
        find_recipe("int4-weight", "executorch")


def test_recipes_are_found_by_the_name_that_they_record() -> None:
    for backend, recipes in RECIPES.items():
        assert all(find_recipe(r.name, backend) is r for r in recipes)
        assert {"int8", "int8-dynamic"} <= {r.name for r in recipes}


def product_on_the_left() -> ir.Model:
    return graph(
        [helper.make_node("MatMul", ["a.weight", "x"], ["y_inner"])],
        {"a.weight": matrix(20, 30)},
        {"x": (TensorProto.FLOAT, [30, 5])},
        {"y": [20, 5]},
    )


def sum_of_weights() -> ir.Model:
    return graph(
        [
            helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
            helper.make_node("ReduceSum", ["a.weight"], ["total"], keepdims=0),
            helper.make_node("Add", ["h", "total"], ["y_inner"]),
        ],
        {"a.weight": matrix(20, 30)},
        {"x": (TensorProto.FLOAT, ["batch", 1, 20])},
        {"y": ["batch", 1, 30]},
    )


def lookup_along_columns() -> ir.Model:
    """Both ways around: rows are looked up, and inputs multiplied with the same layout."""
    return graph(
        [
            helper.make_node("Gather", ["a.weight", "ids"], ["h"]),
            helper.make_node("MatMul", ["h", "a.weight"], ["y_inner"]),
        ],
        {"a.weight": matrix(20, 20)},
        {"ids": (TensorProto.INT64, ["batch", 1])},
        {"y": ["batch", 1, 20]},
    )


@pytest.mark.parametrize("scheme", [BlockInt8(), DynamicInt8()])
@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (product_on_the_left, "MatMul reads it"),
        (sum_of_weights, "ReduceSum reads it"),
        (lookup_along_columns, "it is used both ways around"),
    ],
)
def test_a_matrix_that_cannot_be_quantized_is_named(
    model: Any, complaint: str, scheme: Scheme
) -> None:
    with pytest.raises(InputError, match=rf"g\.onnx: a\.weight was not quantized: {complaint}"):
        apply_recipe(model(), recipe(("*", scheme)), "g.onnx")


def test_a_matrix_by_another_name_is_not_passed_over() -> None:
    """An exporter that folds a transposed weight into a constant gives it a name of its own."""
    model = graph(
        [
            helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
            helper.make_node("MatMul", ["h", "val_7"], ["y_inner"]),
        ],
        {"a.weight": matrix(20, 30), "val_7": matrix(30, 10)},
        {"x": (TensorProto.FLOAT, ["batch", 1, 20])},
        {"y": ["batch", 1, 10]},
    )
    with pytest.raises(InputError, match="val_7 was not quantized"):
        apply_recipe(model, recipe(("*", BlockInt8())), "g.onnx")


@pytest.mark.parametrize("width", [40, 128, 200])
@pytest.mark.parametrize("block", [16, 128])
def test_blocks_of_any_width_of_a_tied_embedding(width: int, block: int) -> None:
    """A lookup is the dequantized row to the bit, and the head reads the same codes."""
    model = language_model(50, width)
    (applied,) = apply_recipe(model, recipe(("*", BlockInt8(block))), "g.onnx")
    assert (applied.shape, applied.scheme) == ((50, width), f"int8-block{block}")
    weight = matrix(50, width)
    codes, scales = quantize_blocks(weight, block)
    rounded = dequantize(codes, scales).reshape(50, -1)[:, :width]
    ids = np.array([[0, 49, 7], [7, 1, 48]])
    x = np.random.default_rng(3).standard_normal((2, 1, width)).astype(np.float32)
    rows, y = run(model, ids=ids, x=x)
    np.testing.assert_array_equal(rows, rounded[ids])
    # activations are rounded to int8 too: about 1/254 of their largest, on sums of `width` terms
    assert np.abs(y - x @ rounded.T).max() <= 0.05 * np.sqrt(width)
    assert matrices_of_codes(model) == ["embedding.weight.codes"]


@pytest.mark.parametrize("width", [40, 128, 200])
def test_channels_of_any_width_of_a_tied_embedding(width: int) -> None:
    model = language_model(50, width)
    (applied,) = apply_recipe(model, recipe(("*", DynamicInt8())), "g.onnx")
    assert (applied.shape, applied.scheme) == ((50, width), "int8-dynamic")
    rounded = dequantize(*quantize_channels(matrix(50, width)))
    ids = np.array([[0, 49, 7], [7, 1, 48]])
    x = np.random.default_rng(3).standard_normal((2, 1, width)).astype(np.float32)
    rows, y = run(model, ids=ids, x=x)
    np.testing.assert_allclose(rows, rounded[ids], rtol=1e-6)
    assert np.abs(y - x @ rounded.T).max() <= 0.05 * np.sqrt(width)
    assert [n for n in model.graph.initializers if n.endswith(".codes")] == [
        "embedding.weight.codes"
    ]


def test_float32_leaves_the_graph_as_it_was() -> None:
    model, before = language_model(50, 40), language_model(50, 40)
    (applied,) = apply_recipe(model, recipe(("*", Float32())), "g.onnx")
    assert (applied.scheme, applied.shape) == ("float32", (50, 40))
    assert ir.to_proto(model) == ir.to_proto(before)


def test_what_is_not_a_matrix_of_weights_is_left_alone() -> None:
    """Norm scales, and constants of other ranks."""
    model = graph(
        [
            helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
            helper.make_node("Mul", ["h", "norm.weight"], ["y_inner"]),
        ],
        {"a.weight": matrix(20, 30), "norm.weight": matrix(1, 30)[0]},
        {"x": (TensorProto.FLOAT, ["batch", 1, 20])},
        {"y": ["batch", 1, 30]},
    )
    (applied,) = apply_recipe(model, recipe(("*", BlockInt8(16))), "g.onnx")
    assert applied.weight == "a.weight"
    assert "norm.weight" in model.graph.initializers
