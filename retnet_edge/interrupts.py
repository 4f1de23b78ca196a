"""Ctrl-C and SIGTERM at a moment of our choosing: between two pieces of work, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait while the block runs; yields the list that they are added to.

    `deliver` them afterwards. They reach the main thread only; elsewhere nothing is held. A signal
    whose handler is not Python's, or that is ignored, stays as it is.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    try:
        for number in before:
            signal.signal(number, note)
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def deliver(came: list[int]) -> None:
    """Let the first of the signals that were held back do what it does (KeyboardInterrupt)."""
    if came:
        number = came[0]
        came.clear()
        signal.raise_signal(number)
