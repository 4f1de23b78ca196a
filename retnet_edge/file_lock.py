"""One process at a time works on a file: an advisory lock beside it, which dies with its holder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retnet_edge.errors import InputError

if sys.platform != "win32":
    import fcntl

LOCK = ".{name}.lock"
"""Name of the lock of a file; it lies beside it, and is removed by who held it."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """`path` is this process's in the block: who comes meanwhile is refused.

    The kernel lets go of the lock of a process that was killed, so a lock file that is left behind
    blocks nobody. Raises InputError where another process has it, and where nothing can be written
    beside `path`. On Windows nothing is locked.
    """
    path = path.resolve()
    beside = path.with_name(LOCK.format(name=path.name))
    descriptor = _acquire(path, beside)
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)  # still held: who opened it meanwhile looks again
        os.close(descriptor)


def _acquire(path: Path, beside: Path) -> int:
    while True:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {beside}: {error.strerror}") from error
        if sys.platform == "win32":
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"{path} is in use by another process: wait until it ends, or name another file"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise InputError(f"{path} cannot be locked: {error.strerror}") from error
        try:
            current = os.stat(beside)
        except FileNotFoundError:
            current = None
        if current is not None and os.path.samestat(current, os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)  # its holder removed it between our opening and our locking
