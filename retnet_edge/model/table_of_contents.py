"""The header of a safetensors file, read without its weights and before any library maps it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Annotated

import msgspec

from retnet_edge.errors import InputError
from retnet_edge.files import open_regular

_MOST_BYTES = 100 << 20  # safetensors' own limit
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"

_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**60)]
_Length = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
_Shape = Annotated[tuple[_Length, ...], msgspec.Meta(max_length=64)]  # torch has no more dimensions


class StoredTensor(msgspec.Struct, frozen=True):
    """Where a tensor lies: `data_offsets` are bytes after the header, its first and past its last;
    `dtype` is safetensors' word, such as "F32"."""

    dtype: str
    shape: _Shape
    data_offsets: tuple[_Offset, _Offset]


def read_table_of_contents(path: Path) -> dict[str, StoredTensor]:
    """Each tensor of a safetensors file by name, as its header says, in the header's order.

    Raises InputError naming the file where it cannot be opened, is no regular file (a link to one
    is), or is another kind of file; or where its size is not what the header says, so that a sparse
    or truncated file is never mapped.
    """
    try:
        with open_regular(path, links=True) as file:
            whole = os.fstat(file.fileno()).st_size
            start = file.read(_LENGTH.size)
            size = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
            raw = file.read(size) if 0 < size <= _MOST_BYTES else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not raw or len(raw) != size:
        raise InputError(f"{_unread(path)}: it is truncated or another kind of file")
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{_unread(path)}: its header: {error}") from error
    entries.pop(_METADATA, None)
    decoder = msgspec.json.Decoder(StoredTensor)
    tensors = {}
    for name, entry in entries.items():
        try:
            tensors[name] = decoder.decode(entry)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{_unread(path)}: the tensor {name!r}: {error}") from error
    wanted = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if (held := whole - _LENGTH.size - size) != wanted:
        raise InputError(
            f"{_unread(path)}: it holds {held} bytes of weights, and its header says {wanted}"
        )
    return tensors


def _unread(path: Path) -> str:
    return f"{path}: cannot be read as safetensors"
