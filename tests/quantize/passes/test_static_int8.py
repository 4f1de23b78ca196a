"""Static activations and smoothing on graphs written by hand: what they compute and refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphs_by_hand import graph, matrix, recipe
from numpy.typing import NDArray
from onnx import TensorProto, helper

from retnet_edge.errors import InputError
from retnet_edge.quantize.calibration.statistics import ActivationStatistics
from retnet_edge.quantize.numerics.fake_quantized import static_int8_product
from retnet_edge.quantize.numerics.rounding import quantize_channels
from retnet_edge.quantize.passes.smoothing import smoothquant_scales
from retnet_edge.quantize.quantize import apply_recipe
from retnet_edge.quantize.recipes.schemes import DynamicInt8, Scheme, StaticInt8Qdq
from retnet_edge.runtime.backends.ort.graph import DISABLE_QDQ_FUSION

RNG = np.random.default_rng(3)
X = RNG.standard_normal((1, 50, 20)).astype(np.float32)
X[..., 7] *= 30  # a channel that is much larger than the others
WEIGHT = matrix(20, 30)  # [in, out]
EXACT = X.astype(np.float64) @ WEIGHT


def inputs(x: NDArray[np.float32]) -> ActivationStatistics:
    rows = x.reshape(-1, x.shape[-1])
    return ActivationStatistics((float(x.min()), float(x.max())), np.abs(rows).max(axis=0), rows)


def one_product() -> ir.Model:
    node = helper.make_node("MatMul", ["x", "a.weight"], ["y_inner"])
    shape: dict[str, tuple[int, list[int | str]]] = {"x": (TensorProto.FLOAT, [1, "T", 20])}
    return graph([node], {"a.weight": WEIGHT}, shape, {"y": [1, "T", 30]})


def quantized(scheme: Scheme, x: NDArray[np.float32] = X) -> tuple[ir.Model, NDArray[Any]]:
    model = one_product()
    (applied,) = apply_recipe(
        model, recipe(("*", scheme)), "g.onnx", {"a.weight": 1.0}, samples={"a.weight": inputs(x)}
    )
    assert applied.scheme == scheme.name
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        *DISABLE_QDQ_FUSION
    )  # or 16-bit activations would become 8-bit ones
    proto = ir.to_proto(model).SerializeToString()
    (y,) = onnxruntime.InferenceSession(proto, options).run(None, {"x": X})
    return model, y


def error(y: NDArray[Any]) -> float:
    return float(np.linalg.norm(y - EXACT) / np.linalg.norm(EXACT))


@pytest.mark.parametrize("bits", [8, 16])
def test_the_product_is_that_of_the_formula(bits: Any) -> None:
    model, y = quantized(StaticInt8Qdq(bits, "min-max"))
    constants = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    codes, scales = quantize_channels(WEIGHT.T.copy())
    scale, zero = constants["a.weight.input_scale"], constants["a.weight.input_zero"]
    assert zero.dtype == (np.uint8 if bits == 8 else np.uint16)
    wanted = static_int8_product(X, scale, zero, codes.T, scales)
    np.testing.assert_allclose(y, wanted, atol=2e-4)
    onnx.checker.check_model(ir.to_proto(model))


def test_more_bits_err_less() -> None:
    of_8, of_16 = (error(quantized(StaticInt8Qdq(bits, "min-max"))[1]) for bits in (8, 16))
    assert of_16 < 0.5 * of_8


def test_a_large_channel_costs_less_when_smoothed() -> None:
    plain = error(quantized(StaticInt8Qdq(range="min-max"))[1])
    assert error(quantized(StaticInt8Qdq(range="min-max", smooth=0.5))[1]) < 0.7 * plain


def test_a_large_channel_costs_less_when_split_off() -> None:
    plain = error(quantized(StaticInt8Qdq(range="min-max"))[1])
    model, y = quantized(StaticInt8Qdq(range="min-max", tail=0.5))
    assert error(y) < plain
    assert [n.op_type for n in model.graph].count("MatMul") == 2


def test_a_large_channel_costs_less_in_dynamic_products_too() -> None:
    plain = error(quantized(DynamicInt8())[1])
    assert error(quantized(DynamicInt8(smooth=0.5))[1]) < 0.7 * plain
    assert error(quantized(DynamicInt8(smooth=0.5, tail=1.0))[1]) < 0.7 * plain


def test_values_outside_the_range_are_clipped() -> None:
    _, y = quantized(StaticInt8Qdq(range="min-max"), X / np.float32(10))
    assert error(y) > 0.3


def test_smoothing_is_exact_but_for_rounding() -> None:
    s = smoothquant_scales(np.abs(X).reshape(-1, 20).max(axis=0), WEIGHT.T, 0.5)
    np.testing.assert_allclose((X / s) @ (WEIGHT.T * s).T, EXACT, rtol=1e-3, atol=1e-3)
    assert s[7] == s.max()


def test_channels_of_zeros_are_not_smoothed() -> None:
    largest = np.array([0.0, 2.0, 2.0], dtype=np.float32)
    weight = np.array([[1.0, 0.0, 8.0]], dtype=np.float32)
    np.testing.assert_allclose(smoothquant_scales(largest, weight, 0.5), [1.0, 1.0, 0.5])


@pytest.mark.parametrize("scheme", [StaticInt8Qdq(smooth=0.5), DynamicInt8(smooth=0.5)])
def test_what_is_looked_up_in_cannot_be_smoothed(scheme: Scheme) -> None:
    node = helper.make_node("Gather", ["a.weight", "ids"], ["y_inner"])
    ids: dict[str, tuple[int, list[int | str]]] = {"ids": (TensorProto.INT64, ["batch", "T"])}
    model = graph([node], {"a.weight": WEIGHT}, ids, {"y": ["batch", "T", 30]})
    with pytest.raises(InputError, match=r"a\.weight is looked up in, and cannot be smoothed"):
        apply_recipe(model, recipe(("*", scheme)), "g.onnx")


def test_extremes_of_smoothed_inputs_hold_all_values() -> None:
    seen = inputs(X)
    s = smoothquant_scales(seen.largest, WEIGHT.T, 0.5)
    low, high = seen.divided(s).range
    assert low <= float((X / s).min())
    assert high >= float((X / s).max())
