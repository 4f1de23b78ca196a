"""Files and folders written whole or not at all: built beside their target, synced, renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retnet_edge.errors import DISK_FULL, InputError, is_disk_full

if sys.platform != "win32":
    import fcntl

PARTIAL = ".{name}.{token}.partial"
"""Name of a file or folder until it is whole; token: 8 hex digits."""


def check_target(target: Path) -> None:
    """Raises InputError where a folder cannot be made at `target`.

    Something is there, its parent is no folder, or nothing can be written in that.
    """
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already: name a new directory or remove it first")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a directory: {target.name} cannot be made in it")
    check_writable(target.parent, target)


def check_writable(folder: Path, what: Path) -> None:
    """Raises InputError where no file can be written in `folder`: tried, with one byte.

    For a command that writes `what` after long work.
    """
    probe = folder / PARTIAL.format(name="probe", token=secrets.token_hex(4))
    try:
        with probe.open("wb") as file:
            file.write(b"x")
    except OSError as error:
        why = DISK_FULL if is_disk_full(error) else error.strerror
        raise InputError(f"{what} cannot be written: {folder}: {why}") from error
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends well.

    The folder is hidden and lies beside `target`. On an exception, Ctrl-C included, it is removed
    and nothing is left; a second Ctrl-C does not stop that. Raises InputError where `target` exists
    already, where the folder that it is to lie in does not, and where the disk is full.
    """
    check_target(target)
    staging = target.parent / PARTIAL.format(name=target.name, token=secrets.token_hex(4))
    try:
        staging.mkdir()
        yield staging
        _sync_tree(staging)
        staging.rename(target)
        _sync(target.parent)
    except BaseException as error:
        with _no_signals():
            written = _bytes_in(staging)
            shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, Exception) and is_disk_full(error):
            raise InputError(
                f"{target}: {DISK_FULL} in {target.parent}: needs more than the {written} bytes "
                "that fitted; nothing was written"
            ) from error
        if isinstance(error, OSError) and target.exists():
            raise InputError(f"{target} exists already: it was made meanwhile") from error
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder, which Ctrl-C does not stop."""
    with _no_signals():
        shutil.rmtree(path, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, sync, and rename: a reader sees the old file or the new."""
    beside = path.with_name(PARTIAL.format(name=path.name, token=secrets.token_hex(4)))
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _no_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM are ignored in the block (they reach the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


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
