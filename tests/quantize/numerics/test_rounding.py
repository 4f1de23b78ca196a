"""Round to nearest: what every scheme promises of its codes and scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from retnet_edge.quantize.numerics.rounding import (
    FLOAT16_SCALE_RANGE,
    GRID,
    INT8_MAX,
    ZERO_POINT,
    BlockQuantized,
    dequantize,
    pack,
    quantize_blocks,
    quantize_channels,
    round_blocks,
    search_scales,
    stored_scales,
    symmetric_zero_point,
    unpack,
)

Floats = NDArray[np.float32]

# From 1e-30 on: below, the scale itself is a denormal number, which float32 rounds coarsely.
magnitudes = st.floats(2.0**-100, 2.0**100, width=32)
numbers = st.one_of(st.just(0.0), magnitudes, magnitudes.map(lambda x: -x))
shapes = st.tuples(st.integers(1, 3), st.integers(1, 40))
matrices = arrays(np.float32, shapes, elements=numbers)
blocks = st.sampled_from([1, 16, 32, 128])


def by_block(weight: Floats, block: int) -> tuple[Floats, Floats]:
    """W dequantized [N, K] and the scale of each of its elements [N, K]."""
    codes, scales = quantize_blocks(weight, block)
    columns = weight.shape[1]
    found = dequantize(codes, scales).reshape(len(weight), -1)
    return found[:, :columns], np.repeat(scales, block, axis=1)[:, :columns]


@given(matrices, blocks)
def test_no_element_is_further_off_than_half_a_scale(weight: Floats, block: int) -> None:
    """Apart from rounding in float32, of a scale of 127 steps."""
    found, scales = by_block(weight, block)
    error = np.abs(found.astype(np.float64) - weight)
    assert (error <= scales * (0.5 + 1e-4)).all()
    codes, of_channels = quantize_channels(weight)
    error = np.abs(dequantize(codes, of_channels).astype(np.float64) - weight)
    assert (error <= of_channels[:, None] * (0.5 + 1e-4)).all()


@given(matrices, blocks)
def test_the_scale_is_the_largest_magnitude_over_127(weight: Floats, block: int) -> None:
    """So the largest element of a block comes back, and no finer scale could hold it."""
    codes, scales = quantize_blocks(weight, block)
    outputs, columns = weight.shape
    count = -(-columns // block)
    assert codes.shape == (outputs, count, block)
    assert scales.shape == (outputs, count)
    for b in range(count):
        largest = np.abs(weight[:, b * block : (b + 1) * block]).max(axis=1)
        wanted = np.where(largest > 0, largest / np.float32(INT8_MAX), 1)
        np.testing.assert_allclose(scales[:, b], wanted, rtol=1e-6)
        extremes = np.abs(codes[:, b].astype(int) - ZERO_POINT).max(axis=1)
        assert (extremes == np.where(largest > 0, INT8_MAX, 0)).all()


@given(matrices, blocks)
def test_codes_are_symmetric(weight: Floats, block: int) -> None:
    """-W has the same scales and the opposite codes; code 0 is never used."""
    codes, scales = quantize_blocks(weight, block)
    opposite, same = quantize_blocks(-weight, block)
    assert (same == scales).all()
    assert (opposite.astype(int) - ZERO_POINT == ZERO_POINT - codes.astype(int)).all()
    assert codes.min() >= ZERO_POINT - INT8_MAX


@given(matrices, st.integers(-20, 20))
def test_a_power_of_two_changes_the_scales_only(weight: Floats, exponent: int) -> None:
    codes, scales = quantize_channels(weight)
    factor = np.float32(2.0**exponent)
    moved, other = quantize_channels(weight * factor)
    assert (moved == codes).all()
    zero = ~weight.any(axis=1)
    np.testing.assert_array_equal(other, np.where(zero, scales, scales * factor))


@given(matrices)
def test_what_was_quantized_stays_as_it_is(weight: Floats) -> None:
    codes, scales = quantize_channels(weight)
    again, _ = quantize_channels(dequantize(codes, scales))
    assert (again == codes).all()


def test_rows_of_zeros_come_back_as_zeros() -> None:
    weight = np.zeros((3, 40), dtype=np.float32)
    weight[1] = np.linspace(-1, 1, 40)
    for found, scales in (by_block(weight, 16), by_block(weight, 128)):
        assert (found[[0, 2]] == 0).all()
        assert (scales[[0, 2]] == 1).all()
        assert np.abs(found[1] - weight[1]).max() <= 0.5 / INT8_MAX


@pytest.mark.parametrize(("columns", "count"), [(127, 1), (128, 1), (129, 2), (300, 3)])
def test_a_last_block_that_is_not_full_holds_zeros(columns: int, count: int) -> None:
    weight = np.random.default_rng(0).standard_normal((5, columns)).astype(np.float32)
    codes, scales = quantize_blocks(weight, 128)
    assert codes.shape == (5, count, 128)
    padding = codes.reshape(5, -1)[:, columns:]
    assert padding.shape[1] == 128 * count - columns
    assert (padding == ZERO_POINT).all()
    # and does not change the scale of its block
    alone, own = quantize_blocks(weight[:, 128 * (count - 1) :], 128)
    assert (codes[:, -1:] == alone).all()
    assert (scales[:, -1:] == own).all()


def test_one_block_over_all_inputs_is_a_channel() -> None:
    weight = np.random.default_rng(1).standard_normal((6, 50)).astype(np.float32)
    codes, scales = quantize_blocks(weight, 50)
    by_channel, channel_scales = quantize_channels(weight)
    assert (codes[:, 0] == by_channel).all()
    assert (scales[:, 0] == channel_scales).all()


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("symmetric", [True, False])
@given(matrix=matrices, block=blocks)
def test_scales_below_8_bits_are_those_of_float16(
    bits: int, symmetric: bool, matrix: Floats, block: int
) -> None:
    """Of weights of any size: none is 0 or infinite, and 6 bits' survive a factor of 4."""
    found = round_blocks(matrix, block, bits, symmetric=symmetric).scales
    least, most = FLOAT16_SCALE_RANGE
    assert ((found >= least) & (found <= most)).all()
    for factor in (1, 4):
        np.testing.assert_array_equal((factor * found).astype(np.float16), factor * found)


@given(st.floats(2.0**-14, FLOAT16_SCALE_RANGE[1]))
def test_a_stored_scale_is_the_nearest(scale: float) -> None:
    (half,) = stored_scales(np.array([scale]), 4)
    assert abs(half - scale) <= scale * 2.0**-11
    assert stored_scales(np.array([half]), 6) == half
    assert stored_scales(np.array([scale]), 8) == np.float32(scale)


def test_constants_of_the_formats() -> None:
    """What every kernel takes for granted of the numbers in a file."""
    assert (ZERO_POINT, INT8_MAX) == (128, 127)
    assert [symmetric_zero_point(bits) for bits in (2, 4, 6, 8)] == [2, 8, 34, 128]
    least, most = FLOAT16_SCALE_RANGE
    assert np.float16(least) > 0 == np.float16(least / 2.1)
    # as a Python number: NumPy would round the other side of a comparison to float16
    assert 4 * most == float(np.finfo(np.float16).max) == float(np.float16(4 * most))


def test_the_matrix_of_blocks_is_cut_to_its_inputs() -> None:
    """(code - zero) · scale, by hand: two outputs of three inputs in blocks of two."""
    found = BlockQuantized(
        codes=np.array([[[0, 3], [5, 8]], [[8, 9], [1, 8]]], np.uint8),
        scales=np.array([[0.5, 2.0], [1.0, 0.25]], np.float32),
        zeros=np.array([[1, 8], [8, 8]], np.uint8),
        bits=4,
    )
    assert found.block == 2
    assert found.matrix(3).tolist() == [[-0.5, 1.0, -6.0], [0.0, 1.0, -1.75]]
    assert found.matrix(4)[:, 3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (8, [1, 2, 3, 1, 0]),
        (4, [0x21, 0x13, 0x00]),
        (2, [0b01_11_10_01, 0b00]),
        (1, [0b0_1_1_0_1]),
    ],
)
def test_bytes_of_packed_codes(bits: int, expected: list[int]) -> None:
    """The first code lies in the lowest bits, and zeros fill the last byte."""
    row = [1, 0, 1, 1, 0] if bits == 1 else [1, 2, 3, 1, 0]
    codes = np.array([[row] * 2] * 3, np.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.tolist() == [[expected] * 2] * 3
    opened = unpack(packed, bits)
    assert opened.shape == (3, 2, len(expected) * 8 // bits)
    assert (opened[..., :5] == codes).all()
    assert not opened[..., 5:].any()


def test_codes_of_8_bits_are_not_copied() -> None:
    """They are the most bytes of all, and packed as they are."""
    codes = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.shares_memory(pack(codes, 8), codes)
    assert np.shares_memory(unpack(codes, 8), codes)


def least_square_scale(
    group: Floats, importance: Floats, bits: int, *, symmetric: bool
) -> tuple[float, float, float]:
    """Scale, zero and error of one block: `search_scales` by its definition, trial by trial."""
    top, half = 2**bits - 1, symmetric_zero_point(bits)
    low, high = min(float(group.min()), 0.0), max(float(group.max()), 0.0)
    reach = max(high / (top - half), -low / half) if symmetric else (high - low) / top
    best = (float(stored_scales(np.array([reach]), bits)[0]), float(half), np.inf)
    for factor in GRID:
        scale = float(stored_scales(np.array([reach * factor]), bits)[0])
        zero = float(half) if symmetric else float(np.clip(round(-low / scale), 0, top))
        codes = np.clip(np.rint(group.astype(np.float64) / scale) + zero, 0, top)
        error = float((importance * ((codes - zero) * scale - group) ** 2).sum())
        if error < best[2]:
            best = (scale, zero, error)
    return best


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shift", [-5.0, -2.0, 0.0, 0.7, 5.0])
def test_scales_are_those_of_the_least_weighted_error(
    bits: int, symmetric: bool, shift: float
) -> None:
    """Of weights around 0 and to one side of it, each input with an importance of its own."""
    random = np.random.default_rng(bits)
    groups = (random.standard_normal((3, 2, 16)) + shift).astype(np.float32)
    importance = random.random((2, 16))
    scales, zeros = search_scales(groups, importance, bits, symmetric=symmetric)
    assert scales.shape == zeros.shape == (3, 2)
    for n in range(3):
        for b in range(2):
            wanted = least_square_scale(groups[n, b], importance[b], bits, symmetric=symmetric)
            assert (scales[n, b], zeros[n, b]) == pytest.approx(wanted[:2])


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounded_blocks_are_nearest_codes_of_those_scales(bits: int, symmetric: bool) -> None:
    """37 inputs: a last block that is not full, whose padding has the code of its zero."""
    weight = np.random.default_rng(3).standard_normal((4, 37)).astype(np.float32)
    weight[1] = 0
    found = round_blocks(weight, 16, bits, symmetric=symmetric)
    assert (found.bits, found.block, found.codes.shape) == (bits, 16, (4, 3, 16))
    assert found.scales.dtype == np.float32
    assert found.codes.dtype == found.zeros.dtype == np.uint8
    whole = found.matrix(37)
    half_a_step = np.repeat(found.scales, 16, axis=1)[:, :37] / 2
    inside = np.abs(weight) <= half_a_step * (2**bits - 2) / 2.5
    assert (np.abs(whole - weight)[inside] <= half_a_step[inside] * 1.001).all()
    assert not whole[1].any()
    assert (found.scales[1] == np.float16(GRID[0]) if bits < 8 else found.scales[1] > 0).all()
    assert (found.codes[:, 2, 5:] == found.zeros[:, 2, None]).all()
    if bits == 8 and symmetric:
        codes, scales = quantize_blocks(weight, 16)
        assert (found.codes == codes).all()
        assert (found.scales == scales).all()
        assert (found.zeros == ZERO_POINT).all()
    elif symmetric:
        assert (found.zeros == symmetric_zero_point(bits)).all()
