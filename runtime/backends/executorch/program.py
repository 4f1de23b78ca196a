"""Loading an ExecuTorch program, with errors that a user can read."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from retnet_edge.errors import InputError, one_line
from retnet_edge.runtime.session.threads import checked_threads


class _silent:  # noqa: N801 - reads as a statement
    """ExecuTorch logs to standard error by itself; what went wrong is said in the exception."""

    def __enter__(self) -> None:
        self._saved = os.dup(2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)


with _silent():
    import executorch.kernels.quantized  # noqa: F401 - registers the 8-bit embedding
    from executorch.extension.pybindings import portable_lib

_METHOD = "forward"


def set_threads(threads: int | None) -> None:
    """Let ExecuTorch compute on `threads` (None: as many as ONNX Runtime would get).

    The number belongs to the process. Raises InputError where it is below 1.
    """
    wanted = checked_threads(threads)
    with _silent():
        if portable_lib._threadpool_get_thread_count() != wanted:
            portable_lib._unsafe_reset_threadpool(wanted)


def load_program(path: Path, made_with: str, *, trace: bool = False) -> tuple[Any, Any]:
    """The program, its weights mapped from the file, and its method.

    made_with: the version of ExecuTorch that made it, by the manifest. trace: note when each
    operator runs (see `save_trace`), which takes time itself. Raises InputError where this
    ExecuTorch cannot load it.
    """
    try:
        with _silent():
            program = portable_lib._load_program(str(path), enable_etdump=trace)
            method = program.load_method(_METHOD)
    except Exception as error:  # the binding raises RuntimeError and its subclasses
        raise InputError(
            f"{path}: ExecuTorch {version('executorch')} cannot load the program, which version "
            f"{made_with} made: {one_line(error)}"
        ) from error
    return program, method


def save_trace(program: Any, path: Path) -> None:
    """Write what a program loaded with `trace` noted, as an ETDump file."""
    with _silent():
        program.write_etdump_result_to_file(str(path))
