"""What a session is: a model, its state, and the position in the text, one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.manifest import Backend, StateSpec

PREFILL_SPAN = 128
"""Tokens that one call of a prefill graph takes at most: longer ones are no faster, and need more
memory (docs/decisions.md)."""

State = NDArray[Any]


class Session(Protocol):
    """One sequence run through a bundle's graphs; every backend implements this.

    The logits that `step` and `prefill` return are a read-only view of a buffer that the next call
    overwrites: copy them to keep them.
    """

    @property
    def position(self) -> int:
        """Number of tokens that the state has seen."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes of the states at the current position (as one copy of them counts)."""
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

    def load_states(self, states: Sequence[State], position: int) -> None:
        """Continue from `states` (copied in) as they were after `position` tokens.

        Raises InputError where their number, a dtype or a shape is not the manifest's.
        """
        ...


def open_session(bundle: Bundle, threads: int | None = None, backend: str | None = None) -> Session:
    """A session on the bundle's first backend, or on `backend`.

    `threads`: how many compute (None: one a free core, at most 4). Raises InputError where the
    bundle has no step graph for the backend, the backend is not installed or cannot load it.
    """
    chosen = choose_backend(bundle, backend)
    if any(state.growing_axis is not None for state in bundle.manifest.states):
        from retnet_edge.runtime.kv_session import KvSession

        return KvSession(bundle, threads=threads)
    if chosen == "executorch":
        try:
            from retnet_edge.runtime.et_session import EtSession
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            raise InputError(
                f"{bundle.path}: the backend executorch needs {missing}, which is not installed: "
                "pip install 'retnet-edge[executorch]'"
            ) from error

        return EtSession(bundle, threads=threads)
    if chosen == "native":
        from retnet_edge.runtime.native_session import NativeSession

        return NativeSession(bundle, threads=threads)
    from retnet_edge.runtime.ort_session import OrtSession

    return OrtSession(bundle, threads=threads)


def choose_backend(bundle: Bundle, backend: str | None) -> Backend:
    """`backend`, or the first one that the bundle has graphs for.

    Raises InputError naming those that it has.
    """
    has = bundle.manifest.backends
    for known in has:
        if backend in (None, known):
            return known
    raise InputError(f"{bundle.path} has no graphs for {backend}; it has: {', '.join(has)}")


def backend_version(backend: Backend) -> str:
    """The version of what runs a backend; the native one is part of this package."""
    return version("retnet-edge" if backend == "native" else backend)


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

    Raises InputError for a negative position, a wrong number of states, a wrong dtype or shape.
    """
    if position < 0:
        raise InputError(f"position is {position}; a state has seen 0 tokens or more")
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
    return sized(spec.shape, position)


def sized(shape: Sequence[int | str], position: int) -> tuple[int, ...]:
    """A shape of a manifest for one sequence after `position` tokens."""
    named = {"batch": 1, "past": position}
    return tuple(dim if isinstance(dim, int) else named[dim] for dim in shape)
