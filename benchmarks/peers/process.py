"""What the measured processes share: one command a line in, one answer a line out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

VOCAB = 32_000
FILL = 512
"""Tokens that a model is fed at a time."""


class Model(Protocol):
    """A model with a state that is at some depth."""

    def clear(self) -> None:
        """Back to depth 0."""

    def feed(self, tokens: list[int]) -> None:
        """A prompt (any length): its last logits."""

    def fill(self, tokens: list[int]) -> None:
        """Come to a depth, by whatever is quickest."""

    def decode(self, token: int) -> None:
        """One token: its logits."""

    def back_to(self, depth: int) -> None:
        """Forget what came after `depth`, where the time of a step depends on it."""


def memory() -> dict[str, int]:
    """Bytes of this process, resident and anonymous."""
    found = {}
    with open("/proc/self/smaps_rollup") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            if name in ("Rss", "Anonymous"):
                found[name] = 1024 * int(rest.split()[0])
    return {"resident": found["Rss"], "anonymous": found["Anonymous"]}


def timed(work: Callable[[], None]) -> dict[str, float]:
    """Its wall-clock seconds."""
    began = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - began}


def tokens(count: int) -> list[int]:
    """The same for every model."""
    return [1 + 7919 * i % (VOCAB - 1) for i in range(count)]


def serve(model: Model) -> None:
    """Answer until the input ends."""
    depth = 0
    print(json.dumps({"ready": memory()}), flush=True)
    for line in sys.stdin:
        command, count = json.loads(line)
        answer: Any = None
        if command == "prompt":
            model.clear()
            depth = 0
            answer = timed(lambda: model.feed(tokens(count)))  # noqa: B023
        elif command == "start":
            model.clear()
            depth = 0
        elif command == "advance":
            answer = {"seconds": 0.0}
            if count > depth:
                answer = timed(lambda: model.fill(tokens(count - depth)))  # noqa: B023
                depth = count
        elif command == "decode":
            steps = tokens(count)

            def run(steps: list[int] = steps) -> None:
                for token in steps:
                    model.decode(token)

            answer = timed(run)
            model.back_to(depth)
        elif command == "memory":
            answer = memory()
        print(json.dumps(answer), flush=True)
