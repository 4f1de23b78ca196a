"""Does the bundle compute the model? Every figure of the comparison with the float64 reference.

Formulas are in `agreement.py`, the replay itself in `replay.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.parity.agreement import ParityMetrics, StateSample, mean_over, summarise
from retnet_edge.runtime.parity.golden import GoldenReplay
from retnet_edge.runtime.parity.probes import (
    LONG_PREFIX,
    PositionProbe,
    PrefillCheck,
    measure_prefill,
    probe_positions,
)
from retnet_edge.runtime.parity.replay import BLOCK, Replayed, Tokens, bucket_edges, replay
from retnet_edge.runtime.parity.replay import Reference as Reference
from retnet_edge.runtime.parity.worst_positions import Decode, WorstPosition, find_worst_positions
from retnet_edge.runtime.session.protocol import Session


class Bucket(msgspec.Struct, frozen=True):
    """The figures of positions first … last (inclusive) of every context."""

    first: int
    last: int
    figures: ParityMetrics


class BlockError(msgspec.Struct, frozen=True):
    """How far a bundle's residual stream x̂ [T, d_model] is from the reference's x after a block.

    relative: ‖x̂ - x‖ / ‖x‖ over all positions of a text (Frobenius norms).
    """

    block: int
    relative: float


class Parity(msgspec.Struct, frozen=True):
    """Everything measured. KL is KL(reference ‖ bundle) in nats.

    halves_kl_ratio: mean KL of the second halves of the contexts over that of the first halves.
    bits_per_token: mean surprisal / ln 2; bits_per_byte: summed surprisal / ln 2 / bytes of text.
    nonfinite_tokens: positions at which the bundle gave a NaN or an infinity.
    places: position 10, the same text at 1,000,000, and 1,000,000 after a long prefix.
    golden: the bundle's own golden.npz (None: it has none). worst: the positions of the largest KL.
    blocks: the error after every block (empty: not measured).
    """

    contexts: int
    figures: ParityMetrics
    nonfinite_tokens: int
    bits_per_token_reference: float
    bits_per_token_bundle: float
    bits_per_byte_reference: float | None
    bits_per_byte_bundle: float | None
    buckets: tuple[Bucket, ...]
    first_half: ParityMetrics
    second_half: ParityMetrics
    halves_kl_ratio: float
    places: tuple[PositionProbe, ...]
    prefill: PrefillCheck | None
    golden: GoldenReplay | None = None
    worst: tuple[WorstPosition, ...] = ()
    blocks: tuple[BlockError, ...] = ()


def _ratio(value: float, base: float) -> float:
    if base:
        return value / base
    return 1.0 if value == base else float("inf")


def measure_parity(
    session: Session,
    reference: Reference,
    contexts: Sequence[Tokens],
    *,
    allowed_error: float | None = None,
    text_bytes: int | None = None,
    places: bool = True,
    prefill_tokens: int | None = LONG_PREFIX,
    block: int = BLOCK,
    decode: Decode | None = None,
    replayed: Replayed | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Parity:
    """Replay `contexts` (int64 [T] each, T >= 2), unless `replayed` has it, and reduce to figures.

    allowed_error: the bound on the logit error, which decides what is a tie.
    text_bytes: UTF-8 bytes of the text of every predicted token, which is all but each context's
    first. places: False for a cache that grows. prefill_tokens: None for a bundle with no prefill
    graph. block: positions whose logits are held at once. decode: tokens to text, for `worst`.
    advance(n): called after n more tokens.
    Raises InputError where there is no context, or one of fewer than 2 tokens.
    """
    if not contexts or min(len(context) for context in contexts) < 2:
        raise InputError("held-out text must give at least one context, of 2 tokens or more each")
    if replayed is None:
        (replayed,) = replay([session], reference, contexts, block=block, advance=advance)
    trace, states = replayed.trace, replayed.states

    def figures(mask: NDArray[np.bool_], samples: list[StateSample]) -> ParityMetrics:
        return summarise(trace.where(mask), samples, allowed_error=allowed_error)

    edges = bucket_edges(max(len(context) for context in contexts))
    buckets = tuple(
        Bucket(
            low,
            high - 1,
            figures(
                (trace.position >= low) & (trace.position < high),
                [s for s in states if low <= s.position < high],
            ),
        )
        for low, high in itertools.pairwise(edges)
    )
    first = figures(~trace.second_half, [s for s in states if not s.second_half])
    second = figures(trace.second_half, [s for s in states if s.second_half])
    targets = ~np.isnan(trace.surprisal_reference)
    bits = mean_over(trace.surprisal_reference, targets) / np.log(2)
    bundle_bits = mean_over(trace.surprisal_bundle, targets) / np.log(2)
    per_byte = targets.sum() / text_bytes if text_bytes else None
    longest = max(contexts, key=len)
    return Parity(
        contexts=len(contexts),
        figures=summarise(trace, states, allowed_error=allowed_error),
        nonfinite_tokens=int((~trace.finite).sum()),
        bits_per_token_reference=float(bits),
        bits_per_token_bundle=float(bundle_bits),
        bits_per_byte_reference=None if per_byte is None else float(bits * per_byte),
        bits_per_byte_bundle=None if per_byte is None else float(bundle_bits * per_byte),
        buckets=buckets,
        first_half=first,
        second_half=second,
        halves_kl_ratio=_ratio(second.mean_kl, first.mean_kl),
        places=probe_positions(session, reference, longest, allowed_error=allowed_error)
        if places
        else (),
        prefill=None
        if prefill_tokens is None
        else measure_prefill(session, longest, prefill_tokens),
        worst=() if decode is None else find_worst_positions(trace, contexts, decode),
    )
