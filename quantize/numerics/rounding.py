"""Round-to-nearest quantization of weight matrices, in NumPy.

A matrix is given as W [outputs, inputs]. Codes are unsigned around a zero point, so that every
kernel reads them alike: w ≈ (code - zero) · scale. Symmetric: zero = `symmetric_zero_point(bits)`,
everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ZERO_POINT = 128
INT8_MAX = 127
GRID = np.linspace(0.6, 1.05, 19)  # of the scale that reaches the largest weight of a block
FLOAT16_SCALE_RANGE = (2.0**-24, 65504.0 / 4)
"""The least and the largest scale in float16, four times which is a float16 too (6 bits)."""

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockQuantized:
    """W in blocks: codes uint8 [N, ⌈K/block⌉, block], a float32 scale and a uint8 zero for each.

    Below 8 bits, scales are values of float16 (`stored_scales`). Padding of a last block that is
    not full has the code of its zero.
    """

    codes: Codes
    scales: Floats
    zeros: Codes
    bits: int

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return int(self.codes.shape[2])

    def matrix(self, inputs: int) -> Floats:
        """The weights [N, inputs] that the codes stand for."""
        levels = self.codes.astype(np.float32) - self.zeros[..., None]
        whole = levels * self.scales[..., None]
        return np.ascontiguousarray(whole.reshape(len(whole), -1)[:, :inputs])


def stored_scales(scales: NDArray[np.floating], bits: int) -> NDArray[np.float64]:
    """The nearest scales of the grid that the number of bits has: float32, and float16 below 8.

    They are stored in float32, which kernels take; the native backend and other formats may keep
    the ones of float16 in 16 bits.
    """
    if bits == 8:
        return scales.astype(np.float32).astype(np.float64)
    halves = np.clip(scales, *FLOAT16_SCALE_RANGE).astype(np.float16)
    return np.asarray(halves, dtype=np.float64)


def symmetric_zero_point(bits: int) -> int:
    """The zero of symmetric codes, 2^(bits-1); of 6 bits, stored as 4 and 2, 4 · 8 + 2."""
    return 34 if bits == 6 else 1 << (bits - 1)


def quantize_blocks(weight: Floats, block: int) -> tuple[Codes, Floats]:
    """8 bits, one scale for every `block` inputs of an output.

    W [N, K] -> codes [N, ⌈K/block⌉, block] (a last block that is not full holds zeros) and scales
    [N, ⌈K/block⌉], scale = max |w| / 127.
    """
    return _quantize(to_blocks(weight, block))


def round_blocks(weight: Floats, block: int, bits: int, *, symmetric: bool) -> BlockQuantized:
    """To the nearest code. Symmetric 8 bits reach max |w|; other scales err least in the square."""
    groups = to_blocks(weight, block)
    if bits == 8 and symmetric:
        codes, scales = _quantize(groups)
        return BlockQuantized(codes, scales, np.full(scales.shape, ZERO_POINT, np.uint8), bits)
    found, zeros = search_scales(groups, np.ones(()), bits, symmetric=symmetric)
    levels = nearest_codes(groups, found[..., None], zeros[..., None], bits)
    return BlockQuantized(
        levels.astype(np.uint8), found.astype(np.float32), zeros.astype(np.uint8), bits
    )


def search_scales(
    groups: NDArray[np.floating], importance: NDArray[np.floating], bits: int, *, symmetric: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scales and zeros [N, blocks] of the least weighted square error of plain rounding.

    groups [N, blocks, block]; importance [blocks, block]: of each input; [] where all
    have the same. Scales are stored ones.
    """
    top = 2**bits - 1
    half = float(symmetric_zero_point(bits))
    low, high = np.minimum(groups.min(-1), 0.0), np.maximum(groups.max(-1), 0.0)
    if symmetric:
        full = np.maximum(high / (top - half), -low / half).astype(np.float64)
    else:
        full = ((high - low) / top).astype(np.float64)
    full[full <= 0] = 1.0
    best = np.full(full.shape, np.inf)
    scales, zeros = stored_scales(full, bits), np.full(full.shape, half)
    for factor in GRID:
        tried = stored_scales(full * factor, bits)
        zero = np.full(full.shape, half) if symmetric else np.minimum(np.rint(-low / tried), top)
        codes = nearest_codes(groups, tried[..., None], zero[..., None], bits)
        wrong = (codes - zero[..., None]) * tried[..., None] - groups
        error = (np.square(wrong) * importance).sum(-1)
        better = error < best
        scales, zeros = np.where(better, tried, scales), np.where(better, zero, zeros)
        best = np.minimum(best, error)
    return scales, zeros


def nearest_codes(
    weight: NDArray[np.floating],
    scale: NDArray[np.floating],
    zero: NDArray[np.floating],
    bits: int,
) -> NDArray[np.float64]:
    """The nearest codes, as float64."""
    return np.asarray(np.clip(np.rint(weight / scale) + zero, 0, 2**bits - 1), dtype=np.float64)


def to_blocks(weight: NDArray[np.floating], block: int) -> Floats:
    """W [N, K] as [N, ⌈K/block⌉, block], padded with zeros."""
    outputs, inputs = weight.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), dtype=np.float32)
    padded[:, :inputs] = weight
    return padded.reshape(outputs, blocks, block)


def pack(codes: Codes, bits: int) -> Codes:
    """8 / bits codes a byte along the last axis, the first in the lowest bits; ends get zeros.

    8 bits are bytes already, and come back uncopied.
    """
    if bits == 8:
        return codes
    each = 8 // bits
    short = -codes.shape[-1] % each
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    groups = padded.reshape(*codes.shape[:-1], -1, each)
    return np.asarray(np.bitwise_or.reduce(groups << _shifts(bits), axis=-1), dtype=np.uint8)


def unpack(packed: Codes, bits: int) -> Codes:
    """The codes that `pack` packed, and the zeros at the end."""
    if bits == 8:
        return packed
    groups = (packed[..., None] >> _shifts(bits)) & np.uint8((1 << bits) - 1)
    return groups.reshape(*packed.shape[:-1], -1)


def _shifts(bits: int) -> Codes:
    return np.arange(0, 8, bits, dtype=np.uint8)


def quantize_channels(weight: Floats) -> tuple[Codes, Floats]:
    """One scale for every output: W [N, K] -> codes [N, K], scales [N]."""
    return _quantize(weight)


def dequantize(codes: Codes, scales: Floats, zero: int = ZERO_POINT) -> Floats:
    """(code - zero) · scale; scales lack the last axis of codes."""
    return (codes.astype(np.float32) - zero) * scales[..., None]


def _quantize(groups: Floats) -> tuple[Codes, Floats]:
    """A scale for every row along the last axis; a row of zeros gets scale 1."""
    largest = np.abs(groups).max(axis=-1)
    scales = np.where(largest > 0, largest / INT8_MAX, 1.0).astype(np.float32)
    codes = np.rint(groups / scales[..., None]) + ZERO_POINT
    return np.clip(codes, ZERO_POINT - INT8_MAX, ZERO_POINT + INT8_MAX).astype(np.uint8), scales
