"""Text through step graphs of bundles and through the float64 reference, side by side.

A context is replayed from an empty state, one token at a time through the sessions and in blocks
through the reference, which carries its own states: errors may pile up, as they would in use. The
reference runs once for all sessions, in a thread that is one block ahead of them. Memory is bounded
by two blocks of logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retnet_edge.runtime.bundle.state_values import state_values
from retnet_edge.runtime.parity.agreement import (
    NO_TARGET,
    StateSample,
    Trace,
    compare,
    state_distance,
)
from retnet_edge.runtime.session.protocol import Session

Tokens = NDArray[np.int64]
States = list[NDArray[np.float64]]


BLOCK = 256  # positions whose logits are held at once


@dataclass(frozen=True)
class Replayed:
    """What a session gave over all contexts, position after position, beside the reference."""

    trace: Trace
    states: list[StateSample]


class Reference(Protocol):
    """The model in float64, any number of tokens at a time."""

    def run(
        self, tokens: Tokens, states: States | None, position: int
    ) -> tuple[NDArray[np.float64], States]:
        """tokens [T], of which the first stands at `position`, after `states` (None: empty).

        Returns logits [T, vocab] and the states after the last token, shaped as in the manifest
        with batch 1.
        """
        ...


def bucket_edges(length: int) -> list[int]:
    """0, 64, 256, 1024, then doubling, up to the first edge >= length."""
    edges = [0, 64, 256, 1024]
    while edges[-1] < length:
        edges.append(2 * edges[-1])
    return edges[: next(i for i, edge in enumerate(edges) if edge >= length) + 1]


def spans(length: int, block: int) -> Iterator[tuple[int, int]]:
    """Cut 0 … length into [start, stop) of at most `block` that cross no bucket edge."""
    stops = {*bucket_edges(length), *range(0, length, block), length}
    cuts = sorted(stop for stop in stops if stop <= length)
    yield from itertools.pairwise(cuts)


def run_steps(session: Session, tokens: Tokens) -> NDArray[np.float32]:
    """Logits [T, vocab] of a step a token (a session may reuse its buffer, so each is copied)."""
    first = session.step(int(tokens[0]))
    logits = np.empty((len(tokens), first.size), dtype=np.float32)
    logits[0] = first.reshape(-1)
    for row, token in enumerate(tokens[1:], start=1):
        logits[row] = session.step(int(token)).reshape(-1)
    return logits


def replay(
    sessions: Sequence[Session],
    reference: Reference,
    contexts: Sequence[Tokens],
    *,
    block: int = BLOCK,
    advance: Callable[[int], None] = lambda tokens: None,
) -> list[Replayed]:
    """What each session gives over contexts (int64 [T] each).

    advance(n): called after n more tokens of one session.
    """
    parts = []
    with ThreadPoolExecutor(1, "reference") as thread:
        blocks = _ahead(_expected(reference, contexts, block), thread)
        for tokens, start, stop, expected, states in blocks:
            if start == 0:
                for session in sessions:
                    session.reset()
            parts.append(
                [_compared(session, tokens, start, stop, expected, states) for session in sessions]
            )
            advance((stop - start) * len(sessions))
    return [
        Replayed(Trace.join([trace for trace, _ in found]), [sample for _, sample in found])
        for found in zip(*parts, strict=True)
    ]


_Expected = tuple[Tokens, int, int, NDArray[np.float64], States]


def _expected(reference: Reference, contexts: Sequence[Tokens], block: int) -> Iterator[_Expected]:
    """(context [T], start, stop, logits [stop - start, vocab], states at stop) of every block."""
    for tokens in contexts:
        states: States | None = None
        for start, stop in spans(len(tokens), block):
            logits, states = reference.run(tokens[start:stop], states, start)
            yield tokens, start, stop, logits, states


def _ahead(items: Iterator[_Expected], thread: ThreadPoolExecutor) -> Iterator[_Expected]:
    """The items, each made in the other thread while the caller works on the one before."""
    following = thread.submit(next, items, None)
    while (item := following.result()) is not None:
        following = thread.submit(next, items, None)
        yield item


def _compared(
    session: Session,
    tokens: Tokens,
    start: int,
    stop: int,
    expected: NDArray[np.float64],
    states: States,
) -> tuple[Trace, StateSample]:
    """Positions start … stop of a context [T]; states are compared at their end."""
    got = run_steps(session, tokens[start:stop])
    targets = np.append(tokens[1:], NO_TARGET)[start:stop]
    trace = compare(expected, got, targets=targets, first=start, length=len(tokens))
    distance = state_distance(states, state_values(session.states()))
    return trace, StateSample(stop - 1, 2 * (stop - 1) >= len(tokens), *distance)
