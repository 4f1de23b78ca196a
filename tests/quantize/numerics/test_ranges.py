"""Ranges of static activations: what each method keeps, and that zero stays zero."""

from __future__ import annotations

import numpy as np
import pytest

from retnet_edge.quantize.numerics.ranges import (
    Method,
    find_range,
    quantize_dequantize,
    scale_and_zero,
)

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(100_000).astype(np.float32)
HEAVY = np.concatenate([NORMAL, np.array([60.0, -40.0], dtype=np.float32)])
METHODS: list[Method] = ["min-max", "percentile", "mse", "entropy"]


def seen(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def error(values: np.ndarray, method: Method) -> float:
    limits = find_range(values, seen(values), method, 8)
    return float(np.square(values - quantize_dequantize(values, limits, 8)).mean())


def test_min_max_is_all_that_was_seen_and_not_only_the_sample() -> None:
    assert find_range(NORMAL, (-9.0, 7.0), "min-max", 8) == (-9.0, 7.0)


def test_a_percentile_leaves_a_ten_thousandth_out_at_either_end() -> None:
    low, high = find_range(HEAVY, seen(HEAVY), "percentile", 8)
    assert (low > HEAVY).mean() == pytest.approx(1e-4, rel=0.1)
    assert (high < HEAVY).mean() == pytest.approx(1e-4, rel=0.1)


def test_the_least_square_is_below_all_and_both_ends() -> None:
    assert error(HEAVY, "mse") < 0.9 * error(HEAVY, "min-max")
    assert error(HEAVY, "mse") < error(HEAVY, "percentile")
    assert error(HEAVY, "mse") < error(HEAVY, "entropy")


def test_entropy_cuts_a_few_large_values_off() -> None:
    low, high = find_range(HEAVY, seen(HEAVY), "entropy", 8)
    assert 2.0 < high < 30.0
    assert -30.0 < low < -2.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_zero_has_a_code_of_its_own(method: Method, sign: int) -> None:
    values = sign * (np.abs(NORMAL) + np.float32(1))
    limits = find_range(values, seen(values), method, 8)
    assert limits[0] <= 0.0 <= limits[1]
    assert quantize_dequantize(np.zeros(1), limits, 8)[0] == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_zeros_alone_stay_zero(method: Method) -> None:
    limits = find_range(np.zeros(100), (0.0, 0.0), method, 8)
    assert limits == (0.0, 0.0)
    scale, zero = scale_and_zero(limits, 8)
    assert (float(scale), zero) == (1.0, 0)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_value_inside_moves_by_half_a_code_at_most(bits: int) -> None:
    limits = seen(NORMAL)
    scale, zero = scale_and_zero(limits, bits)
    assert 0 <= zero < 2**bits
    assert np.abs(NORMAL - quantize_dequantize(NORMAL, limits, bits)).max() <= 0.51 * scale
