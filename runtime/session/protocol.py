"""What a session is: a model, its state, and the position in the text, one sequence at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.manifest import StateSpec

PREFILL_SPAN = 128
"""Tokens that one call of a prefill graph takes at most: longer ones are no faster, and need more
memory (docs/decisions/0026-prompts-in-spans-of-128.md)."""

MAX_POSITION = 2**62
"""Tokens that a state can have seen: far from what an int64 that counts on would overflow at."""

State = NDArray[Any]


class Session(Protocol):
    """One sequence run through a bundle's graphs; every backend implements this.

    The logits that `step` and `prefill` return are a read-only view of a buffer that the next call
    overwrites: copy them to keep them.

    A session is for one caller at a time. Methods that run or copy raise SessionBusyError, an
    InputError, while another thread is in one of them; they do not wait.
    """

    @property
    def position(self) -> int:
        """Number of tokens that the state has seen."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes of the states at the current position (as one copy of them counts)."""
        ...

    @property
    def seen(self) -> Set[int]:
        """The ids that the state has been fed, each once; what a repetition penalty counts."""
        ...

    def reset(self) -> None:
        """Back to position 0 and the empty state."""
        ...

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; the logits [vocab] of the next one. Raises InputError for a bad id."""
        ...

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens, in spans of PREFILL_SPAN; the logits [vocab] after the last.

        The same as that many steps. Raises InputError for no tokens or a bad id; the state is then
        what it was.
        """
        ...

    def states(self) -> list[State]:
        """Copies of the states, in the manifest's order, each [1, heads, …]."""
        ...

    def load_states(
        self, states: Sequence[State], position: int, seen: Collection[int] = ()
    ) -> None:
        """Continue from `states` (copied in) as they were after `position` tokens.

        seen: the ids of those tokens, in any order, where they are known. Raises InputError where
        the number of states, a dtype, a shape or an id is not the manifest's.
        """
        ...


def check_tokens(tokens: Sequence[int], vocab_size: int) -> NDArray[np.int64]:
    """The tokens as int64 [1, T]. Raises InputError for none, and for an id out of range."""
    if len(tokens) == 0:
        raise InputError("the prompt has 0 tokens; at least one is needed")
    ids = np.asarray(tokens, dtype=np.int64).reshape(1, -1)
    for bad in ids[(ids < 0) | (ids >= vocab_size)][:1]:
        raise InputError(
            f"token id {bad} is out of range: this model has ids 0 to {vocab_size - 1}"
        )
    return ids


def check_states(states: Sequence[State], position: int, specs: Sequence[StateSpec]) -> list[State]:
    """The states as contiguous arrays, if they are states of `specs` after `position` tokens.

    Raises InputError for a position out of range, a wrong number of states, a wrong dtype or shape.
    """
    if not 0 <= position <= MAX_POSITION:
        raise InputError(
            f"position is {position}; a state has seen 0 tokens or more, and at most {MAX_POSITION}"
        )
    if len(states) != len(specs):
        raise InputError(f"{len(states)} states were given; this bundle has {len(specs)}")
    for state, spec in zip(states, specs, strict=True):
        shape = state_shape(spec, position)
        if state.dtype != np.dtype(spec.dtype) or state.shape != shape:
            raise InputError(
                f"state {spec.input!r} is {state.dtype} {list(state.shape)}; after {position} "
                f"tokens this bundle's is {spec.dtype} {list(shape)}"
            )
    return [np.ascontiguousarray(state) for state in states]


def state_shape(spec: StateSpec, position: int) -> tuple[int, ...]:
    """The shape of one sequence's state after `position` tokens."""
    return concrete_shape(spec.shape, position)


def concrete_shape(shape: Sequence[int | str], position: int) -> tuple[int, ...]:
    """A shape of a manifest for one sequence after `position` tokens."""
    named = {"batch": 1, "past": position}
    return tuple(dim if isinstance(dim, int) else named[dim] for dim in shape)
