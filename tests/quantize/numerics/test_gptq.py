"""GPTQ and rounding in blocks of 4, 6 and 8 bits, on matrices whose best answer is known."""

from __future__ import annotations

import gptq_by_hand as by_hand
import numpy as np
import pytest

from retnet_edge.quantize.numerics.gptq import damped, fit_scales, gptq_blocks, gptq_codes
from retnet_edge.quantize.numerics.rounding import (
    pack,
    round_blocks,
    search_scales,
    stored_scales,
    symmetric_zero_point,
    to_blocks,
    unpack,
)

EACH = pytest.mark.parametrize(
    ("bits", "symmetric"), [(4, True), (4, False), (6, True), (6, False), (8, True), (8, False)]
)
RNG = np.random.default_rng(7)


def correlated(inputs: int, rows: int = 400) -> np.ndarray:
    """Inputs [rows, inputs] that depend on each other and differ in size."""
    mixing = RNG.normal(size=(8, inputs))
    x = RNG.normal(size=(rows, 8)) @ mixing + 0.3 * RNG.normal(size=(rows, inputs))
    return x * RNG.uniform(0.1, 3.0, size=inputs)


@EACH
@pytest.mark.parametrize("inputs", [96, 70])
def test_less_of_the_output_is_lost_than_by_rounding(
    bits: int, symmetric: bool, inputs: int
) -> None:
    weight = RNG.normal(size=(24, inputs)).astype(np.float32)
    x = correlated(inputs)

    def lost(quantized: np.ndarray) -> float:
        return float(np.square(x @ (quantized - weight).T).sum())

    nearest = round_blocks(weight, 32, bits, symmetric=symmetric)
    found = gptq_blocks(weight, x.T @ x, 32, bits, symmetric=symmetric)
    assert found.codes.shape == nearest.codes.shape == (24, -(-inputs // 32), 32)
    assert lost(found.matrix(inputs)) < 0.6 * lost(nearest.matrix(inputs))


@EACH
def test_weights_that_have_codes_keep_them(bits: int, symmetric: bool) -> None:
    """Codes that use the whole range come back exactly, whatever the inputs were."""
    codes = RNG.integers(0, 2**bits, size=(5, 64))
    codes[:, ::32], codes[:, 1::32] = 0, 2**bits - 1
    zero = symmetric_zero_point(bits) if symmetric else 5
    weight = ((codes - zero) * 0.25).astype(np.float32)
    x = correlated(64)
    found = gptq_blocks(weight, x.T @ x, 32, bits, symmetric=symmetric)
    np.testing.assert_allclose(found.matrix(64), weight, atol=1e-3)


def test_inputs_that_are_always_zero_are_rounded_to_the_nearest() -> None:
    weight = RNG.normal(size=(4, 32)).astype(np.float32)
    gram = np.zeros((32, 32))
    found = gptq_blocks(weight, gram, 32, 4, symmetric=True)
    assert np.abs(found.matrix(32) - weight).max() <= found.scales.max()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("width", [6, 7])
def test_codes_are_packed_lowest_bits_first(bits: int, width: int) -> None:
    codes = RNG.integers(0, 2**bits, size=(3, width)).astype(np.uint8)
    packed, each = pack(codes, bits), 8 // bits
    assert packed.dtype == np.uint8
    assert packed.shape == (3, -(-width // each))
    assert packed[0, 0] == sum(int(codes[0, i]) << bits * i for i in range(each))
    np.testing.assert_array_equal(unpack(packed, bits)[:, :width], codes)
    assert not unpack(packed, bits)[:, width:].any()


def test_a_block_of_zeros_stays_zero() -> None:
    blocks = round_blocks(np.zeros((2, 40), dtype=np.float32), 32, 4, symmetric=False)
    assert not blocks.matrix(40).any()


def test_damping_of_a_small_matrix() -> None:
    """Half of (0.5 + 4.5 + 1) / 3 everywhere on the diagonal; the matrix given stays as it is."""
    gram = np.array([[0.5, 0.25, 0.0], [0.25, 4.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
    before = gram.copy()
    assert damped(gram, 0.5).tolist() == [[1.5, 0.25, 0.0], [0.25, 5.5, 0.0], [0.0, 0.0, 2.0]]
    assert (gram == before).all()


# 150 inputs: two borders at which the columns behind are told what the columns before have lost.
WIDE, BLOCK = 150, 32


def case(bits: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights [6, 150], a gram matrix with one input that never came, scales and zeros by block."""
    weight = RNG.normal(size=(6, WIDE)).astype(np.float32)
    x = correlated(WIDE)
    x[:, 17] = 0.0
    gram = x.T @ x
    importance = to_blocks(by_hand.hessian_of(gram, 0.02).diagonal()[None], BLOCK)[0]
    groups = to_blocks(weight, BLOCK)
    scales, zeros = search_scales(groups, importance, bits, symmetric=symmetric)
    return weight, gram, scales, zeros


@EACH
def test_codes_are_those_of_one_column_at_a_time(bits: int, symmetric: bool) -> None:
    weight, gram, scales, zeros = case(bits, symmetric)
    hessian = by_hand.hessian_of(gram, 0.02)
    args = weight.astype(np.float64), hessian, scales, zeros, BLOCK, bits
    np.testing.assert_array_equal(gptq_codes(*args), by_hand.codes_of(*args))


@EACH
def test_scales_are_those_of_the_normal_equations(bits: int, symmetric: bool) -> None:
    """To the last digits of float32: finer than the ridge of a millionth."""
    weight, gram, scales, zeros = case(bits, symmetric)
    weight[1] *= 0.01  # few levels: the ridge is of each row's own
    hessian = by_hand.hessian_of(gram, 0.02)
    codes = by_hand.codes_of(weight.astype(np.float64), hessian, scales, zeros, BLOCK, bits)
    scales[0, 1], scales[2, 3] = scales[0, 1] * 3, scales[2, 3] / 3  # these stay
    args = weight.astype(np.float64), hessian, codes, scales, zeros, BLOCK
    found = fit_scales(*args)
    np.testing.assert_allclose(found, by_hand.scales_of(*args), rtol=2e-7)
    kept = found == scales.astype(np.float32)
    assert kept[0, 1]
    assert kept[2, 3]
    assert not kept.all()


@EACH
def test_the_whole_of_gptq(bits: int, symmetric: bool) -> None:
    """Damping of 2 %, codes, scales fitted to them as a file holds them, and codes once more."""
    weight, gram, scales, zeros = case(bits, symmetric)
    hessian, target = by_hand.hessian_of(gram, 0.02), weight.astype(np.float64)
    codes = by_hand.codes_of(target, hessian, scales, zeros, BLOCK, bits)
    fitted = by_hand.scales_of(target, hessian, codes, scales, zeros, BLOCK)
    fitted = stored_scales(fitted, bits)
    codes = by_hand.codes_of(target, hessian, fitted, zeros, BLOCK, bits)
    found = gptq_blocks(weight, gram, BLOCK, bits, symmetric=symmetric)
    np.testing.assert_allclose(found.scales, fitted, rtol=2e-7)
    np.testing.assert_array_equal(found.zeros, zeros)
    np.testing.assert_array_equal(found.codes.reshape(6, -1)[:, :WIDE], codes)
    padding = found.codes.reshape(6, -1)[:, WIDE:]
    np.testing.assert_array_equal(padding, np.repeat(found.zeros[:, -1:], padding.shape[1], axis=1))


def fit_one(weight: float, moment: float, level: float, scale: float) -> float:
    """`fit_scales` of one weight, whose input has the second moment `moment`."""
    w, h, code, s, zero = (np.array([[x]]) for x in (weight, moment, level + 8, scale, 8.0))
    return float(fit_scales(w, h, code, s, zero, 1)[0, 0])


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (1.0, 6 / (4 * (1 + 1e-6))),
        (100.0, 6 / (4 * (1 + 1e-6))),
        (1e-12, 6 / (4 * (1 + 1e-6) + 1)),
    ],
)
def test_the_ridge_of_a_scale(moment: float, expected: float) -> None:
    """s = w h q / (h q² (1 + 1e-6) + 1e-12) of w = 3 and q = 2: a ridge makes it smaller."""
    assert fit_one(3.0, moment, 2.0, 1.3) == pytest.approx(expected, rel=1e-7)


def test_a_scale_that_would_be_halved_or_doubled_stays() -> None:
    """The fitted scale is h exactly, since with its ridge the denominator of h is 1."""
    h = (1 - 1e-12) / (1 + 1e-6)
    assert h + (1e-6 * h + 1e-12) == 1.0
    moves = np.float32(h)
    for factor in (0.1, 0.4, 0.5, 2.0, 2.2, 30.0):
        assert fit_one(1.0, h, 1.0, factor * h) == np.float32(factor * h)
    for factor in (0.51, 0.7, 1.0, 1.3, 1.98):
        assert fit_one(1.0, h, 1.0, factor * h) == moves
    # nor does a scale change its sign
    assert fit_one(-0.2, h, 1.0, h) == moves
