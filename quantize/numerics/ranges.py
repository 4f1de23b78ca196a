"""The range that a static scale covers, chosen from activations that were seen on text.

    min-max      all that was seen
    percentile   all but the smallest and the largest 0.01 %
    mse          of ranges shrunk from both ends, the least mean square of x - q(x)
    entropy      of ranges cut at ± t, the least KL of the histogram of x and that of q(x)

Every range includes 0, so that zeros stay zero.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["min-max", "percentile", "mse", "entropy"]
Range = tuple[float, float]

PERCENTILE_TAIL = 1e-4  # of all values, at either end, beyond a percentile's range
SHRINK_FACTORS = np.linspace(0.3, 1.0, 36)
BINS = 2048
LEVELS = 128  # of one sign: what 8 bits tell apart

_Values = NDArray[np.floating]


def find_range(values: _Values, extremes: Range, method: Method, bits: int) -> Range:
    """Low <= 0 <= high of a scale. values: a sample; extremes: the extremes of all."""
    low, high = min(extremes[0], 0.0), max(extremes[1], 0.0)
    if method == "min-max":
        return low, high
    if method == "percentile":
        ends = np.quantile(values, [PERCENTILE_TAIL, 1 - PERCENTILE_TAIL])
        return min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)
    if method == "entropy":
        limit = _entropy_limit(np.abs(values), max(-low, high))
        return max(low, -limit), min(high, limit)
    return _least_square(values, low, high, bits)


def scale_and_zero(limits: Range, bits: int) -> tuple[np.float32, int]:
    """q(x) = clip(round(x / scale) + zero, 0, 2^bits - 1)."""
    top = 2**bits - 1
    scale = np.float32((limits[1] - limits[0]) / top) or np.float32(1.0)
    return scale, int(np.clip(np.rint(-limits[0] / scale), 0, top))


def quantize_dequantize(values: _Values, limits: Range, bits: int) -> _Values:
    """The values after quantization to the range."""
    scale, zero = scale_and_zero(limits, bits)
    codes = np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1)
    return np.asarray((codes - zero) * scale)


def _least_square(values: _Values, low: float, high: float, bits: int) -> Range:
    """One end after the other, twice: where the other end stands changes little."""

    def error(limits: Range) -> float:
        return float(np.square(values - quantize_dequantize(values, limits, bits)).mean())

    best = low, high
    for _ in range(2):
        best = min(((best[0], high * factor) for factor in SHRINK_FACTORS), key=error)
        best = min(((low * factor, best[1]) for factor in SHRINK_FACTORS), key=error)
    return best


def _entropy_limit(sizes: _Values, largest: float) -> float:
    """The t of least KL(P ‖ Q): P the histogram of |x| with all beyond t in its last bin, Q the
    same in 128 levels, each spread evenly over the bins that are not empty in P.
    """
    if largest <= 0:
        return 0.0
    counts, edges = np.histogram(sizes, bins=BINS, range=(0.0, largest))
    best, least = largest, np.inf
    for bins in range(LEVELS, BINS + 1, LEVELS // 8):
        kept = counts[:bins].astype(np.float64)
        full = kept > 0
        level = np.arange(bins) * LEVELS // bins
        sums = np.bincount(level, kept, LEVELS)
        filled = np.bincount(level, full, LEVELS)
        q = np.where(full, (sums / np.maximum(filled, 1))[level], 0.0)
        p = kept.copy()
        p[-1] += counts[bins:].sum()
        inside = (p > 0) & (q > 0)
        lost = p[(p > 0) & (q <= 0)].sum()
        if lost > 0:
            continue
        p, q = p[inside] / p.sum(), q[inside] / q.sum()
        if (kl := float((p * np.log(p / q)).sum())) < least:
            best, least = float(edges[bins]), kl
    return best
