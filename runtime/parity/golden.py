"""golden.npz: the float64 reference's own logits and states, replayed through a session.

Two runs of token ids, and what the reference computes on them: `near` from position 0 and the
empty state, `far` from position 1,000,000 and the states that `near` ends with. `export` writes
the file (`export/golden.py`); every runtime can replay it, without the checkpoint.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Manifest
from retnet_edge.runtime.bundle.packed import GOLDEN, PackedBundle
from retnet_edge.runtime.bundle.state_values import rounded_states, state_values, value_shapes
from retnet_edge.runtime.parity.probes import FAR_POSITION
from retnet_edge.runtime.parity.replay import run_steps
from retnet_edge.runtime.session.protocol import Session, concrete_shape

GOLDEN_FILE = "golden.npz"
NEAR_TOKENS = 128
LOGIT_ROWS = 16  # of the last tokens of a run

_PACKED = struct.Struct("<IIIIq")
_HEADER_BYTES = 4096  # of an array in the file, at most

Arrays = dict[str, NDArray[Any]]


class GoldenReplay(msgspec.Struct, frozen=True):
    """Largest absolute logit error of either run; `relative_state_error` is the states' after
    `near`: the largest error of a state over the largest magnitude in it, the worst of them.
    """

    near_logit_error: float
    far_logit_error: float
    relative_state_error: float


def golden_shapes(manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every array of the file."""
    logits = (LOGIT_ROWS, manifest.model.vocab_size)
    return {
        "near_tokens": ("int64", (NEAR_TOKENS,)),
        "near_logits": ("float32", logits),
        "far_tokens": ("int64", (LOGIT_ROWS,)),
        "far_logits": ("float32", logits),
        **{
            f"near_state_{i}": ("float32", concrete_shape(shape, NEAR_TOKENS))
            for i, shape in enumerate(value_shapes(manifest.states))
        },
    }


def replay_golden(bundle: Bundle, session: Session) -> GoldenReplay:
    """Step through both runs of the bundle's golden.npz (states of constant size only).

    Raises InputError where there are none, or not the arrays of `golden_shapes`.
    """
    arrays = golden_arrays(bundle)
    if arrays is None:
        raise InputError(f"{bundle.path} has no golden replay: it cannot be replayed")
    count = len(value_shapes(bundle.manifest.states))
    wanted = [arrays[f"near_state_{i}"] for i in range(count)]
    session.reset()
    near = run_steps(session, arrays["near_tokens"])[-LOGIT_ROWS:]
    states = session.states()
    session.load_states(rounded_states(wanted, like=states), FAR_POSITION)
    far = run_steps(session, arrays["far_tokens"])
    return GoldenReplay(
        near_logit_error=_error(near, arrays["near_logits"]),
        far_logit_error=_error(far, arrays["far_logits"]),
        relative_state_error=float(
            np.max([*map(_relative_error, state_values(states), wanted)], initial=0.0)
        ),
    )


def has_golden(bundle: Bundle) -> bool:
    """Whether the bundle has a golden replay; nothing of it is read."""
    if isinstance(bundle, PackedBundle):
        return GOLDEN in bundle.sections
    return GOLDEN_FILE in bundle.manifest.files


def golden_arrays(bundle: Bundle) -> Arrays | None:
    """The bundle's own arrays, None where it has none. Raises InputError as `read_golden` does."""
    if not has_golden(bundle):
        return None
    if isinstance(bundle, PackedBundle):
        return _unpacked(bundle.section(GOLDEN) or b"", bundle)
    return read_golden(bundle.file(GOLDEN_FILE), bundle.manifest)


def _unpacked(raw: bytes, bundle: Bundle) -> Arrays:
    """Of a packed file's section (native/format.h, retnet_golden_header)."""
    shapes = golden_shapes(bundle.manifest)
    order = ("near_tokens", "far_tokens", "near_logits", "far_logits")
    names = [*order, *(name for name in shapes if name not in order)]
    size = _PACKED.size + sum(4 * math.prod(shapes[name][1]) for name in names)
    header = (1, NEAR_TOKENS, LOGIT_ROWS, LOGIT_ROWS, FAR_POSITION)
    if len(raw) != size or _PACKED.unpack_from(raw) != header:
        raise InputError(
            f"{bundle.path}: its golden replay has {len(raw)} bytes, or another header; this "
            f"model's has {size}"
        )
    arrays, at = Arrays(), _PACKED.size
    for name in names:
        dtype, shape = shapes[name]
        stored = "<i4" if dtype == "int64" else "<f4"
        found = np.frombuffer(raw, stored, count=math.prod(shape), offset=at)
        arrays[name] = found.astype(dtype).reshape(shape)
        at += found.nbytes
    return arrays


def read_golden(path: Path, manifest: Manifest) -> Arrays:
    """The arrays of `golden_shapes`. Raises InputError naming the file and what is wrong with it.

    No more bytes are read than those arrays take, and no Python objects.
    """
    arrays: Arrays = {}
    for name, (dtype, shape) in golden_shapes(manifest).items():
        size = np.dtype(dtype).itemsize * math.prod(shape)
        found = _read_array(path, name, _HEADER_BYTES + size)
        if (found.dtype, found.shape) != (np.dtype(dtype), shape):
            raise InputError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}; this bundle's is {dtype} "
                f"{list(shape)}"
            )
        arrays[name] = found
    return arrays


def _read_array(path: Path, name: str, largest: int) -> NDArray[Any]:
    """An array of a .npz file, of `largest` bytes at most. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            if (size := archive.getinfo(f"{name}.npy").file_size) > largest:
                raise ValueError(f"it has {size} bytes; at most {largest} are allowed")
            return np.lib.format.read_array(file, allow_pickle=False)
    except KeyError as error:
        raise InputError(f"{path} lacks the array {name}") from error
    except Exception as error:  # of many kinds, from the archive and from the array's header
        why = " ".join(str(error).split())
        raise InputError(f"{path}: the array {name} cannot be read: {why}") from error


def _error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - wanted).max())


def _relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    error, scale = _error(found, wanted), float(np.abs(wanted).max())
    if scale == 0:
        return 0.0 if error == 0 else math.inf
    return error / scale
