"""Files and folders written whole or not at all: built beside their target, synced, renamed.

Until it is whole, one is called `.<name>.<8 hex digits>.partial`, and who writes it holds a lock on
it (flock), which the system takes away when the process ends, however it does. So what killed runs
left can be told from what a live one is writing: the next run of the same target removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retnet_edge.errors import DISK_FULL, InputError, is_disk_full

try:
    import fcntl
except ImportError:  # Windows, where nothing that was left is removed
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".{name}.{token}.partial"
_ANY_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial", re.DOTALL)
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def check_target(target: Path, what: str = "directory") -> None:
    """Raises InputError where nothing new can be made at `target`; what: "directory" or "file".

    Something is there, its parent is no folder, or nothing can be written in that.
    """
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already: name a new {what} or remove it first")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a directory: {target.name} cannot be made in it")
    check_writable(target.parent, target)


def check_writable(folder: Path, what: Path) -> None:
    """Raises InputError where no file can be written in `folder`: tried, with one byte.

    For a command that writes `what` after long work.
    """
    probe = folder / _PARTIAL.format(name=what.name, token=secrets.token_hex(4))
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
    and nothing is left; a second Ctrl-C does not stop that. What killed runs left of the same
    target is removed first. Raises InputError where `target` exists already, where the folder that
    it is to lie in does not, and where the disk is full.
    """
    check_target(target)
    with work_folder(target) as staging:
        yield staging
        publish(staging, target)


@contextmanager
def work_folder(target: Path, mode: int = 0o777) -> Iterator[Path]:
    """A hidden folder beside `target` that lasts as long as the block, unless it was published.

    A second Ctrl-C does not stop its removal. What killed runs left of the same target is removed
    first. Raises InputError where the disk is full.
    """
    remove_leftovers(target)
    try:
        folder, lock = _claimed(target, lambda path: path.mkdir(mode))
    except OSError as error:
        if is_disk_full(error):
            raise InputError(f"{target}: {DISK_FULL} in {target.parent}") from error
        raise
    try:
        yield folder
    except BaseException as error:
        if isinstance(error, Exception) and is_disk_full(error):
            raise InputError(
                f"{target}: {DISK_FULL} in {target.parent}: needs more than the "
                f"{_bytes_in(folder)} bytes that fitted; nothing was written"
            ) from error
        raise
    finally:
        with _no_signals():
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's place for temporary ones, which this user alone can read.

    As `work_folder`, so that what killed runs left there is removed by the next.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    with work_folder(Path(tempfile.gettempdir()) / f"retnet-edge-{user}", 0o700) as folder:
        yield folder


def publish(folder: Path, target: Path) -> None:
    """Sync a folder to the disk and give it its name. Raises InputError where `target` exists."""
    _sync_tree(folder)
    try:
        folder.rename(target)
    except OSError as error:
        if target.exists():
            raise InputError(f"{target} exists already: it was made meanwhile") from error
        raise
    _sync(target.parent)


def replace_folder(folder: Path, target: Path) -> None:
    """Sync a folder and put it in the place of `target`, a folder, a file or nothing.

    What stands there is renamed to a partial name and then removed, so that a process that is
    killed leaves the old one, the new one or none, and never a part of one.
    """
    _sync_tree(folder)
    if target.is_symlink() or target.exists():
        old = target.with_name(_PARTIAL.format(name=target.name, token=secrets.token_hex(4)))
        target.rename(old)
    folder.rename(target)
    _sync(target.parent)
    remove_leftovers(target)


def remove_folder(path: Path) -> None:
    """Remove a folder, which Ctrl-C does not stop."""
    with _no_signals():
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs left beside `target`; what a live process holds stays."""
    for path in _partials(target.parent):
        if (named := _ANY_PARTIAL.fullmatch(path.name)) and named[1] == target.name:
            _remove_if_left(path)


def remove_leftovers_in(folder: Path) -> None:
    """The same for every target below `folder`."""
    for inner, _, _ in os.walk(folder):
        for path in _partials(Path(inner)):
            _remove_if_left(path)


def replace_file(path: Path, content: bytes | Iterable[bytes], mode: int = 0o666) -> None:
    """Write `content`, or its pieces, beside `path`, sync, and rename.

    A reader sees the old file or the new.

    What killed runs left of the same file is removed first.
    """
    remove_leftovers(path)
    beside, lock = _claimed(path, lambda new: new.touch(mode, exist_ok=False))
    try:
        with beside.open("wb") as file:
            file.writelines((content,) if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    finally:
        _unlock(lock)


def _partials(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return [Path(entry.path) for entry in found if _ANY_PARTIAL.fullmatch(entry.name)]
    except OSError:  # whoever writes there will say so
        return []


def _claimed(target: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """A new path with a partial name of `target` that `make` made, and the lock that holds it.

    Until it is locked, another process may take it for a leftover: one that is gone is made anew.
    """
    while True:
        path = target.with_name(_PARTIAL.format(name=target.name, token=secrets.token_hex(4)))
        make(path)
        if fcntl is None:
            return path, None
        try:
            lock = os.open(path, _FOLDER_FLAGS)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # who holds it removes it
            os.close(lock)
            continue
        except OSError:  # a file system without locks, where nobody removes anything either
            return path, lock
        if _is_at(lock, path):
            return path, lock
        os.close(lock)


def _remove_if_left(path: Path) -> None:
    """Remove a partial file or folder of ours that no process holds."""
    if fcntl is None:
        return
    with suppress(OSError):
        lock = os.open(path, _FOLDER_FLAGS)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mode = os.fstat(lock).st_mode
            if os.fstat(lock).st_uid != os.geteuid() or not _is_at(lock, path):
                return
            if stat.S_ISDIR(mode):
                shutil.rmtree(path, ignore_errors=True)
            elif stat.S_ISREG(mode):
                path.unlink()
        finally:
            os.close(lock)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


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
        if fcntl is None:
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
