"""A sequence's state as a value: keep it, go back to it, continue it in another session, store it.

A state file is

    b"RETSTATE"  header length (4 bytes, little-endian)  header (JSON)  tokens  states  SHA-256

tokens int32 [n] and the states in the manifest's order, all little-endian; the SHA-256 is of every
byte before it. The header names the bundle by its fingerprint (`Bundle.fingerprint`): a state means
nothing to other weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from retnet_edge.atomic import replace_file
from retnet_edge.errors import InputError
from retnet_edge.files import Sha256
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import DTYPE_BYTES, Dtype
from retnet_edge.runtime.session.protocol import Session, State, check_states, state_shape

_MAGIC = b"RETSTATE"
_VERSION = 1
_LENGTH_BYTES = 4
_HEADER_BYTES = 1 << 20
_DIGEST_BYTES = 32


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    bundle: Sha256
    position: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    dtypes: tuple[Dtype, ...]


@dataclass(frozen=True)
class Snapshot:
    """Copies of a sequence's states [1, …] after `position` tokens.

    tokens: the ids that the sequence consists of, where whoever took the snapshot knows them; they
    are what a `PromptCache` matches prompts with.
    """

    position: int
    states: tuple[State, ...]
    tokens: tuple[int, ...] = ()

    @classmethod
    def of(cls, session: Session, tokens: Sequence[int] = ()) -> Snapshot:
        """The session's state at this moment."""
        return cls(session.position, tuple(session.states()), tuple(tokens))

    def restore(self, session: Session) -> None:
        """Make `session`, any one of the same bundle, go on from here.

        Raises InputError where the states are not those of its bundle.
        """
        session.load_states(self.states, self.position)

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return sum(state.nbytes for state in self.states)


def save_snapshot(snapshot: Snapshot, bundle: Bundle, path: str | Path) -> None:
    """Write a state file, whole or not at all. Raises InputError where `path`'s folder is none."""
    path = Path(path)
    check_state_folder(path)
    specs = bundle.manifest.states
    states = check_states(snapshot.states, snapshot.position, specs)
    header = msgspec.json.encode(
        _Header(
            _VERSION,
            bundle.fingerprint,
            snapshot.position,
            len(snapshot.tokens),
            tuple(spec.dtype for spec in specs),
        )
    )
    parts = [_MAGIC, len(header).to_bytes(_LENGTH_BYTES, "little"), header]
    parts.append(np.asarray(snapshot.tokens, dtype="<i4").tobytes())
    parts += [state.astype(state.dtype.newbyteorder("<")).tobytes() for state in states]
    content = b"".join(parts)
    replace_file(path, content + hashlib.sha256(content).digest())


def check_state_folder(path: Path) -> None:
    """Raise InputError where no state file can be written at `path`."""
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.absolute().parent} is not a directory: {path.name} goes into it")


def load_snapshot(path: str | Path, bundle: Bundle) -> Snapshot:
    """Read a state file that `save_snapshot` wrote for this bundle.

    Raises InputError, one sentence that names the file, where it is missing, is no state file, was
    cut off or changed, or belongs to another bundle.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: a state file was expected")
    with path.open("rb") as file:
        start = file.read(len(_MAGIC) + _LENGTH_BYTES)
        if not start.startswith(_MAGIC):
            raise InputError(f"{path} is not a state file: it does not begin with {_MAGIC!r}")
        length = int.from_bytes(start[len(_MAGIC) :], "little")
        raw = file.read(length) if length <= _HEADER_BYTES else b""
        try:
            header = msgspec.json.decode(raw, type=_Header)
        except msgspec.DecodeError as error:
            raise InputError(f"{path}: the header of the state file was changed: {error}") from None
        if header.version != _VERSION:
            raise InputError(
                f"{path}: state files of version {header.version} are not known; this version of "
                f"retnet-edge reads {_VERSION}"
            )
        if not bundle.has_fingerprint(header.bundle):
            raise InputError(f"{path} is a state of another bundle than {bundle.path}")
        shapes = [state_shape(spec, header.position) for spec in bundle.manifest.states]
        sizes = [
            math.prod(shape) * DTYPE_BYTES[spec.dtype]
            for shape, spec in zip(shapes, bundle.manifest.states, strict=True)
        ]
        before = len(start) + length
        expected = before + 4 * header.tokens + sum(sizes) + _DIGEST_BYTES
        if (size := path.stat().st_size) != expected:
            raise InputError(f"{path} has {size} bytes; a state file like it has {expected}")
        content = start + raw + file.read()
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise InputError(f"{path} was changed since it was written: its checksum does not fit")
    tokens = np.frombuffer(content, dtype="<i4", count=header.tokens, offset=before)
    states, at = [], before + tokens.nbytes
    for spec, shape, nbytes in zip(bundle.manifest.states, shapes, sizes, strict=True):
        stored = np.dtype(spec.dtype).newbyteorder("<")
        flat = np.frombuffer(content, dtype=stored, count=math.prod(shape), offset=at)
        states.append(flat.reshape(shape).astype(spec.dtype))
        at += nbytes
    return Snapshot(header.position, tuple(states), tuple(tokens.tolist()))
