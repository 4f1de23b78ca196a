"""Two questions that replaying a context does not ask: far positions, and prefill against steps."""

from __future__ import annotations

import msgspec
import numpy as np

from retnet_edge.runtime.bundle.state_values import rounded_states, state_values
from retnet_edge.runtime.parity.agreement import (
    NO_TARGET,
    ParityMetrics,
    StateSample,
    compare,
    state_distance,
    summarise,
)
from retnet_edge.runtime.parity.replay import Reference, Tokens, run_steps
from retnet_edge.runtime.session.protocol import Session

FAR_POSITION = 1_000_000
NEAR_POSITION = 10
LONG_PREFIX = 1_000
PROBE_TOKENS = 64


class PositionProbe(msgspec.Struct, frozen=True):
    """The figures of a few tokens from `position` on, both sides given the reference's states.

    Those states are the reference's after the `prefix` tokens that stand just before `position`.
    Rotary angles are relative, so the same text at another position is the same computation but
    for the rounding of the angles, which is what this is here to see.
    """

    position: int
    prefix: int
    figures: ParityMetrics


class PrefillCheck(msgspec.Struct, frozen=True):
    """prefill(first `tokens` tokens) and then steps, against nothing but steps.

    max_abs_logit_error, max_abs_state_error and relative_state_error: after the first step that
    follows. mean_kl: KL(steps ‖ prefill) over `following` steps, nats.
    """

    tokens: int
    following: int
    max_abs_logit_error: float
    max_abs_state_error: float
    relative_state_error: float
    mean_kl: float


def _place(
    session: Session,
    reference: Reference,
    tokens: Tokens,
    position: int,
    prefix: int,
    allowed_error: float | None,
) -> PositionProbe:
    """Compare tokens[prefix:] from `position` on, after states that the reference made."""
    _, states = reference.run(tokens[:prefix], None, position - prefix)
    session.reset()
    rounded = rounded_states(states, like=session.states())
    session.load_states(rounded, position)
    rest = tokens[prefix:]
    expected, states = reference.run(rest, state_values(rounded), position)
    got = run_steps(session, rest)
    trace = compare(
        expected, got, targets=np.append(rest[1:], NO_TARGET), first=position, length=len(rest)
    )
    max_abs, relative = state_distance(states, state_values(session.states()))
    sample = StateSample(position + len(rest) - 1, False, max_abs, relative)
    return PositionProbe(position, prefix, summarise(trace, [sample], allowed_error=allowed_error))


def probe_positions(
    session: Session,
    reference: Reference,
    context: Tokens,
    *,
    far_position: int = FAR_POSITION,
    allowed_error: float | None = None,
) -> tuple[PositionProbe, ...]:
    """The same 64 tokens at position 10 and at `far_position`, then `far_position` after a long
    prefix. Empty for a context of no more than 11 tokens; a growing cache cannot be asked this.
    """
    near = context[: NEAR_POSITION + PROBE_TOKENS]
    if len(near) < NEAR_POSITION + 2:
        return ()
    cases = [(near, NEAR_POSITION, NEAR_POSITION), (near, far_position, NEAR_POSITION)]
    long = min(len(context) - PROBE_TOKENS, LONG_PREFIX)
    if long > NEAR_POSITION:
        cases.append((context[: long + PROBE_TOKENS], far_position, long))
    return tuple(
        _place(session, reference, tokens, position, prefix, allowed_error)
        for tokens, position, prefix in cases
    )


def measure_prefill(session: Session, context: Tokens, tokens: int) -> PrefillCheck | None:
    """prefill + steps against steps alone; None for a context too short to leave one step."""
    first = min(tokens, len(context) - 1)
    if first < 1:
        return None
    following = context[first : first + PROBE_TOKENS]
    session.reset()
    run_steps(session, context[:first])
    stepped = run_steps(session, following[:1])
    stepped_states = session.states()
    stepped = np.concatenate([stepped, *(run_steps(session, t[None]) for t in following[1:])])
    session.reset()
    session.prefill([int(token) for token in context[:first]])
    prefilled = run_steps(session, following[:1])
    max_abs, relative = state_distance(state_values(stepped_states), state_values(session.states()))
    prefilled = np.concatenate([prefilled, *(run_steps(session, t[None]) for t in following[1:])])
    trace = compare(
        stepped.astype(np.float64),
        prefilled,
        targets=np.full(len(following), NO_TARGET),
        first=first,
        length=len(context),
    )
    return PrefillCheck(
        first, len(following), float(trace.max_error[0]), max_abs, relative, float(trace.kl.mean())
    )
