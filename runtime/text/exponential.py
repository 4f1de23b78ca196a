"""The exponential of sampling: the same bits on every machine, and in C (native/exponential.c).

A library's own exp differs from the next one's in its last bit, and so, seldom, does the token that
is drawn. Here every operation is one that IEEE 754 rounds, in a stated order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_COEFFICIENTS = [1 / math.factorial(power) for power in range(13, -1, -1)]
_SMALLEST = -746.0  # below, e^x rounds to 0


def exponential(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x for x <= 0 or NaN, to about 1e-16 of its size.

    x = k ln 2 + r with |r| <= ln(2) / 2; e^x = 2^k e^r, and e^r is its Taylor series up to r^13.
    """
    small = x < _SMALLEST
    inside = np.where(small, 0.0, x)
    k = np.rint(inside * _LOG2_E)
    r = (inside - k * _LN2_HIGH) - k * _LN2_LOW
    total = np.full_like(r, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        total *= r
        total += coefficient
    with np.errstate(invalid="ignore"):  # k of a NaN, whose total is one as well
        found = np.ldexp(total, k.astype(np.int32))
    found[small] = 0.0
    return found
