"""A bundle in this runtime, as a process: `BUNDLE THREADS BACKEND`."""

from __future__ import annotations

import sys

from benchmarks.peers.process import serve
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle


class Ours:
    """One session."""

    def __init__(self, path: str, threads: int, backend: str) -> None:
        """Open the bundle."""
        self._session = open_session(Bundle.open(path), threads, backend)

    def clear(self) -> None:
        """Back to depth 0."""
        self._session.reset()

    def feed(self, tokens: list[int]) -> None:
        """A prompt: its last logits."""
        self._session.prefill(tokens)

    fill = feed

    def decode(self, token: int) -> None:
        """One token: its logits."""
        self._session.step(token)

    def back_to(self, depth: int) -> None:
        """Every step costs alike."""


if __name__ == "__main__":
    serve(Ours(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
