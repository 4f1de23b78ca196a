"""Which backend runs a bundle, and a session on it; a backend is imported when it is chosen."""

from __future__ import annotations

from importlib.metadata import version

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Backend
from retnet_edge.runtime.session.protocol import Session


def open_session(bundle: Bundle, threads: int | None = None, backend: str | None = None) -> Session:
    """A session on the bundle's first backend, or on `backend`.

    `threads`: how many compute (None: one a free core, at most 4). Raises InputError where the
    bundle has no step graph for the backend, the backend is not installed or cannot load it.
    """
    chosen = choose_backend(bundle, backend)
    if any(state.growing_axis is not None for state in bundle.manifest.states):
        from retnet_edge.runtime.backends.ort.kv_session import KvSession

        return KvSession(bundle, threads=threads)
    if chosen == "executorch":
        try:
            from retnet_edge.runtime.backends.executorch.session import ExecuTorchSession
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            raise InputError(
                f"{bundle.path}: the backend executorch needs {missing}, which is not installed: "
                "pip install 'retnet-edge[executorch]'"
            ) from error

        return ExecuTorchSession(bundle, threads=threads)
    if chosen == "native":
        from retnet_edge.runtime.backends.native.session import NativeSession

        return NativeSession(bundle, threads=threads)
    from retnet_edge.runtime.backends.ort.session import OrtSession

    return OrtSession(bundle, threads=threads)


def choose_backend(bundle: Bundle, backend: str | None) -> Backend:
    """`backend`, or the first one that the bundle has graphs for.

    Raises InputError naming those that it has.
    """
    has = bundle.manifest.backends
    for known in has:
        if backend in (None, known):
            return known
    raise InputError(f"{bundle.path} has no graphs for {backend}; it has: {', '.join(has)}")


def backend_version(backend: Backend) -> str:
    """The version of what runs a backend; the native one is part of this package."""
    return version("retnet-edge" if backend == "native" else backend)
