"""SentencePiece's table of characters, which the library reads without looking where.

Four bytes say how long a double array is (units of four bytes each); the texts that characters
become follow, with a zero byte after each. A unit has the label of the byte that leads to it, the
way to its children (an offset that is XORed with its place), and whether it ends a character.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

_UNIT = 4  # bytes
_LABELS = np.arange(1, 256, dtype=np.int64)  # a zero byte ends the search


def check_charsmap(encoded: str) -> None:
    """Raises ValueError, with a sentence, where a lookup could leave the table."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not base64 ({error})") from error
    size = int.from_bytes(raw[:_UNIT], "little")
    if len(raw) < 2 * _UNIT or size < _UNIT or size % _UNIT or _UNIT + size > len(raw):
        raise ValueError(f"has {len(raw)} bytes, which do not hold an array of {size}")
    units = np.frombuffer(raw, "<u4", count=size // _UNIT, offset=_UNIT).astype(np.int64)
    texts = raw[_UNIT + size :]
    try:
        texts.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"holds texts that are not UTF-8 (byte {error.start})") from error
    starts = _begins(texts)
    seen = np.zeros(len(units), dtype=bool)
    # what is reached is a place and the offset that it is XORed with, a node's children's
    nodes = _offsets(units[:1])
    while len(nodes):
        if nodes.max() >= len(units) or (nodes[:, None] ^ _LABELS).max() >= len(units):
            raise ValueError(f"leads beyond its {len(units)} units")
        nodes = nodes[~seen[nodes]]
        seen[nodes] = True
        places = (nodes[:, None] ^ _LABELS).ravel()
        labels = np.tile(_LABELS, len(nodes))
        taken = (units[places] & (1 << 31 | 0xFF)) == labels
        found = units[places[taken]]
        nodes = places[taken] ^ _offsets(found)
        if len(nodes) and nodes.max() >= len(units):
            raise ValueError(f"leads beyond its {len(units)} units")
        leaves = nodes[(found >> 8 & 1).astype(bool)]
        values = units[leaves] & (1 << 31) - 1
        if not np.isin(values, starts).all():
            raise ValueError(f"names a text beyond its {len(texts)} bytes")
        nodes = np.unique(nodes)


def _offsets(units: NDArray[np.int64]) -> NDArray[np.int64]:
    return (units >> 10) << ((units & (1 << 9)) >> 6)


def _begins(texts: bytes) -> NDArray[np.int64]:
    """Where a character begins, and the end."""
    raw = np.frombuffer(texts, np.uint8)
    return np.append(np.flatnonzero((raw & 0xC0) != 0x80), len(raw))
