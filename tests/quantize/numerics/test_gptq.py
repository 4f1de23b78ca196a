"""GPTQ and rounding in blocks of 4, 6 and 8 bits, on matrices whose best answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from retnet_edge.quantize.numerics.gptq import gptq_blocks
from retnet_edge.quantize.numerics.rounding import pack, round_blocks, symmetric_zero_point, unpack

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
