"""A session on ONNX Runtime for states of constant size: no allocation and no binding per token.

Where the graphs allow it (`GraphSpec.states_in_place`), one set of state buffers is bound as both
past and next states. Elsewhere that would be wrong without an error: there are two sets, A and B,
and two bindings made once; one reads A and writes B, the other reads B and writes A, and every call
uses the other one. After a call that failed inside ONNX Runtime, states in place may be half new:
`reset` or `load_states` goes on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from retnet_edge.runtime.backends.ort.graph import (
    arena_shrinkage,
    load_graph,
    main_graph,
    run_with_binding,
)
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import StateSpec
from retnet_edge.runtime.session.malloc_trim import trim_heap
from retnet_edge.runtime.session.one_sequence import OneSequence, check_seen, one_caller
from retnet_edge.runtime.session.protocol import (
    PREFILL_SPAN,
    State,
    check_states,
    check_tokens,
    state_shape,
)

_Bindings = tuple[Any, ...]


class OrtSession(OneSequence):
    """One sequence on ONNX Runtime; see `Session` for what the methods promise."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        """`threads`: see `open_session`. Raises InputError where the graph cannot be loaded."""
        super().__init__()
        self._bundle = bundle
        self._threads = threads
        self._specs: tuple[StateSpec, ...] = bundle.manifest.states
        self._token = np.zeros((1, 1), dtype=np.int64)
        self._position = np.zeros(1, dtype=np.int64)
        self._logits = np.zeros((1, bundle.manifest.model.vocab_size), dtype=np.float32)
        self._view: NDArray[np.float32] = self._logits[0]
        self._view.flags.writeable = False
        kind, main = main_graph(bundle)
        self._one_graph = kind == "prefill"
        prompts = bundle.manifest.graph_for("onnxruntime", "prefill") or main
        in_place = main.states_in_place and prompts.states_in_place
        self._buffers = tuple(
            [np.zeros(state_shape(spec, 0), dtype=spec.dtype) for spec in self._specs]
            for _ in range(1 if in_place else 2)
        )
        self._past = 0
        graph = load_graph(bundle, kind, threads)
        self._step = graph
        self._step_bindings = self._bind(graph)
        for binding in self._step_bindings:
            binding.bind_ortvalue_input("tokens", _value(self._token))
        self._prefill: tuple[Any, _Bindings] | None = None
        # What a prompt needs beside its states is not held while steps follow.
        self._shrinking = arena_shrinkage()

    @property
    def position(self) -> int:
        """Number of tokens that the state has seen."""
        return int(self._position[0])

    @property
    def state_bytes(self) -> int:
        """Bytes of one copy of the states."""
        return sum(state.nbytes for state in self._buffers[0])

    @one_caller
    def reset(self) -> None:
        """Back to position 0 and the empty state."""
        for state in self._buffers[self._past]:
            state.fill(0)
        self._position[0] = 0
        self._seen = set()

    @one_caller
    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; a read-only view [vocab] that the next call overwrites."""
        if not 0 <= token < len(self._view):
            check_tokens([token], len(self._view))
        self._token[0, 0] = token
        self._run(self._step, self._step_bindings, 1)
        self._seen.add(token)
        return self._view

    @one_caller
    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens in spans of PREFILL_SPAN; the view that `step` returns too."""
        ids = check_tokens(tokens, len(self._view))
        if ids.size == 1 or self._bundle.manifest.graph_for("onnxruntime", "prefill") is None:
            for token in ids[0]:
                self.step(int(token))
            return self._view
        if self._prefill is None:
            graph = (
                self._step
                if self._one_graph
                else load_graph(self._bundle, "prefill", self._threads)
            )
            self._prefill = graph, self._bind(graph)
        graph, bindings = self._prefill
        for start in range(0, ids.size, PREFILL_SPAN):
            span = ids[:, start : start + PREFILL_SPAN]
            bindings[self._past].bind_ortvalue_input("tokens", _value(span))
            last = start + PREFILL_SPAN >= ids.size
            self._run(graph, bindings, span.size, self._shrinking if last else None)
            self._seen.update(span[0].tolist())
        trim_heap()
        return self._view

    @one_caller
    def states(self) -> list[State]:
        """Copies of the states, each [1, heads, key_dim, value_dim]."""
        return [state.copy() for state in self._buffers[self._past]]

    @one_caller
    def load_states(
        self, states: Sequence[State], position: int, seen: Collection[int] = ()
    ) -> None:
        """Copy `states` in and continue at `position`; see `Session`."""
        checked = check_states(states, position, self._specs)
        known = check_seen(seen, len(self._view))
        for buffer, state in zip(self._buffers[self._past], checked, strict=True):
            buffer[...] = state
        self._position[0] = position
        self._seen = known

    def _run(self, graph: Any, bindings: _Bindings, tokens: int, options: Any = None) -> None:
        run_with_binding(graph, bindings[self._past], self._bundle.path, options)
        self._past = self._next(self._past)
        self._position[0] += tokens

    def _next(self, past: int) -> int:
        """The set that a call writes which reads the set `past`."""
        return (past + 1) % len(self._buffers)

    def _bind(self, graph: Any) -> _Bindings:
        """The graph's binding out of each set; `tokens` is left to the caller."""

        def binding(past: int) -> Any:
            bound = graph.io_binding()
            bound.bind_ortvalue_input("position", _value(self._position))
            bound.bind_ortvalue_output("logits", _value(self._logits))
            for spec, old, new in zip(
                self._specs, self._buffers[past], self._buffers[self._next(past)], strict=True
            ):
                bound.bind_ortvalue_input(spec.input, _value(old))
                bound.bind_ortvalue_output(spec.output, _value(new))
            return bound

        return tuple(binding(past) for past in range(len(self._buffers)))


def _value(array: NDArray[Any]) -> Any:
    """ONNX Runtime's view of the array: the same memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
