"""A session on the native backend: weights mapped from the bundle and multiplied where they lie.

Weights of 8 bits meet activations of 16, weights of 4 bits activations of 8 in blocks as long as
theirs; states and everything else is float32. A token gives the same bits in a prompt and alone,
on any number of threads.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retnet_edge.config import RetNetConfig
from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.native.library import (
    CBytes,
    CLayer,
    CMatrix,
    CModel,
    CPlace,
    Engine,
    floats,
)
from retnet_edge.runtime.backends.native.plan import Data, FileRange, Plan, PlannedMatrix, read_plan
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.malloc_trim import trim_heap
from retnet_edge.runtime.session.protocol import (
    PREFILL_SPAN,
    State,
    check_states,
    check_tokens,
    state_shape,
)
from retnet_edge.runtime.session.threads import checked_threads

_ALIGNMENT = 64  # of each tensor that the plan brings along: a cache line
_Locate = Callable[[Data], CPlace]


class NativeSession:
    """One sequence on the native backend; see `Session` for what the methods promise."""

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, kernels: str | None = None
    ) -> None:
        """`threads`: see `open_session`; `kernels`: see `Engine`.

        Raises InputError where the plan is not one of the bundle's model, and as `Engine` does.
        """
        self.engine = load_engine(bundle, checked_threads(threads), kernels)
        self._specs = bundle.manifest.states
        self._states = [np.zeros(state_shape(spec, 0), dtype=np.float32) for spec in self._specs]
        self._buffers = floats(self._states)
        self._token = np.zeros(1, dtype=np.int64)
        self._position = 0
        self._logits = np.zeros(bundle.manifest.model.vocab_size, dtype=np.float32)
        self._view: NDArray[np.float32] = self._logits[:]
        self._view.flags.writeable = False
        self._token_at, self._logits_at = self._token.ctypes.data, self._logits.ctypes.data

    @property
    def position(self) -> int:
        """Number of tokens that the state has seen."""
        return self._position

    @property
    def state_bytes(self) -> int:
        """Bytes of the states."""
        return sum(state.nbytes for state in self._states)

    def reset(self) -> None:
        """Back to position 0 and the empty state."""
        for state in self._states:
            state.fill(0)
        self._position = 0

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; a read-only view [vocab] that the next call overwrites."""
        if not 0 <= token < len(self._view):
            check_tokens([token], len(self._view))
        self._token[0] = token
        self._run(self._token_at, 1)
        return self._view

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens in spans of PREFILL_SPAN; the view that `step` returns too."""
        ids = check_tokens(tokens, len(self._view))[0]
        for start in range(0, ids.size, PREFILL_SPAN):
            span = ids[start : start + PREFILL_SPAN]
            self._run(span.ctypes.data, span.size)
        trim_heap()
        return self._view

    def states(self) -> list[State]:
        """Copies of the states, each [1, heads, key_dim, value_dim]."""
        return [state.copy() for state in self._states]

    def load_states(self, states: Sequence[State], position: int) -> None:
        """Copy `states` in and continue at `position`; see `Session`."""
        checked = check_states(states, position, self._specs)
        for buffer, state in zip(self._states, checked, strict=True):
            buffer[...] = state
        self._position = position

    def _run(self, tokens: int, count: int) -> None:
        """Feed `count` int64 tokens that lie at the address `tokens`."""
        self.engine.run(
            tokens, count, self._position, self._buffers, self._logits_at, self._logits.size
        )
        self._position += count


def load_engine(bundle: Bundle, threads: int, kernels: str | None = None) -> Engine:
    """The bundle's model on its mapped weights. Raises InputError as `NativeSession` does."""
    graph = bundle.manifest.graph_for("native", "step")
    if graph is None or len(graph.external_data) != 1:
        raise InputError(f"{bundle.path} has no native plan with one file of weights")
    weights = _mapped(bundle.file(graph.external_data[0]))
    plan, config = read_plan(bundle, graph.file, weights.size)
    own = bytearray()

    def locate(data: Data) -> CPlace:
        if isinstance(data, FileRange):
            return CPlace(data.offset, data.size, 0)
        own.extend(b"\0" * (-len(own) % _ALIGNMENT))
        place = CPlace(len(own), len(data), 1)
        own.extend(data)
        return place

    keepalive: list[object] = [weights]
    model = _model(plan, config, locate, keepalive)
    brought = np.frombuffer(bytes(own), dtype=np.uint8)
    keepalive.append(brought)
    model.weights = CBytes(weights.ctypes.data, weights.size)
    model.own = CBytes(brought.ctypes.data, brought.size)
    where = str(bundle.file(graph.file))
    return Engine(model, threads, keepalive, where=where, kernels=kernels)


def _mapped(path: Path) -> NDArray[np.uint8]:
    """The file's bytes. Raises InputError for an empty one, which cannot be mapped."""
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; it should hold the weights")
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


def _model(plan: Plan, config: RetNetConfig, locate: _Locate, keepalive: list[object]) -> CModel:
    """All but the two buffers that the places lie in."""

    def matrix(of: PlannedMatrix) -> CMatrix:
        return CMatrix(
            locate(of.codes),
            locate(of.scales),
            CPlace() if of.zeros is None else locate(of.zeros),
            of.rows,
            of.inputs,
            of.bits,
            of.block,
            of.scale_dtype == "float16",
            of.zeros is not None,
        )

    layers = (CLayer * config.layers)(
        *[
            CLayer(
                locate(layer.retention_norm),
                locate(layer.head_norm),
                locate(layer.ffn_norm),
                *map(matrix, (layer.qkvg, layer.out, layer.inner, layer.down)),
            )
            for layer in plan.layers
        ]
    )
    gammas = np.array(config.gammas, dtype=np.float64)
    frequencies = np.array(config.thetas, dtype=np.float64) / (2 * np.pi)
    keepalive += [layers, gammas, frequencies]
    return CModel(
        gammas=gammas.ctypes.data,
        frequencies=frequencies.ctypes.data,
        layers=ctypes.cast(layers, ctypes.POINTER(CLayer)),
        embedding=matrix(plan.embedding),
        head=matrix(plan.head),
        final_norm=locate(plan.final_norm),
        layer_count=config.layers,
        d_model=config.d_model,
        heads=config.heads,
        key_dim=config.key_head_dim,
        value_dim=config.value_head_dim,
        ffn_dim=config.ffn_dim,
        vocab_size=config.vocab_size,
        layer_plans=len(layers),
        gamma_count=gammas.size,
        frequency_count=frequencies.size,
        gated=config.ffn == "glu",
        gelu=config.activation == "gelu",
        eps_z_n=config.head_norm_eps_rule == "z_n",
        norm_eps=config.norm_eps,
        head_norm_eps=config.head_norm_eps,
    )
