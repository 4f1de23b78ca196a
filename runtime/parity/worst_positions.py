"""The positions of a text at which a bundle is furthest from the reference, to be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from retnet_edge.runtime.parity.agreement import Trace

COUNT = 10
BEFORE = 32  # tokens of the text that are shown

Decode = Callable[[Sequence[int]], str]


class WorstPosition(msgspec.Struct, frozen=True):
    """A position of a context. kl: nats. before: the end of the text up to and with the position.

    follows: the token that comes next in the text (None: the context ends). best_reference,
    best_bundle: the token that each side finds most likely.
    """

    context: int
    position: int
    kl: float
    before: str
    follows: str | None
    best_reference: str
    best_bundle: str


def find_worst_positions(
    trace: Trace, contexts: Sequence[NDArray[np.int64]], decode: Decode, count: int = COUNT
) -> tuple[WorstPosition, ...]:
    """The positions of the largest KL, that first. trace: of all contexts [T] in their order."""
    of = np.repeat(np.arange(len(contexts)), [len(context) for context in contexts])
    # what is not a number is worse than any KL
    order = np.argsort(-np.nan_to_num(trace.kl, nan=np.inf), kind="stable")[:count]
    found = []
    for index in order:
        tokens, position = contexts[of[index]], int(trace.position[index])
        after = tokens[position + 1 : position + 2].tolist()
        found.append(
            WorstPosition(
                context=int(of[index]),
                position=position,
                kl=float(trace.kl[index]),
                before=decode(tokens[max(0, position + 1 - BEFORE) : position + 1].tolist()),
                follows=decode(after) if after else None,
                best_reference=decode([int(trace.best_reference[index])]),
                best_bundle=decode([int(trace.best_bundle[index])]),
            )
        )
    return tuple(found)
