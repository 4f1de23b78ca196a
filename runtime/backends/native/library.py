"""The compiled library of the native backend (`native/`), through ctypes.

The structures repeat native/model.h, and the order of `STAGES` an enumeration of native/retnet.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError

STAGES = ("qkvg", "retention", "out", "ffn inner", "ffn out", "head", "norms, rounding")
"""What `Engine.seconds` is about."""

NOT_BUILT = (
    "the native backend was not built when retnet-edge was installed, for want of a C compiler "
    "(Debian: apt install gcc, then pip install --force-reinstall --no-deps retnet-edge)"
)

_NAME = "retnet_edge.runtime.backends.native._native"


class CMatrix(ctypes.Structure):
    """A weight matrix; see native/model.h."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("half_scales", ctypes.c_int32),
    )


class CLayer(ctypes.Structure):
    """A layer; see native/model.h."""

    _fields_ = (
        ("retention_norm", ctypes.c_void_p),
        ("head_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
        ("qkvg", CMatrix),
        ("out", CMatrix),
        ("inner", CMatrix),
        ("down", CMatrix),
    )


class CModel(ctypes.Structure):
    """A model; see native/model.h."""

    _fields_ = (
        ("layer_count", ctypes.c_int32),
        ("d_model", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("key_dim", ctypes.c_int32),
        ("value_dim", ctypes.c_int32),
        ("ffn_dim", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("gelu", ctypes.c_int32),
        ("eps_z_n", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
        ("head_norm_eps", ctypes.c_float),
        ("final_norm", ctypes.c_void_p),
        ("gammas", ctypes.c_void_p),
        ("frequencies", ctypes.c_void_p),
        ("embedding", CMatrix),
        ("head", CMatrix),
        ("layers", ctypes.POINTER(CLayer)),
    )


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec(_NAME)
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.retnet_new.argtypes = [ctypes.POINTER(CModel), number, ctypes.c_char_p]
    library.retnet_new.restype = pointer
    library.retnet_free.argtypes = [pointer]
    library.retnet_free.restype = None
    library.retnet_run.argtypes = [pointer, pointer, number, ctypes.c_int64, pointer, pointer]
    library.retnet_kernels.argtypes = [pointer]
    library.retnet_kernels.restype = ctypes.c_char_p
    library.retnet_seconds.argtypes = [pointer, pointer]
    library.retnet_seconds.restype = None
    return library


_LIBRARY = _load()


def native_available() -> bool:
    """True where the library was built when the package was installed."""
    return _LIBRARY is not None


class Engine:
    """A model that runs; `keepalive` is what its pointers point to."""

    def __init__(
        self, model: CModel, threads: int, keepalive: object, *, kernels: str | None = None
    ) -> None:
        """`kernels`: "avx512", "avx2", "neon", "plain" (None: the best that this CPU has).

        Raises InputError where the library is not there, the CPU has no such kernels, or memory or
        threads ran out.
        """
        if _LIBRARY is None:
            raise InputError(NOT_BUILT)
        name = None if kernels is None else kernels.encode()
        self._handle = _LIBRARY.retnet_new(ctypes.byref(model), threads, name)
        if not self._handle:
            raise InputError(
                f"the native backend could not start {threads} threads with the kernels "
                f"{kernels or 'of this CPU'}: this CPU lacks them, or memory or threads ran out"
            )
        self._keep = keepalive
        weakref.finalize(self, _LIBRARY.retnet_free, self._handle)
        self._run = _LIBRARY.retnet_run

    @property
    def kernels(self) -> str:
        """The name of the instruction set that runs."""
        assert _LIBRARY is not None
        name: bytes = _LIBRARY.retnet_kernels(self._handle)
        return name.decode()

    def run(self, tokens: int, count: int, position: int, states: object, logits: int) -> None:
        """Feed `count` tokens. tokens and logits are addresses (int64 [count], float32 [vocab]),
        states an array of those of each layer's state, updated in place.

        Raises MemoryError, before anything was changed.
        """
        if self._run(self._handle, tokens, count, position, states, logits):
            raise MemoryError(f"the native backend found no memory for {count} tokens")

    def seconds(self) -> NDArray[np.float64]:
        """Seconds that all calls have spent in each of `STAGES`."""
        assert _LIBRARY is not None
        found = np.zeros(len(STAGES))
        _LIBRARY.retnet_seconds(self._handle, found.ctypes.data)
        return found


def addresses(arrays: Sequence[NDArray[np.float32]]) -> object:
    """The arrays' addresses as C takes them."""
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])
