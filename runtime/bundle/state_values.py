"""States as numbers, whatever a graph keeps them in.

float32 and float16 are the values. An int8 state [B, H, K, V] is followed by two scales, float32
[B, H, K, 1] and [B, H, 1, V]: value = code · both (`quantize/passes/states.py` makes such graphs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retnet_edge.runtime.bundle.manifest import StateSpec

MAX_CODE = 126.5
"""Codes that the largest value of a channel takes: any dither below 1 stays within 127."""

_Arrays = Sequence[NDArray[Any]]


def value_specs(specs: Sequence[StateSpec]) -> list[StateSpec]:
    """The states that are values; scales are none."""
    scales = {i + n for i, spec in enumerate(specs) if spec.dtype == "int8" for n in (1, 2)}
    return [spec for i, spec in enumerate(specs) if i not in scales]


def value_shapes(specs: Sequence[StateSpec]) -> list[tuple[int | str, ...]]:
    """The shape of the values of each state; scales are none."""
    return [spec.shape for spec in value_specs(specs)]


def state_values(states: _Arrays) -> list[NDArray[np.float64]]:
    """What a session's states stand for."""
    rest = iter(states)
    return [
        state.astype(np.float64) * (next(rest) * next(rest) if state.dtype == np.int8 else 1.0)
        for state in rest
    ]


def rounded_states(values: _Arrays, like: _Arrays) -> list[NDArray[Any]]:
    """The values as states of the dtypes of `like`, rounded to the nearest."""
    kept = iter(like)
    found: list[NDArray[Any]] = []
    for value in values:
        dtype = next(kept).dtype
        if dtype == np.int8:
            by_key, by_value = next(kept).dtype, next(kept).dtype
            norm = np.sqrt(np.square(value).sum(axis=-1, keepdims=True)).astype(by_key)
            x = np.divide(value, norm, out=np.zeros(value.shape), where=norm > 0)
            scale = (np.abs(x).max(axis=-2, keepdims=True) / MAX_CODE).astype(by_value)
            codes = np.divide(x, scale, out=np.zeros(value.shape), where=scale > 0)
            found += [np.rint(codes).astype(dtype), norm, scale]
        else:
            found.append(value.astype(dtype))
    return found
