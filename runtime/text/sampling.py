"""From logits to the next token.

The order is the usual one: repetition penalty, temperature, top-k, top-p, min-p. Logits are only
partitioned, never sorted as a whole; exact work is done on the few candidates that are left.

native/sampling.c draws the same tokens from the same logits, to the bit: equal scores go by id,
sums are taken one by one in order (`np.cumsum`, never the pairwise `np.sum`), and the exponential
is our own.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.text.exponential import exponential

_FIRST_NUCLEUS = 64  # candidates looked at first when top-p has no top-k before it


@dataclass(frozen=True)
class Sampling:
    """How to choose among the next tokens.

    - `temperature` >= 0 divides the logits; 0 always takes the most likely token.
    - `top_k` >= 0 keeps that many most likely tokens; 0 keeps all.
    - `top_p` in (0, 1] keeps the fewest most likely tokens whose probabilities reach it.
    - `min_p` in [0, 1] drops tokens less likely than min_p times the most likely one.
    - `repetition_penalty` in [0.01, 100] divides positive logits of tokens seen before and
      multiplies negative ones; 1 changes nothing.
    - `seed` >= 0 starts the random generator (PCG64).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InputError naming the value and the allowed range."""
        for name, good, allowed in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "0.01 to 100"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            value = getattr(self, name)
            if not (good and math.isfinite(value)):
                raise InputError(f"{name} is {value}; allowed is {allowed}")


class Sampler:
    """Draws tokens; two samplers with equal settings draw equal tokens from equal logits."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def sample(self, logits: NDArray[np.float32], history: Collection[int] = ()) -> int:
        """The next token's id, from logits [vocab] (left as they are).

        `history`: ids that the repetition penalty applies to, in any order. Raises InputError
        where the logits hold NaN or +inf, or nothing but -inf: the graph is broken.
        """
        settings = self.sampling
        scores = np.asarray(logits, dtype=np.float32)
        best = float(scores.max(initial=-np.inf))
        if not math.isfinite(best):  # NaN wins every maximum
            raise InputError(f"the largest of the model's logits is {best}; it must be finite")
        if settings.repetition_penalty != 1.0 and len(history):
            scores = _penalized(scores, history, settings.repetition_penalty)
        if settings.temperature == 0:
            return int(scores.argmax())
        ids, weights = _candidates(scores, settings)
        # The last cumulative sum is the total, and at least 1 (the likeliest weighs that): a draw
        # below 1, times it, stays below it after rounding, so there is always a next candidate.
        cumulative = np.cumsum(weights)
        drawn = self._random.random() * cumulative[-1]
        return int(ids[np.searchsorted(cumulative, drawn, side="right")])


def _penalized(
    scores: NDArray[np.float32], history: Collection[int], penalty: float
) -> NDArray[np.float32]:
    seen = np.fromiter(set(history), dtype=np.int64)
    seen = seen[seen < len(scores)]  # a caller may have cut the padding of a vocabulary off
    scores = scores.copy()
    old = scores[seen]
    scores[seen] = np.where(old > 0, old / penalty, old * penalty)
    return scores


def _candidates(
    scores: NDArray[np.float32], settings: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that survive top-k, top-p and min-p, and their weights, the likeliest first."""
    top = float(scores.max())

    def weights_of(values: NDArray[np.float32]) -> NDArray[np.float64]:
        # Relative to the best: at most 1, whatever the temperature.
        with np.errstate(over="ignore"):
            return exponential((values.astype(np.float64) - top) / settings.temperature)

    if 0 < settings.top_k < len(scores):
        ids = _largest(scores, settings.top_k)
        weights = weights_of(scores[ids])
        kept = _nucleus(weights, _total(weights), settings.top_p)
    elif settings.top_p < 1:
        total = _total(weights_of(scores))
        size = _FIRST_NUCLEUS
        while True:
            ids = _largest(scores, size)
            weights = weights_of(scores[ids])
            kept = _nucleus(weights, total, settings.top_p)
            if kept < len(ids) or len(ids) == len(scores):
                break
            size *= 4
    else:
        ids = np.arange(len(scores))
        weights = weights_of(scores)
        kept = len(ids)
    ids, weights = ids[:kept], weights[:kept]
    likely = weights >= settings.min_p
    return ids[likely], weights[likely]


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest scores, largest first, equal ones by id."""
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        ids = np.flatnonzero(scores >= least)  # and all that are equal to the last
    else:
        ids = np.arange(len(scores))
    return ids[np.argsort(-scores[ids], kind="stable")[:count]]


def _total(weights: NDArray[np.float64]) -> float:
    return float(np.cumsum(weights)[-1])


def _nucleus(weights: NDArray[np.float64], total: float, top_p: float) -> int:
    """How many of the sorted weights it takes to reach the share top_p (all, if they do not)."""
    if top_p == 1:
        return len(weights)
    reached = int(np.searchsorted(np.cumsum(weights), top_p * total, side="left")) + 1
    return min(reached, len(weights))
