"""Bytes per token out of a series of memory samples, with an interval that can be believed.

The slope is ordinary least squares on equally spaced samples y_0 … y_{n-1}. It is, exactly, a
weighted mean of the increments d_i = y_i - y_{i-1}:

    slope · spacing = Σ c_i d_i,   c_i = 6 i (n - i) / (n (n² - 1)),   Σ c_i = 1

Memory moves in steps: a page or an allocator's block appears once and stays. Around a fitted line
such a step leaves residuals that are correlated over the whole series, and the usual Newey-West
interval, which works on those residuals, calls a single step anywhere in the series "growth" in 34
to 70 % of cases (simulated, n = 1000, bandwidths n/10 to n, with fixed-bandwidth critical values).
The increments of a step are short-lived, so Newey-West is applied to them instead:

    g_i = c_i (d_i - slope · spacing)
    Var = Σ_{|j| < M} (1 - |j| / M) Σ_i g_i g_{i+j},   M = ⌊n / 5⌋
        = (1 / M) Σ_k (g_{k-M+1} + … + g_k)²,   g = 0 beyond its ends: never below 0

and the interval is slope ± 2.74 √Var: with a bandwidth that is a fixed share of n, the 95 % point
is not the normal 1.96 but one simulated for it (n = 100, 500 and 1000: 2.71, 2.75, 2.72).

Simulated, n = 500: 95 % coverage for random walks, their increments correlated at 0.5 or not; 100 %
for independent noise and AR(1) up to 0.98 (too wide rather than too narrow). One or two equal steps
anywhere are never called growth, five are in 37 % of cases, ten in 83 %. Over 20,000 tokens one
page of 4 KiB that stays keeps the upper end below 1 byte a token, wherever it comes, and so does a
page that is there in a fifth of the samples; a leak of 8 bytes a token is always found. A constant
series gives [0, 0].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

MIN_SAMPLES = 8
BANDWIDTH = 5  # samples over this
CRITICAL = 2.74


class Slope(msgspec.Struct, frozen=True):
    """Growth in bytes per token and its 95 % confidence interval [low, high]."""

    bytes_per_token: float
    low: float
    high: float


def fit_slope(tokens: Sequence[int], sizes: Sequence[int]) -> Slope:
    """Fit `sizes` (bytes) against `tokens` (equally spaced, increasing); both of length n.

    Raises ValueError for fewer than 8 samples, lengths that differ, or uneven spacing.
    """
    x = np.asarray(tokens, dtype=np.int64)
    y = np.asarray(sizes, dtype=np.int64)
    n = len(x)
    if n < MIN_SAMPLES or len(y) != n:
        raise ValueError(f"{n} tokens and {len(y)} sizes: the fit needs as many, {MIN_SAMPLES} up")
    spacing = int(x[1] - x[0])
    if spacing <= 0 or (np.diff(x) != spacing).any():
        raise ValueError("the samples must be equally spaced in tokens")
    i = np.arange(1, n, dtype=np.float64)
    weights = 6.0 * i * (n - i) / (n * (n * n - 1.0))
    increments = np.diff(y).astype(np.float64)
    slope = float(weights @ increments)
    g = weights * (increments - slope)
    bandwidth = n // BANDWIDTH
    sums = np.convolve(g, np.ones(bandwidth))  # of every `bandwidth` of them in a row
    half = CRITICAL * math.sqrt(float(sums @ sums) / bandwidth)
    return Slope(slope / spacing, (slope - half) / spacing, (slope + half) / spacing)
