"""What the int8 kernels compute, as NumPy formulas on fake-quantized weights and activations.

x [..., K]; results are float64 sums of exact int8 products, so a kernel differs by rounding only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retnet_edge.quantize.numerics.rounding import INT8_MAX, ZERO_POINT

Array = NDArray[Any]


def block_int8_product(
    x: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | int = ZERO_POINT,
) -> NDArray[np.float64]:
    """MatMulNBits at accuracy level 4: activations get a symmetric int8 scale for every block.

    codes [N, blocks, block] (one a byte), scales and zeros [N, blocks] -> [..., N].
    """
    _, blocks, block = codes.shape
    padded = np.zeros((*x.shape[:-1], blocks * block), dtype=np.float32)
    padded[..., : x.shape[-1]] = x
    groups = padded.reshape(*x.shape[:-1], blocks, block)
    largest = np.abs(groups).max(axis=-1)
    x_scales = largest / np.float32(INT8_MAX)
    inverse = np.divide(
        np.float32(INT8_MAX), largest, out=np.zeros_like(largest), where=largest > 0
    )
    x_codes = np.rint(groups * inverse[..., None])
    levels = codes - np.asarray(zeros, dtype=np.float64)[..., None]
    sums = np.einsum("...bk,nbk->...nb", x_codes.astype(np.float64), levels)
    result: NDArray[np.float64] = np.einsum(
        "...nb,...b,nb->...n", sums, x_scales.astype(np.float64), scales
    )
    return result


def dynamic_int8_product(
    x: NDArray[np.float32], codes: NDArray[np.uint8], scales: NDArray[np.float32]
) -> NDArray[np.float64]:
    """DynamicQuantizeLinear (one uint8 scale and zero point for all of x), then MatMulInteger.

    codes [K, N], scales [N] -> [..., N].
    """
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255) if scale > 0 else 0.0
    x_codes = np.clip(np.rint(x / scale) + zero, 0, 255) if scale > 0 else np.zeros_like(x)
    sums = (x_codes - zero).astype(np.float64) @ (codes - float(ZERO_POINT))
    result: NDArray[np.float64] = sums * float(scale) * scales
    return result


def static_int8_product(
    x: NDArray[np.float32], scale: Array, zero: Array, codes: NDArray[np.uint8], scales: Array
) -> NDArray[np.float64]:
    """QuantizeLinear with one scale and zero point (uint8 or uint16), then MatMul.

    codes [K, N], scales [N] -> [..., N].
    """
    top = np.iinfo(zero.dtype).max
    x_codes = np.clip(np.rint(x / scale) + float(zero), 0, top)
    sums = (x_codes - float(zero)) @ (codes - float(ZERO_POINT))
    result: NDArray[np.float64] = sums * float(scale) * scales
    return result
