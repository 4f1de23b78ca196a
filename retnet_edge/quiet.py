"""What other libraries say to developers: held back from the user, and shown when a command fails.

A command runs inside `Quiet`. Held back are

- warnings that are raised in files outside this package,
- records below ERROR of the `logging` module, which this package does not use,
- what compiled code and child processes write to the standard error of this process (descriptor 2).

Python's own `sys.stderr` still reaches the user, with all that this package says. `show` prints
what was held. RETNET_EDGE_WARNINGS=1, or a `-W` of Python's own, shows everything at once: for a
process that compiled code has aborted, too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TextIO

VARIABLE = "RETNET_EDGE_WARNINGS"
SHOWN_BYTES = 1 << 16  # of what was held, the last

_PACKAGE = Path(__file__).resolve().parent
_STDERR = 2

_hear: Callable[[str], None] | None = None  # what holds back, where a command runs
_descriptor_is_held = False


def wanted() -> bool:
    """Whether the user asked to see what is held back otherwise."""
    return os.environ.get(VARIABLE, "0") not in ("", "0") or bool(sys.warnoptions)


@contextmanager
def hushed() -> Iterator[None]:
    """Hold back, in the block, warnings from any file and log records below ERROR.

    For a library's call that runs code of ours and warns of it. Where no command is running they
    are dropped.
    """
    if wanted():
        yield
        return
    hear = _hear or (lambda text: None)
    with _warnings_to(hear, lambda file: True), _records_to(hear):
        yield


@contextmanager
def compiled_code_hushed() -> Iterator[None]:
    """Hold back what compiled code writes to descriptor 2 in the block, or to `sys.stderr`.

    Where no command is running it is dropped: only for a library whose exceptions say it too.
    """
    if wanted():
        yield
        return
    if _descriptor_is_held:  # ExecuTorch writes to Python's stream, which leads to the user
        with contextlib.redirect_stderr(sys.__stderr__):
            yield
        return
    before = os.dup(_STDERR)
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        os.dup2(null.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(before, _STDERR)
            os.close(before)


class Quiet:
    """What a command holds back while the block runs."""

    def __init__(self) -> None:
        """Nothing is held yet."""
        self._texts: list[str] = []
        self._file: BinaryIO | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Hold back from here on."""
        if not wanted():
            self._open.enter_context(_warnings_to(self._hold, _is_foreign))
            self._open.enter_context(_records_to(self._hold))
            self._open.enter_context(_heard_by(self._hold))
            # a caller who put something in its place (a test) has no descriptor to hold back
            if sys.stderr is sys.__stderr__:
                with contextlib.suppress(OSError, ValueError):
                    self._file = self._open.enter_context(_descriptor_held())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hold back no more."""
        if self._file is not None:
            self._texts.append(_end_of(self._file))
            self._file = None
        self._open.close()

    def show(self) -> None:
        """Print on standard error what was held back until the block ended."""
        held = "".join(self._texts).strip()
        if held:
            print(f"Other libraries said meanwhile:\n{held}\n", file=sys.stderr, flush=True)

    def _hold(self, text: str) -> None:
        if self._file is None:
            self._texts.append(text)
        else:
            os.write(self._file.fileno(), text.encode(errors="backslashreplace"))


def _is_foreign(file: str) -> bool:
    """Whether a file is of no part of this package, links to its folders followed."""
    path = Path(file).resolve()
    folders = [_PACKAGE, *(_PACKAGE / name for name in ("export", "quantize", "runtime"))]
    return not any(path.is_relative_to(folder.resolve()) for folder in folders)


@contextmanager
def _warnings_to(hear: Callable[[str], None], held: Callable[[str], bool]) -> Iterator[None]:
    """Warnings whose file is `held` go to `hear`; the others are a line for the user."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if held(filename):
            hear(warnings.formatwarning(message, category, filename, lineno, line))
        else:
            print(f"retnet-edge: warning: {message}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _records_to(hear: Callable[[str], None]) -> Iterator[None]:
    """Log records below ERROR go to `hear`, whatever handlers a library has, or will have."""
    original = logging.Logger.callHandlers

    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            hear(f"{record.levelname} {record.name}: {record.getMessage()}\n")
        else:
            original(self, record)

    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
    try:
        yield
    finally:
        logging.Logger.callHandlers = original  # type: ignore[method-assign]


@contextmanager
def _heard_by(hear: Callable[[str], None]) -> Iterator[None]:
    """What `hushed` holds back goes to `hear` too."""
    global _hear
    before, _hear = _hear, hear
    try:
        yield
    finally:
        _hear = before


@contextmanager
def _descriptor_held() -> Iterator[BinaryIO]:
    """Descriptor 2 leads to a file, which is yielded; `sys.stderr` to where 2 led before.

    Raises OSError where there is no place for the file or no descriptor 2.
    """
    global _descriptor_is_held
    before = sys.stderr
    with tempfile.TemporaryFile(mode="ab+", buffering=0) as file:
        before.flush()
        terminal = os.dup(_STDERR)  # never closed: a library may keep the stream until the end
        stream = os.fdopen(
            terminal,
            "w",
            buffering=1,
            encoding=before.encoding,
            errors="backslashreplace",
            closefd=False,
        )
        os.dup2(file.fileno(), _STDERR)
        sys.stderr, _descriptor_is_held = stream, True
        traces = not faulthandler.is_enabled()
        if traces:  # what compiled code says before it aborts is held: say at least where it was
            faulthandler.enable(terminal)
        try:
            yield file
        finally:
            if traces:
                faulthandler.disable()
            _descriptor_is_held = False
            stream.flush()
            os.dup2(terminal, _STDERR)
            sys.stderr = before


def _end_of(file: BinaryIO) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - SHOWN_BYTES))
    return file.read().decode(errors="replace")
