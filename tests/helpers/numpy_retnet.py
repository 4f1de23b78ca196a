"""One layer of retention in NumPy: a float64 reference, and a float32 session that can be broken.

S = γ S + k vᵀ and logits = concat over heads of (q S) · head, with rotary angles n · θ on q and k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCAB, HEADS, KEY, VALUE = 32, 2, 4, 6
Fault = Callable[[NDArray[np.float32], int], NDArray[np.float32]]


class Net:
    """The layer, computed in `dtype`; angles are taken in `angle_dtype`."""

    def __init__(self, dtype: Any = np.float64, angle_dtype: Any = np.float64) -> None:
        rng = np.random.default_rng(0)
        self.dtype, self.angle_dtype = dtype, angle_dtype
        self.q = rng.standard_normal((VOCAB, HEADS, KEY)).astype(dtype)
        self.k = rng.standard_normal((VOCAB, HEADS, KEY)).astype(dtype)
        self.v = rng.standard_normal((VOCAB, HEADS, VALUE)).astype(dtype)
        self.head = (rng.standard_normal((HEADS * VALUE, VOCAB)) / 8).astype(dtype)
        self.gamma = (1 - np.exp2(-2.0 - np.arange(HEADS))).astype(dtype)[:, None, None]
        self.theta = np.array([1.0, 0.01], dtype=angle_dtype)

    def empty(self) -> NDArray[Any]:
        return np.zeros((1, HEADS, KEY, VALUE), dtype=self.dtype)

    def _rotate(self, x: NDArray[Any], position: int) -> NDArray[Any]:
        angle = (self.angle_dtype(position) * self.theta).astype(np.float64)
        cos, sin = np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)
        even, odd = x[:, 0::2], x[:, 1::2]
        return np.concatenate([even * cos - odd * sin, even * sin + odd * cos], axis=1)

    def step(
        self, token: int, state: NDArray[Any], position: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Logits [vocab] and the next state [1, heads, key, value]."""
        q, k = self._rotate(self.q[token], position), self._rotate(self.k[token], position)
        state = self.gamma * state + (k[:, :, None] * self.v[token][:, None, :])[None]
        return (q[:, None, :] @ state[0]).reshape(-1) @ self.head, state


class NetReference:
    """`parity.Reference` of the layer; `calls` are the lengths it was asked for."""

    def __init__(self) -> None:
        self.net = Net()
        self.calls: list[int] = []

    def run(
        self, tokens: NDArray[np.int64], states: list[NDArray[np.float64]] | None, position: int
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        self.calls.append(len(tokens))
        state = self.net.empty() if states is None else states[0]
        rows = []
        for offset, token in enumerate(tokens):
            logits, state = self.net.step(int(token), state, position + offset)
            rows.append(logits)
        return np.stack(rows), [state]


class NetSession:
    """`Session` of the layer in float32; `fault` changes the logits of a step at a position.

    Logits are a view of one buffer that the next step overwrites, as sessions may do.
    """

    def __init__(
        self,
        fault: Fault | None = None,
        *,
        angle_dtype: Any = np.float64,
        state_scale: float = 1.0,
        prefill_shift: int = 0,
        dtype: Any = np.float32,
    ) -> None:
        self.net = Net(dtype, angle_dtype)
        self.fault, self.state_scale, self.prefill_shift = fault, state_scale, prefill_shift
        self.buffer = np.zeros(VOCAB, dtype=np.float32)
        self.reset()

    @property
    def state_bytes(self) -> int:
        return self.state.nbytes

    def reset(self) -> None:
        self.state, self.position = self.net.empty(), 0

    def step(self, token: int) -> NDArray[np.float32]:
        logits, self.state = self.net.step(token, self.state, self.position)
        self.buffer[:] = logits
        if self.fault is not None:
            self.buffer[:] = self.fault(self.buffer.copy(), self.position)
        self.position += 1
        return self.buffer

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.position += self.prefill_shift
        for token in tokens:
            self.step(token)
        self.position -= self.prefill_shift
        return self.buffer

    @property
    def seen(self) -> set[int]:
        return set()

    def states(self) -> list[NDArray[Any]]:
        return [(self.state * self.state_scale).astype(self.state.dtype)]

    def load_states(self, states: Sequence[NDArray[Any]], position: int, seen: object = ()) -> None:
        assert states[0].dtype == self.net.dtype
        self.state, self.position = states[0].copy(), position


def text(tokens: int, seed: int = 1) -> NDArray[np.int64]:
    """Random tokens, int64 [tokens]."""
    return np.random.default_rng(seed).integers(VOCAB, size=tokens)
