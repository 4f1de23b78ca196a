"""Many independent sequences in one step: weights are read once for all of them.

Sequences join and leave between steps. Their states lie in the first rows of arrays [capacity, …]
that are allocated once; a sequence that leaves is replaced by the last one. Rows never mix: every
operator of the graph works on a row by itself, and a row is overwritten when it is given away. No
bit depends on what the other rows hold; how many there are, and which one a sequence has, decide
which of a kernel's loops it meets, and so the last bits (docs/how-to/run.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.ort.graph import (
    batch_shares_scales,
    load_graph,
    main_graph,
    run_with_binding,
)
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.protocol import (
    PREFILL_SPAN,
    check_states,
    check_tokens,
    state_shape,
)
from retnet_edge.runtime.text.snapshot import Snapshot


class Batch:
    """Up to `capacity` sequences on ONNX Runtime, each with a number of its own."""

    def __init__(self, bundle: Bundle, capacity: int, *, threads: int | None = None) -> None:
        """`threads`: see `open_session`.

        Raises InputError where the capacity is below 1, the bundle has no graph for ONNX Runtime
        that takes prompts and steps, its state grows, or its recipe quantizes the activations of
        all sequences together, so that they would change each other.
        """
        if capacity < 1:
            raise InputError(f"capacity is {capacity}; a batch has room for at least 1 sequence")
        manifest = bundle.manifest
        if any(state.growing_axis is not None for state in manifest.states):
            raise InputError(f"{bundle.path}: a batch needs states of constant size")
        if batch_shares_scales(manifest):
            raise InputError(
                f"{bundle.path}: its recipe, {manifest.quantization.recipe}, quantizes the "
                "activations of a whole batch with one scale, so that sequences would change each "
                "other; quantize with another one"
            )
        kind, graph = main_graph(bundle)
        if kind != "prefill":
            raise InputError(f"{bundle.path} has no graph that takes both prompts and steps")
        self._bundle = bundle
        self._graph = load_graph(bundle, kind, threads)
        self._specs = manifest.states
        self._vocab = manifest.model.vocab_size
        self._capacity = capacity
        self._tokens = np.zeros((capacity, 1), dtype=np.int64)
        self._positions = np.zeros(capacity, dtype=np.int64)
        self._logits = np.zeros((capacity, self._vocab), dtype=np.float32)
        shapes = [(state_shape(spec, 0), spec.dtype) for spec in self._specs]
        self._sets = tuple(
            [np.zeros((capacity, *shape[1:]), dtype=dtype) for shape, dtype in shapes]
            for _ in range(1 if graph.states_in_place else 2)
        )
        self._alone = [np.zeros(shape, dtype=dtype) for shape, dtype in shapes]
        self._current = 0
        self._rows: list[int] = []  # the sequence in each row
        self._joined = 0
        self._bindings: dict[tuple[int, int], Any] = {}

    @property
    def sequences(self) -> tuple[int, ...]:
        """The numbers of the sequences in the batch."""
        return tuple(self._rows)

    def position(self, sequence: int) -> int:
        """Tokens that a sequence has seen. Raises InputError for an unknown one."""
        return int(self._positions[self._row(sequence)])

    def join(self, snapshot: Snapshot | None = None) -> int:
        """Add a sequence, empty or as in `snapshot`; its number, which is never used again.

        Raises InputError where the batch is full or the states are not this bundle's.
        """
        row = len(self._rows)
        if row == self._capacity:
            raise InputError(f"the batch is full: it has room for {self._capacity} sequences")
        if snapshot is not None:
            states = check_states(snapshot.states, snapshot.position, self._specs)
        for index, rows in enumerate(self._sets[self._current]):
            rows[row] = 0 if snapshot is None else states[index][0]
        self._positions[row] = 0 if snapshot is None else snapshot.position
        self._rows.append(self._joined)
        self._joined += 1
        return self._rows[-1]

    def leave(self, sequence: int) -> Snapshot:
        """Take a sequence out, and nothing of it stays; its state. Raises InputError as above."""
        kept, row, last = self.snapshot(sequence), self._row(sequence), len(self._rows) - 1
        for rows in self._sets[self._current]:
            rows[row] = rows[last]
        for states in self._sets:
            for rows in states:
                rows[last] = 0
        self._positions[row] = self._positions[last]
        self._rows[row] = self._rows[last]
        del self._rows[last]
        return kept

    def snapshot(self, sequence: int) -> Snapshot:
        """Copies of a sequence's states. Raises InputError for an unknown sequence."""
        row = self._row(sequence)
        states = [rows[row : row + 1].copy() for rows in self._sets[self._current]]
        return Snapshot(int(self._positions[row]), tuple(states))

    def prefill(self, sequence: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed a prompt to one sequence; the logits [vocab] after it, a copy.

        Raises InputError for an unknown sequence, no tokens, or a bad id.
        """
        ids, row = check_tokens(tokens, self._vocab), self._row(sequence)
        logits: NDArray[np.float32] = np.zeros((1, self._vocab), dtype=np.float32)
        current = self._sets[self._current]
        for start in range(0, ids.size, PREFILL_SPAN):
            span = np.ascontiguousarray(ids[:, start : start + PREFILL_SPAN])
            binding = self._graph.io_binding()
            binding.bind_ortvalue_input("tokens", _value(span))
            binding.bind_ortvalue_input("position", _value(self._positions[row : row + 1]))
            binding.bind_ortvalue_output("logits", _value(logits))
            for spec, rows, alone in zip(self._specs, current, self._alone, strict=True):
                binding.bind_ortvalue_input(spec.input, _value(rows[row : row + 1]))
                binding.bind_ortvalue_output(spec.output, _value(alone))
            run_with_binding(self._graph, binding, self._bundle.path)
            for rows, alone in zip(current, self._alone, strict=True):
                rows[row] = alone[0]
            self._positions[row] += span.size
        return logits.reshape(-1)

    def step(self, tokens: Mapping[int, int]) -> dict[int, NDArray[np.float32]]:
        """Feed one token to each sequence of the batch; the logits [vocab] of each.

        The logits are views that the next call overwrites. Raises InputError where a sequence has
        no token, a token no sequence, and for a bad id; nothing is fed then.
        """
        if tokens.keys() != set(self._rows):
            odd = sorted(tokens.keys() ^ set(self._rows))[0]
            what = "is not in the batch" if odd in tokens else "was given no token"
            raise InputError(f"sequence {odd} {what}; a step feeds one token to each of them")
        if not self._rows:
            return {}
        check_tokens(list(tokens.values()), self._vocab)
        count = len(self._rows)
        self._tokens[:count, 0] = [tokens[sequence] for sequence in self._rows]
        run_with_binding(self._graph, self._binding(count), self._bundle.path)
        self._current = self._next
        self._positions[:count] += 1
        return {sequence: self._logits[row] for row, sequence in enumerate(self._rows)}

    @property
    def _next(self) -> int:
        """The set that a step writes: the current one where it may be written in place."""
        return (self._current + 1) % len(self._sets)

    def _row(self, sequence: int) -> int:
        if sequence not in self._rows:
            raise InputError(f"sequence {sequence} is not in the batch")
        return self._rows.index(sequence)

    def _binding(self, count: int) -> Any:
        """For steps of `count` rows out of the current states; made once for each."""
        if (count, self._current) not in self._bindings:
            binding = self._graph.io_binding()
            binding.bind_ortvalue_input("tokens", _value(self._tokens[:count]))
            binding.bind_ortvalue_input("position", _value(self._positions[:count]))
            binding.bind_ortvalue_output("logits", _value(self._logits[:count]))
            past, new = self._sets[self._current], self._sets[self._next]
            for spec, old, out in zip(self._specs, past, new, strict=True):
                binding.bind_ortvalue_input(spec.input, _value(old[:count]))
                binding.bind_ortvalue_output(spec.output, _value(out[:count]))
            self._bindings[count, self._current] = binding
        return self._bindings[count, self._current]


def _value(array: NDArray[Any]) -> Any:
    """ONNX Runtime's view of the array: the same memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
