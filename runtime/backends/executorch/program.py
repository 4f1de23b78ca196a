"""Loading an ExecuTorch program, with errors that a user can read."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from retnet_edge.errors import InputError, one_line
from retnet_edge.quiet import compiled_code_hushed
from retnet_edge.runtime.backends.executorch.checked import METHOD, check_program
from retnet_edge.runtime.session.threads import checked_threads

# ExecuTorch logs to standard error by itself; what went wrong is said in the exception.
with compiled_code_hushed():
    import executorch.kernels.quantized  # noqa: F401 - registers the 8-bit embedding
    from executorch.extension.pybindings import portable_lib


def set_threads(threads: int | None) -> None:
    """Let ExecuTorch compute on `threads` (None: as many as ONNX Runtime would get).

    The number belongs to the process. Raises InputError where it is below 1.
    """
    wanted = checked_threads(threads)
    with compiled_code_hushed():
        if portable_lib._threadpool_get_thread_count() != wanted:
            portable_lib._unsafe_reset_threadpool(wanted)


def load_program(path: Path, made_with: str, *, trace: bool = False) -> tuple[Any, Any]:
    """The program, its weights mapped from the file, and its method.

    made_with: the version of ExecuTorch that made it, by the manifest. trace: note when each
    operator runs (see `save_trace`), which takes time itself. Raises InputError where this
    ExecuTorch cannot load it.
    """
    try:
        check_program(path)
        with compiled_code_hushed():
            program = portable_lib._load_program(
                str(path),
                enable_etdump=trace,
                program_verification=portable_lib.Verification.InternalConsistency,
            )
            method = program.load_method(METHOD)
    except InputError:
        raise
    except Exception as error:  # the binding raises RuntimeError and its subclasses
        raise InputError(
            f"{path}: ExecuTorch {version('executorch')} cannot load the program, which version "
            f"{made_with} made: {one_line(error)}"
        ) from error
    return program, method


def save_trace(program: Any, path: Path) -> None:
    """Write what a program loaded with `trace` noted, as an ETDump file."""
    with compiled_code_hushed():
        program.write_etdump_result_to_file(str(path))
