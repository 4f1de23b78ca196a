"""A session on ONNX Runtime for states that grow: the key-value cache of the baseline.

ONNX Runtime allocates the longer cache on every call and the next call reads it where it lies:
outputs are bound anew as inputs, and nothing is copied between calls.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from retnet_edge.runtime.backends.ort.graph import load_graph, run_with_binding
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import StateSpec
from retnet_edge.runtime.session.one_sequence import OneSequence, check_seen, one_caller
from retnet_edge.runtime.session.protocol import (
    PREFILL_SPAN,
    State,
    check_states,
    check_tokens,
    state_shape,
)


class KvSession(OneSequence):
    """One sequence with a growing state; see `Session` for what the methods promise."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        """`threads`: see `open_session`. Raises InputError where the graph cannot be loaded."""
        super().__init__()
        self._bundle = bundle
        self._threads = threads
        self._specs: tuple[StateSpec, ...] = bundle.manifest.states
        self._position = np.zeros(1, dtype=np.int64)
        self._logits = np.zeros((1, bundle.manifest.model.vocab_size), dtype=np.float32)
        self._view: NDArray[np.float32] = self._logits[0]
        self._view.flags.writeable = False
        self._step = load_graph(bundle, "step", threads)
        self._step_binding = self._step.io_binding()
        self._prefill: tuple[Any, Any] | None = None
        self.reset()

    @property
    def position(self) -> int:
        """Number of tokens that the state has seen."""
        return int(self._position[0])

    @property
    def state_bytes(self) -> int:
        """Bytes of the states at the current position."""
        return self._bundle.manifest.state_bytes(self.position)

    @one_caller
    def reset(self) -> None:
        """Back to position 0 and the empty state."""
        self._states: list[Any] = [
            _value(np.zeros(state_shape(spec, 0), dtype=spec.dtype)) for spec in self._specs
        ]
        self._position[0] = 0
        self._seen = set()

    @one_caller
    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; a read-only view [vocab] that the next call overwrites."""
        self._run(self._step, self._step_binding, check_tokens([token], len(self._view)))
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
            graph = load_graph(self._bundle, "prefill", self._threads)
            self._prefill = graph, graph.io_binding()
        for start in range(0, ids.size, PREFILL_SPAN):
            self._run(*self._prefill, ids[:, start : start + PREFILL_SPAN])
        return self._view

    @one_caller
    def states(self) -> list[State]:
        """Copies of the states, each [1, heads, position, head_dim]."""
        return [state.numpy().copy() for state in self._states]

    @one_caller
    def load_states(
        self, states: Sequence[State], position: int, seen: Collection[int] = ()
    ) -> None:
        """Copy `states` in and continue at `position`; see `Session`."""
        checked = check_states(states, position, self._specs)
        known = check_seen(seen, len(self._view))
        self._states = [_value(state.copy()) for state in checked]
        self._position[0] = position
        self._seen = known

    def _run(self, graph: Any, binding: Any, ids: NDArray[np.int64]) -> None:
        """Feed ids [1, T]."""
        binding.bind_ortvalue_input("tokens", _value(ids))
        binding.bind_ortvalue_input("position", _value(self._position))
        # Outputs come back in the order of binding: the logits, then the states.
        binding.bind_ortvalue_output("logits", _value(self._logits))
        for spec, state in zip(self._specs, self._states, strict=True):
            binding.bind_ortvalue_input(spec.input, state)
            binding.bind_output(spec.output)
        run_with_binding(graph, binding, self._bundle.path)
        self._states = binding.get_outputs()[1:]
        # bound inputs would keep the cache before this one alive
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        self._position[0] += ids.size
        self._seen.update(ids[0].tolist())


def _value(array: NDArray[Any]) -> Any:
    """ONNX Runtime's view of the array: the same memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
