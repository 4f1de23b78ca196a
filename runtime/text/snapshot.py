"""A sequence's state as a value: keep it, go back to it, continue it in another session, store it.

A state file (version 3; native/format.h has it for C) is

    b"RETSTAT3"  header  dtypes  tokens  seen  states  SHA-256

dtypes uint32 [states], padded to 8 bytes, tokens int32 [n], seen int32 [m] (ids that occurred,
ascending) and the states in the manifest's order, all little-endian; the SHA-256 is of every byte
before it. The header names the bundle by its fingerprint (`Bundle.fingerprint`): a state means
nothing to other weights. Versions 1 and 2, b"RETSTATE" and a header of JSON, are read too.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec
import numpy as np

from retnet_edge.atomic import replace_file
from retnet_edge.errors import InputError
from retnet_edge.files import Sha256
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import DTYPE_BYTES, Dtype
from retnet_edge.runtime.session.protocol import (
    MAX_POSITION,
    Session,
    State,
    check_states,
    state_shape,
)

_MAGIC, _OLD_MAGIC = b"RETSTAT3", b"RETSTATE"
_VERSION, _OLD_VERSIONS = 3, (1, 2)
_HEADER = struct.Struct("<8sIIqQQ32s")
_DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int64", "int8", "uint8")
_LENGTH_BYTES = 4
_HEADER_BYTES = 1 << 20
_DIGEST_BYTES = 32
_MOST_IDS = 2**31
_MOST_STATES = 4096


class _OldHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of versions 1 and 2."""

    version: int
    bundle: Sha256
    position: Annotated[int, msgspec.Meta(ge=0, le=MAX_POSITION)]
    tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    dtypes: tuple[Dtype, ...]
    seen: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0


class _Header(NamedTuple):
    """What a file says before its ids: `start` are the bytes that say it."""

    start: bytes
    bundle: str
    position: int
    tokens: int
    seen: int
    dtypes: tuple[Dtype, ...] | None
    """None: those of the manifest, which older files leave to it."""


@dataclass(frozen=True)
class Snapshot:
    """Copies of a sequence's states [1, …] after `position` tokens.

    tokens: the ids that the sequence consists of, where whoever took the snapshot knows them; they
    are what a `PromptCache` matches prompts with. seen: the ids that occur in it, each once, those
    of `tokens` always among them; what a repetition penalty counts.
    """

    position: int
    states: tuple[State, ...]
    tokens: tuple[int, ...] = ()
    seen: frozenset[int] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        """What is known to have been fed was seen."""
        object.__setattr__(self, "seen", frozenset(self.seen).union(self.tokens))

    @classmethod
    def of(cls, session: Session, tokens: Sequence[int] = ()) -> Snapshot:
        """The session's state at this moment."""
        states = tuple(session.states())
        return cls(session.position, states, tuple(tokens), frozenset(session.seen))

    def restore(self, session: Session) -> None:
        """Make `session`, any one of the same bundle, go on from here.

        Raises InputError where the states are not those of its bundle.
        """
        session.load_states(self.states, self.position, self.seen)

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
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        len(specs),
        snapshot.position,
        len(snapshot.tokens),
        len(snapshot.seen),
        bytes.fromhex(bundle.fingerprint),
    )
    parts = [header, _packed_dtypes([spec.dtype for spec in specs])]
    parts.append(np.asarray(snapshot.tokens, dtype="<i4").tobytes())
    parts.append(np.array(sorted(snapshot.seen), dtype="<i4").tobytes())
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
        header = _read_header(path, file)
        if not bundle.has_fingerprint(header.bundle):
            raise InputError(f"{path} is a state of another bundle than {bundle.path}")
        specs = bundle.manifest.states
        dtypes = tuple(spec.dtype for spec in specs)
        if header.dtypes not in (None, dtypes):
            raise InputError(
                f"{path}: its states are {', '.join(header.dtypes or ())}; this bundle's are "
                f"{', '.join(dtypes)}"
            )
        shapes = [state_shape(spec, header.position) for spec in specs]
        sizes = [
            math.prod(shape) * DTYPE_BYTES[spec.dtype]
            for shape, spec in zip(shapes, specs, strict=True)
        ]
        before = len(header.start)
        expected = before + 4 * (header.tokens + header.seen) + sum(sizes) + _DIGEST_BYTES
        if (size := path.stat().st_size) != expected:
            raise InputError(f"{path} has {size} bytes; a state file like it has {expected}")
        content = header.start + file.read()
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise InputError(f"{path} was changed since it was written: its checksum does not fit")
    listed = header.tokens + header.seen
    ids = np.frombuffer(content, dtype="<i4", count=listed, offset=before)
    vocabulary = bundle.manifest.model.vocab_size
    for bad in ids[(ids < 0) | (ids >= vocabulary)][:1]:
        raise InputError(
            f"{path}: token id {bad} is out of range: this model has ids 0 to {vocabulary - 1}"
        )
    tokens, seen = ids[: header.tokens].tolist(), ids[header.tokens :].tolist()
    states, at = [], before + ids.nbytes
    for spec, shape, nbytes in zip(bundle.manifest.states, shapes, sizes, strict=True):
        stored = np.dtype(spec.dtype).newbyteorder("<")
        flat = np.frombuffer(content, dtype=stored, count=math.prod(shape), offset=at)
        states.append(flat.reshape(shape).astype(spec.dtype))
        at += nbytes
    return Snapshot(header.position, tuple(states), tuple(tokens), frozenset(seen))


def _packed_dtypes(dtypes: Sequence[Dtype]) -> bytes:
    """Their numbers as uint32, and 4 bytes more where they are an odd number of."""
    raw = struct.pack(f"<{len(dtypes)}I", *map(_DTYPES.index, dtypes))
    return raw + bytes(-len(raw) % 8)


def _read_header(path: Path, file: BinaryIO) -> _Header:
    """The header of a state file of any version. Raises InputError naming `path`."""
    magic = file.read(len(_MAGIC))
    if magic == _OLD_MAGIC:
        return _read_old_header(path, file)
    if magic != _MAGIC:
        raise InputError(f"{path} is not a state file: it does not begin with {_MAGIC!r}")
    raw = magic + file.read(_HEADER.size - len(magic))
    if len(raw) < _HEADER.size:
        raise InputError(f"{path}: the header of the state file was cut off")
    _, version, states, position, tokens, seen, bundle = _HEADER.unpack(raw)
    if version != _VERSION:
        raise _unknown_version(path, version)
    for name, value, most in (
        ("position", position, MAX_POSITION),
        ("number of tokens", tokens, _MOST_IDS),
        ("number of ids that were seen", seen, _MOST_IDS),
        ("number of states", states, _MOST_STATES),
    ):
        if not 0 <= value <= most:
            raise InputError(
                f"{path}: the header of the state file was changed: its {name} is {value}; "
                f"allowed is 0 to {most}"
            )
    size = (states + 1) // 2 * 8
    listed = file.read(size)
    numbers = struct.unpack_from(f"<{states}I", listed) if len(listed) == size else ()
    if len(numbers) != states or any(number >= len(_DTYPES) for number in numbers):
        raise InputError(f"{path}: the header of the state file was changed: odd dtypes")
    dtypes = tuple(_DTYPES[number] for number in numbers)
    return _Header(raw + listed, bundle.hex(), position, tokens, seen, dtypes)


def _read_old_header(path: Path, file: BinaryIO) -> _Header:
    """After b"RETSTATE": a length and JSON."""
    start = file.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    raw = file.read(length) if length <= _HEADER_BYTES else b""
    try:
        header = msgspec.json.decode(raw, type=_OldHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: the header of the state file was changed: {error}") from None
    if header.version not in _OLD_VERSIONS:
        raise _unknown_version(path, header.version)
    return _Header(
        _OLD_MAGIC + start + raw, header.bundle, header.position, header.tokens, header.seen, None
    )


def _unknown_version(path: Path, version: int) -> InputError:
    return InputError(
        f"{path}: state files of version {version} are not known; this version of retnet-edge "
        f"reads 1 to {_VERSION}"
    )
