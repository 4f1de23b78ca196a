"""libretnet (`native/`) through ctypes: the functions of native/retnet.h that Python needs."""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.session.threads import MOST_THREADS

STAGES = ("qkvg", "retention", "out", "ffn inner", "ffn out", "head", "norms, rounding")
"""What `Sequence.seconds` is about."""

NOT_BUILT = (
    "the native backend was not built when retnet-edge was installed, for want of a C compiler "
    "(Debian: apt install gcc, then pip install --force-reinstall --no-deps retnet-edge)"
)

_NO_MEMORY, _BAD_THREADS, _BUSY, _BAD_ARGUMENT = 1, 3, 5, 10  # statuses of native/retnet.h
_REFUSED = {
    _NO_MEMORY: "memory or threads ran out",
    _BAD_THREADS: f"the number of threads is not 1 to {MOST_THREADS}",
    4: "this CPU lacks them",
    _BUSY: "this session is in use by another thread, and runs one call at a time",
    6: "a call takes 1 to 4096 tokens",
    7: "a token's id is out of range",
    8: "the position is negative or too large to count on from",
    9: "states or logits are not those of the model",
}
_SKIP_WEIGHT_HASH = 1
_NAME = "retnet_edge.runtime.backends.native._native"


class _CError(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("offset", ctypes.c_uint64),
        ("message", ctypes.c_char * 256),
    )


class ModelInfo(ctypes.Structure):
    """`retnet_model_info`: the numbers of a model."""

    _fields_ = (
        ("layers", ctypes.c_int32),
        ("d_model", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("key_dim", ctypes.c_int32),
        ("value_dim", ctypes.c_int32),
        ("ffn_dim", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
        ("drawable", ctypes.c_int32),
        ("has_tokenizer", ctypes.c_int32),
        ("begin_token", ctypes.c_int32),
        ("weight_bytes", ctypes.c_uint64),
        ("step_bytes", ctypes.c_uint64),
        ("state_bytes", ctypes.c_uint64),
        ("fingerprint", ctypes.c_uint8 * 32),
    )


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec(_NAME)
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    pointer, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    long, size, error = ctypes.c_int64, ctypes.c_uint64, ctypes.POINTER(_CError)
    handle = ctypes.POINTER(pointer)
    for name, arguments, result in (
        ("model_open", (text, number, handle, error), number),
        ("model_open_parts", (pointer, size, pointer, size, pointer, handle, error), number),
        ("model_close", (pointer,), None),
        ("model_get_info", (pointer, ctypes.POINTER(ModelInfo)), None),
        ("model_section", (pointer, number, ctypes.POINTER(size)), pointer),
        ("session_new", (pointer, number, text, handle, error), number),
        ("session_free", (pointer,), number),
        ("session_reset", (pointer,), number),
        ("session_feed", (pointer, pointer, long), number),
        ("session_logits", (pointer,), pointer),
        ("session_kernels", (pointer,), text),
        ("session_seconds", (pointer, pointer), number),
        ("session_get_states", (pointer, pointer, size), number),
        ("session_set_states", (pointer, pointer, size, long, pointer, number), number),
    ):
        function = getattr(library, f"retnet_{name}")
        function.argtypes, function.restype = arguments, result
    return library


_LIBRARY = _load()


def native_available() -> bool:
    """True where the library was built when the package was installed."""
    return _LIBRARY is not None


def _library() -> ctypes.CDLL:
    if _LIBRARY is None:
        raise InputError(NOT_BUILT)
    return _LIBRARY


class Model:
    """An opened model; sessions on it keep it alive."""

    def __init__(self, handle: ctypes.c_void_p, keepalive: object = None) -> None:
        self.handle = handle
        self.keepalive = keepalive
        weakref.finalize(self, _library().retnet_model_close, handle)
        self.info = ModelInfo()
        _library().retnet_model_get_info(handle, self.info)

    @classmethod
    def open(cls, path: Path, *, skip_weight_hash: bool = False) -> Model:
        """Map a packed file. Raises InputError naming it, and what C refuses of it."""
        flags = _SKIP_WEIGHT_HASH if skip_weight_hash else 0
        handle, error = ctypes.c_void_p(), _CError()
        raw = str(path).encode(errors="surrogateescape")
        if _library().retnet_model_open(raw, flags, ctypes.byref(handle), error):
            raise InputError(_where(str(path), _sentence(error)))
        return cls(handle)

    @classmethod
    def of_parts(
        cls, table: bytes, weights: NDArray[np.uint8], fingerprint: str, where: str
    ) -> Model:
        """A model of a table and weights, which it keeps alive. Raises InputError naming `where`
        and what C refuses of the table."""
        handle, error = ctypes.c_void_p(), _CError()
        aligned = np.frombuffer(table + bytes(-len(table) % 8), dtype=np.uint64).copy()
        digest = (ctypes.c_uint8 * 32)(*bytes.fromhex(fingerprint))
        if _library().retnet_model_open_parts(
            aligned.ctypes.data,
            len(table),
            weights.ctypes.data,
            weights.size,
            digest,
            ctypes.byref(handle),
            error,
        ):
            raise InputError(f"{where}: {_sentence(error).removeprefix('model table: ')}")
        return cls(handle, (aligned, weights))

    def section(self, kind: int) -> bytes | None:
        """A copy of a section of a packed file, None where it has none; kinds: native/format.h."""
        size = ctypes.c_uint64()
        found = _library().retnet_model_section(self.handle, kind, ctypes.byref(size))
        return None if found is None else ctypes.string_at(found, size.value)


def _sentence(error: _CError) -> str:
    return bytes(error.message).decode(errors="replace")


def _where(path: str, sentence: str) -> str:
    return sentence if path in sentence else f"{path}: {sentence}"


class Sequence:
    """A session of the library: states, logits, threads."""

    def __init__(self, model: Model, threads: int, kernels: str | None = None) -> None:
        """`kernels`: "avx512", "avx2", "neon", "plain" … (None: the best that this CPU has).

        Raises InputError where the CPU has no such kernels, or memory or threads ran out.
        """
        library = _library()
        name = None if kernels is None else kernels.encode()
        handle, error = ctypes.c_void_p(), _CError()
        status = library.retnet_session_new(
            model.handle, threads, name, ctypes.byref(handle), error
        )
        if status:
            raise InputError(
                f"the native backend could not start {threads} threads with the kernels "
                f"{kernels or 'of this CPU'}: {_REFUSED.get(status, f'status {status}')}"
            )
        self.model, self._handle = model, handle
        weakref.finalize(self, library.retnet_session_free, handle)
        self._feed = library.retnet_session_feed

    @property
    def kernels(self) -> str:
        """The name of the instruction set that runs."""
        name: bytes = _library().retnet_session_kernels(self._handle)
        return name.decode()

    def feed(self, tokens: int, count: int) -> None:
        """Feed `count` int32 tokens that lie at an address.

        Raises MemoryError, and InputError where another thread's call is under way or C refuses
        this one; nothing was changed then.
        """
        if status := self._feed(self._handle, tokens, count):
            if status == _NO_MEMORY:
                raise MemoryError(f"the native backend found no memory for {count} tokens")
            raise _refused(status)

    def logits(self) -> NDArray[np.float32]:
        """A read-only view [vocabulary] of the library's own, once something was fed."""
        found = _library().retnet_session_logits(self._handle)
        assert found is not None
        count = self.model.info.vocab_size
        buffer: Any = (ctypes.c_float * count).from_address(found)
        buffer.sequence = self  # which the memory goes with
        view = np.frombuffer(buffer, dtype=np.float32)
        view.flags.writeable = False
        return view

    def states(self) -> NDArray[np.float32]:
        """A copy of the states [layers, heads, key_dim, value_dim]."""
        info = self.model.info
        shape = (info.layers, info.heads, info.key_dim, info.value_dim)
        found = np.empty(shape, dtype=np.float32)
        _check(_library().retnet_session_get_states(self._handle, found.ctypes.data, found.nbytes))
        return found

    def load(self, states: NDArray[np.float32], position: int, seen: Collection[int]) -> None:
        """Copy states [layers, heads, key_dim, value_dim] in. Raises InputError as `feed` does."""
        whole = np.ascontiguousarray(states, dtype=np.float32)
        ids = np.fromiter(seen, dtype=np.int32, count=len(seen))
        _check(
            _library().retnet_session_set_states(
                self._handle, whole.ctypes.data, whole.nbytes, position, ids.ctypes.data, ids.size
            )
        )

    def reset(self) -> None:
        """Back to position 0 and the empty state."""
        _check(_library().retnet_session_reset(self._handle))

    def seconds(self) -> NDArray[np.float64]:
        """Seconds that all calls have spent in each of `STAGES`.

        Raises InputError while another thread's call is under way.
        """
        found = np.zeros(len(STAGES))
        _check(_library().retnet_session_seconds(self._handle, found.ctypes.data))
        return found


def _check(status: int) -> None:
    if status:
        raise _refused(status)


def _refused(status: int) -> InputError:
    return InputError(f"the native backend: {_REFUSED.get(status, f'status {status}')}")
