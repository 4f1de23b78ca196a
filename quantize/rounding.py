"""Round-to-nearest quantization of weight matrices, symmetric, in NumPy.

A matrix is given as W [outputs, inputs]. Codes are unsigned with zero point 128, so that every
kernel reads them alike: w ≈ (code - 128) · scale, code - 128 in [-127, 127].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ZERO_POINT = 128
LEVELS = 127

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def quantize_blocks(weight: Floats, block: int) -> tuple[Codes, Floats]:
    """One scale for every `block` inputs of an output.

    W [N, K] -> codes [N, ⌈K/block⌉, block] (a last block that is not full holds zeros) and scales
    [N, ⌈K/block⌉], scale = max |w| / 127.
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), dtype=np.float32)
    padded[:, :inputs] = weight
    return _quantize(padded.reshape(outputs, blocks, block))


def quantize_channels(weight: Floats) -> tuple[Codes, Floats]:
    """One scale for every output: W [N, K] -> codes [N, K], scales [N]."""
    return _quantize(weight)


def dequantize(codes: Codes, scales: Floats) -> Floats:
    """(code - 128) · scale; scales lack the last axis of codes."""
    return (codes.astype(np.float32) - ZERO_POINT) * scales[..., None]


def _quantize(groups: Floats) -> tuple[Codes, Floats]:
    """A scale for every row along the last axis; a row of zeros gets scale 1."""
    largest = np.abs(groups).max(axis=-1)
    scales = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)
    levels = np.clip(np.rint(groups / scales[..., None]), -LEVELS, LEVELS)
    return (levels + ZERO_POINT).astype(np.uint8), scales
