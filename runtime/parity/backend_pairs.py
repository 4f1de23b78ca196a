"""Two sessions on the same text: what one backend says where another stands in for the reference.

Each backend is compared with the float64 model elsewhere; this is the distance between two of them,
which is what a user sees who moves a recipe, or a saved state, from one to the other.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from retnet_edge.runtime.bundle.state_values import rounded_states, state_values
from retnet_edge.runtime.parity.agreement import ParityMetrics, summarise
from retnet_edge.runtime.parity.replay import States, Tokens, replay, run_steps
from retnet_edge.runtime.session.protocol import Session


class BackendPair(msgspec.Struct, frozen=True):
    """The figures of `second`, with `first` in the reference's place: KL is KL(first ‖ second).

    The names say which bundle and backend.
    """

    first: str
    second: str
    recipe: str
    figures: ParityMetrics


class SessionReference:
    """A session as a `Reference`: steps from the states that it is given."""

    def __init__(self, session: Session) -> None:
        """The session is reset or loaded at every run."""
        self._session = session

    def run(
        self, tokens: Tokens, states: States | None, position: int
    ) -> tuple[NDArray[np.float64], States]:
        """See `Reference`."""
        if states is None:
            self._session.reset()
        else:
            given = rounded_states(states, like=self._session.states())
            self._session.load_states(given, position)
        logits = run_steps(self._session, tokens).astype(np.float64)
        return logits, state_values(self._session.states())


def compare_backends(
    first: Session, second: Session, context: Tokens, *, names: tuple[str, str], recipe: str
) -> BackendPair:
    """Replay `context` [T], a step a token, through both from empty states."""
    (found,) = replay([second], SessionReference(first), [context])
    return BackendPair(*names, recipe, summarise(found.trace, found.states))
