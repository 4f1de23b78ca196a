"""The tokenizers library, called so that what goes wrong in it is one sentence.

It is written in Rust: an error is a bare `Exception`, and a panic a `BaseException` of a class that
cannot be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from retnet_edge.errors import InputError, one_line

_PANIC = "PanicException"


@contextmanager
def calling(what: str) -> Iterator[None]:
    """What the library raises in the block is an InputError: `what`, then its own words."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise  # Ctrl-C
        raise InputError(f"{what}: {one_line(error)}") from error
