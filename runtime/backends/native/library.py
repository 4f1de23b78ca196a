"""The compiled library of the native backend (`native/`), through ctypes.

The structures repeat native/retnet.h, and so do the order of `STAGES` and the statuses.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.session.threads import MOST_THREADS

STAGES = ("qkvg", "retention", "out", "ffn inner", "ffn out", "head", "norms, rounding")
"""What `Engine.seconds` is about."""

NOT_BUILT = (
    "the native backend was not built when retnet-edge was installed, for want of a C compiler "
    "(Debian: apt install gcc, then pip install --force-reinstall --no-deps retnet-edge)"
)

_NO_MEMORY, _BAD_PLAN = 1, 2  # and below: statuses of native/retnet.h
_REFUSED = {
    _NO_MEMORY: "memory or threads ran out",
    3: f"the number of threads is not 1 to {MOST_THREADS}",
    4: "this CPU lacks them",
    5: "this session is in use by another thread, and runs one call at a time",
    6: "a call takes 1 to 4096 tokens",
    7: "a token's id is out of range",
    8: "the position is negative or too large to count on from",
    9: "states or logits are not those of the model",
}

_NAME = "retnet_edge.runtime.backends.native._native"


class CBytes(ctypes.Structure):
    """Memory and its size."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_uint64))


class CPlace(ctypes.Structure):
    """Where a tensor lies; see native/retnet.h."""

    _fields_ = (("offset", ctypes.c_uint64), ("size", ctypes.c_uint64), ("own", ctypes.c_int64))


class CMatrix(ctypes.Structure):
    """A weight matrix; see `MatrixPlan` in native/retnet.h."""

    _fields_ = (
        ("codes", CPlace),
        ("scales", CPlace),
        ("zeros", CPlace),
        ("rows", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("half_scales", ctypes.c_int32),
        ("own_zeros", ctypes.c_int32),
    )


class CLayer(ctypes.Structure):
    """A layer; see `LayerPlan` in native/retnet.h."""

    _fields_ = (
        ("retention_norm", CPlace),
        ("head_norm", CPlace),
        ("ffn_norm", CPlace),
        ("qkvg", CMatrix),
        ("out", CMatrix),
        ("inner", CMatrix),
        ("down", CMatrix),
    )


class CModel(ctypes.Structure):
    """A model; see `ModelPlan` in native/retnet.h."""

    _fields_ = (
        ("weights", CBytes),
        ("own", CBytes),
        ("gammas", ctypes.c_void_p),
        ("frequencies", ctypes.c_void_p),
        ("layers", ctypes.POINTER(CLayer)),
        ("embedding", CMatrix),
        ("head", CMatrix),
        ("final_norm", CPlace),
        ("layer_count", ctypes.c_int32),
        ("d_model", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("key_dim", ctypes.c_int32),
        ("value_dim", ctypes.c_int32),
        ("ffn_dim", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
        ("layer_plans", ctypes.c_int32),
        ("gamma_count", ctypes.c_int32),
        ("frequency_count", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("gelu", ctypes.c_int32),
        ("eps_z_n", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
        ("head_norm_eps", ctypes.c_float),
    )


class CFloats(ctypes.Structure):
    """float32 numbers and how many they are."""

    _fields_ = (("data", ctypes.c_void_p), ("count", ctypes.c_uint64))


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec(_NAME)
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    pointer, number, long, count = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_uint64
    library.retnet_new.argtypes = [
        ctypes.POINTER(CModel), number, ctypes.c_char_p, ctypes.POINTER(pointer), ctypes.c_char_p,
        ctypes.c_size_t,
    ]  # fmt: skip
    library.retnet_free.argtypes = [pointer]
    library.retnet_run.argtypes = [
        pointer, pointer, long, long, ctypes.POINTER(CFloats), ctypes.c_int32, pointer, count,
    ]  # fmt: skip
    library.retnet_kernels.argtypes = [pointer]
    library.retnet_kernels.restype = ctypes.c_char_p
    library.retnet_seconds.argtypes = [pointer, pointer]
    return library


_LIBRARY = _load()


def native_available() -> bool:
    """True where the library was built when the package was installed."""
    return _LIBRARY is not None


class Engine:
    """A model that runs; `keepalive` is what its pointers point to."""

    def __init__(
        self,
        model: CModel,
        threads: int,
        keepalive: object,
        *,
        where: str,
        kernels: str | None = None,
    ) -> None:
        """`kernels`: "avx512", "avx2", "neon", "plain" (None: the best that this CPU has).

        Raises InputError naming `where` and what C refuses of the model; and where the library is
        not there, the CPU has no such kernels, or memory or threads ran out.
        """
        if _LIBRARY is None:
            raise InputError(NOT_BUILT)
        name = None if kernels is None else kernels.encode()
        handle, sentence = ctypes.c_void_p(), ctypes.create_string_buffer(256)
        status = _LIBRARY.retnet_new(
            ctypes.byref(model), threads, name, ctypes.byref(handle), sentence, len(sentence)
        )
        if status == _BAD_PLAN:
            raise InputError(f"{where}: {sentence.value.decode()}")
        if status:
            raise InputError(
                f"the native backend could not start {threads} threads with the kernels "
                f"{kernels or 'of this CPU'}: {_REFUSED.get(status, f'status {status}')}"
            )
        self._handle = handle
        self._keep = keepalive
        weakref.finalize(self, _LIBRARY.retnet_free, handle)
        self._run = _LIBRARY.retnet_run

    @property
    def kernels(self) -> str:
        """The name of the instruction set that runs."""
        assert _LIBRARY is not None
        name: bytes = _LIBRARY.retnet_kernels(self._handle)
        return name.decode()

    def run(
        self, tokens: int, count: int, position: int, states: Any, logits: int, vocab: int
    ) -> None:
        """Feed `count` tokens. tokens and logits are addresses (int64 [count], float32 [vocab]),
        states what `floats` makes of each layer's state, updated in place.

        Raises MemoryError, and InputError where another thread's call is under way or C refuses
        this one; nothing was changed then.
        """
        status = self._run(
            self._handle, tokens, count, position, states, len(states), logits, vocab
        )
        if status == _NO_MEMORY:
            raise MemoryError(f"the native backend found no memory for {count} tokens")
        if status:
            raise InputError(f"the native backend: {_REFUSED.get(status, f'status {status}')}")

    def seconds(self) -> NDArray[np.float64]:
        """Seconds that all calls have spent in each of `STAGES`.

        Raises InputError while another thread's call is under way.
        """
        assert _LIBRARY is not None
        found = np.zeros(len(STAGES))
        if status := _LIBRARY.retnet_seconds(self._handle, found.ctypes.data):
            raise InputError(f"the native backend: {_REFUSED[status]}")
        return found


def floats(arrays: Sequence[NDArray[np.float32]]) -> Any:
    """The arrays' addresses and sizes as C takes them."""
    return (CFloats * len(arrays))(*[CFloats(array.ctypes.data, array.size) for array in arrays])
