"""The learning rate of a step: linear warm-up, then a cosine down."""

from __future__ import annotations

import math


def warmup_cosine(
    peak: float, step: int, *, steps: int, warmup: int, final_ratio: float = 0.0
) -> float:
    """Of steps 0 … steps - 1: up to `peak` in `warmup` of them, then to final_ratio · peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return peak * (final_ratio + (1.0 - final_ratio) * cosine)
