"""What every session holds beside its states: which tokens it was fed, and who is in it.

A session's buffers belong to one call. ONNX Runtime would let a second thread into them and give
both wrong numbers without an error, so a second caller is refused, on every backend
(docs/decisions/0056-one-caller-and-what-was-seen.md).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Set
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from retnet_edge.errors import InputError, SessionBusyError

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Guarded(Protocol):
    @property
    def _caller(self) -> threading.RLock: ...


_S = TypeVar("_S", bound=_Guarded)


def one_caller(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """The method, which raises SessionBusyError while another thread is in one of its object's.

    Nobody waits: who shares a session between threads has to say in which order they go. A thread
    may go in again (`prefill` calls `step`), so Ctrl-C at a bad moment locks out no later call.
    """

    @functools.wraps(method)
    def alone(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        caller = self._caller
        if not caller.acquire(blocking=False):
            raise SessionBusyError(
                f"{type(self).__name__}.{method.__name__} was called while another thread is in "
                "the same object; it takes one caller at a time: use a lock, or one for each thread"
            )
        try:
            return method(self, *args, **kwargs)
        finally:
            caller.release()

    return alone


class OneSequence:
    """The base of the sessions."""

    def __init__(self) -> None:
        self._caller = threading.RLock()
        self._seen: set[int] = set()

    @property
    def seen(self) -> Set[int]:
        """The ids that the state has been fed, each once; a view, which changes with the state."""
        return self._seen


def check_seen(seen: Collection[int], vocab_size: int) -> set[int]:
    """The ids as a set. Raises InputError for one that is out of the vocabulary."""
    ids = set(seen)
    for bad in [token for token in ids if not 0 <= token < vocab_size][:1]:
        raise InputError(
            f"token id {bad} is out of range: this model has ids 0 to {vocab_size - 1}"
        )
    return ids
