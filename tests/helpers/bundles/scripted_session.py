"""A session that says what a test wants, without a model: ids of the tiny bundles' vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tiny_bundle import END_OF_TEXT

from retnet_edge.runtime.session.protocol import State

VOCABULARY = 300


class Script:
    """A session that wants to say `answer`, then end_of_text for ever."""

    def __init__(self, answer: Sequence[int]) -> None:
        self.answer = [*answer]
        self.on_prefill: list[int] = []
        self.said = 0

    @property
    def position(self) -> int:
        return len(self.on_prefill)

    @property
    def seen(self) -> set[int]:
        return set(self.on_prefill)

    @property
    def state_bytes(self) -> int:
        return 0

    def reset(self) -> None:
        self.on_prefill = []

    def step(self, token: int) -> NDArray[np.float32]:
        self.on_prefill.append(token)
        self.said += 1
        return self._logits()

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.on_prefill += tokens
        return self._logits()

    def states(self) -> list[State]:
        return []

    def load_states(self, states: Sequence[State], position: int, seen: object = ()) -> None:
        raise NotImplementedError

    def _logits(self) -> NDArray[np.float32]:
        logits = np.zeros(VOCABULARY, dtype=np.float32)
        logits[self.answer[self.said] if self.said < len(self.answer) else END_OF_TEXT] = 1
        return logits
