"""Time by operator, as every backend's profiler gives it."""

from __future__ import annotations

import msgspec

WARMUP = 10
"""Steps of a profile that are not counted."""


class OperatorTime(msgspec.Struct, frozen=True):
    """All calls of one operator in a run of some steps."""

    name: str
    calls: int
    microseconds: float
