"""A session on the native backend: weights mapped from the bundle and multiplied where they lie.

Weights of 8 bits meet activations of 16, weights of 4 bits activations of 8 in blocks as long as
theirs; states and everything else is float32. A token gives the same bits in a prompt and alone,
on any number of threads.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.native import library
from retnet_edge.runtime.backends.native.plan import check_states as check_manifest
from retnet_edge.runtime.backends.native.plan import retnet_config
from retnet_edge.runtime.backends.native.table import check_table, read_table
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import MANIFEST_FILE
from retnet_edge.runtime.bundle.packed import TABLE, PackedBundle
from retnet_edge.runtime.session.malloc_trim import trim_heap
from retnet_edge.runtime.session.one_sequence import OneSequence, check_seen, one_caller
from retnet_edge.runtime.session.protocol import (
    PREFILL_SPAN,
    State,
    check_states,
    check_tokens,
)
from retnet_edge.runtime.session.threads import checked_threads


class NativeSession(OneSequence):
    """One sequence on the native backend; see `Session` for what the methods promise."""

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, kernels: str | None = None
    ) -> None:
        """`threads`: see `open_session`; `kernels`: see `library.Sequence`.

        Raises InputError where the plan is not one of the bundle's model, and as the library does.
        """
        super().__init__()
        threads = checked_threads(threads)
        self.sequence = library.Sequence(open_model(bundle), threads, kernels)
        self._specs = bundle.manifest.states
        self._token = np.zeros(1, dtype=np.int32)
        self._token_at = self._token.ctypes.data
        self._position = 0
        self._vocabulary = bundle.manifest.model.vocab_size
        self._logits: NDArray[np.float32] | None = None

    @property
    def position(self) -> int:
        """Number of tokens that the state has seen."""
        return self._position

    @property
    def state_bytes(self) -> int:
        """Bytes of the states."""
        return int(self.sequence.model.info.state_bytes)

    @one_caller
    def reset(self) -> None:
        """Back to position 0 and the empty state."""
        self.sequence.reset()
        self._position = 0
        self._seen = set()

    @one_caller
    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; a read-only view [vocab] that the next call overwrites."""
        if not 0 <= token < self._vocabulary:
            check_tokens([token], self._vocabulary)
        self._token[0] = token
        self.sequence.feed(self._token_at, 1)
        self._position += 1
        self._seen.add(token)
        return self._view()

    @one_caller
    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens in spans of PREFILL_SPAN; the view that `step` returns too."""
        ids = check_tokens(tokens, self._vocabulary)[0].astype(np.int32)
        for start in range(0, ids.size, PREFILL_SPAN):
            span = ids[start : start + PREFILL_SPAN]
            self.sequence.feed(span.ctypes.data, span.size)
            self._position += span.size
            self._seen.update(span.tolist())
        trim_heap()
        return self._view()

    def _view(self) -> NDArray[np.float32]:
        if self._logits is None:
            self._logits = self.sequence.logits()
        return self._logits

    @one_caller
    def states(self) -> list[State]:
        """Copies of the states, each [1, heads, key_dim, value_dim]."""
        return [state[np.newaxis] for state in self.sequence.states()]

    @one_caller
    def load_states(
        self, states: Sequence[State], position: int, seen: Collection[int] = ()
    ) -> None:
        """Copy `states` in and continue at `position`; see `Session`."""
        checked = check_states(states, position, self._specs)
        known = check_seen(seen, self._vocabulary)
        self.sequence.load(np.concatenate(checked), position, known)
        self._position = position
        self._seen = known


def open_model(bundle: Bundle) -> library.Model:
    """The bundle's model on its mapped weights. Raises InputError as `NativeSession` does."""
    if isinstance(bundle, PackedBundle):
        return _packed_model(bundle)
    graph = bundle.manifest.graph_for("native", "step")
    if graph is None or len(graph.external_data) != 1:
        raise InputError(f"{bundle.path} has no native plan with one file of weights")
    manifest = bundle.path / MANIFEST_FILE
    config = retnet_config(bundle.manifest.model, str(manifest))
    check_manifest(bundle.manifest, config, manifest)
    path = bundle.file(graph.file)
    weights = mapped(bundle.file(graph.external_data[0]))
    table = read_table(path, config, weights.size)
    return library.Model.of_parts(table, weights, bundle.fingerprint, str(path))


def _packed_model(bundle: PackedBundle) -> library.Model:
    """The file's own table is held against its manifest, as a bundle's is."""
    model = library.Model.open(bundle.path)
    config = retnet_config(bundle.manifest.model, f"{bundle.path}: manifest")
    check_manifest(bundle.manifest, config, bundle.path)
    check_table(bundle.section(TABLE) or b"", config, f"{bundle.path}: model table")
    return model


def mapped(path: Path) -> NDArray[np.uint8]:
    """The file's bytes. Raises InputError for an empty one, which cannot be mapped."""
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; it should hold the weights")
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
