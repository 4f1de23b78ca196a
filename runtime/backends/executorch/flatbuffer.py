"""Reading a flatbuffer whose every byte may be somebody's choice: nothing outside it is touched.

ExecuTorch and XNNPACK follow the offsets of a file as they stand there. This walks them first, by a
schema that is written down as text, and gives values of Python, so that what the numbers mean can
be judged before a library computes with them (`checked.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Mapping[str, str]]
Table = dict[str, Any]

_SCALARS = {
    "bool": "?",
    "i8": "b",
    "u8": "B",
    "i16": "h",
    "u16": "H",
    "i32": "i",
    "u32": "I",
    "i64": "q",
    "u64": "Q",
    "f32": "f",
    "f64": "d",
}
MOST_BYTES = 4 << 20
"""Of one flatbuffer: that of edge-15m has 80 kB, its weights being outside."""
_TIMES = 3
"""So often its bytes may be read: several offsets may lead to one place."""
TYPE = "type"
"""The key of a table that a union led to, for its name or its kind."""


class DamagedError(ValueError):
    """What is wrong with the bytes, as the end of a sentence."""


def schema(text: str) -> Schema:
    """A schema, one table a line: `Name field:type field:type …`, in the order of its fields; an
    indented line goes on with the one before, within a union where it begins with a bar.

    A type is a scalar (bool, i8 … u64, f32, f64), `str`, a table's name, or one of these in
    brackets for a vector; `A|B|kind=A` is a union, which takes two fields of the format.
    """
    found: dict[str, dict[str, str]] = {}
    for line in text.replace("\n    |", "|").replace("\n    ", " ").split("\n"):
        name, *fields = line.split() or [""]
        if name:
            found[name] = {key: kind for key, _, kind in (f.partition(":") for f in fields)}
    return found


class Reader:
    """One flatbuffer: `raw` from its first byte to its last."""

    def __init__(self, raw: memoryview, tables: Schema) -> None:
        self._raw = raw
        self._tables = tables
        self._left = _TIMES * len(raw)

    def root(self, name: str, identifier: bytes) -> Table:
        """The root table, everything below it read. Raises DamagedError."""
        if len(self._raw) > MOST_BYTES:
            raise DamagedError(f"it has {len(self._raw)} bytes where {MOST_BYTES} are the most")
        if len(self._raw) < 8 or bytes(self._raw[4:8]) != identifier:
            raise DamagedError(f"it does not begin as a file of the kind {identifier.decode()}")
        return self._table(name, self._offset(0))

    def _scalar(self, kind: str, at: int) -> Any:
        code = "<" + _SCALARS[kind]
        if at % struct.calcsize(code) or not 0 <= at <= len(self._raw) - struct.calcsize(code):
            raise DamagedError(f"an offset leads to byte {at} of {len(self._raw)}")
        return struct.unpack_from(code, self._raw, at)[0]

    def _read(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise DamagedError("its offsets lead to the same places over and over")

    def _offset(self, at: int) -> int:
        """Where an offset that stands at `at` leads."""
        return at + int(self._scalar("u32", at))

    def _table(self, name: str, at: int) -> Table:
        vtable = at - int(self._scalar("i32", at))
        length, size = int(self._scalar("u16", vtable)), int(self._scalar("u16", vtable + 2))
        if length < 4 or length % 2 or vtable + length > len(self._raw):
            raise DamagedError(f"the list of fields of a {name} at byte {vtable} is no such list")
        if size < 4 or at + size > len(self._raw):
            raise DamagedError(f"the {name} at byte {at} does not end within the file")
        self._read(size)
        places = struct.unpack_from(f"<{length // 2 - 2}H", self._raw, vtable + 4)

        def place(index: int, width: int) -> int:
            found = places[index] if index < len(places) else 0
            if found and not 4 <= found <= size - width:
                raise DamagedError(f"a field of the {name} at byte {at} lies outside it")
            return at + found if found else 0

        table: Table = {}
        index = 0
        for field, kind in self._tables[name].items():
            if "|" in kind:
                tag, where = place(index, 1), place(index + 1, 4)
                which = int(self._scalar("u8", tag)) if tag else 0
                index += 2
                names = kind.split("|")
                if which > len(names) or bool(which) != bool(where):
                    raise DamagedError(f"the {name} at byte {at} has a {field} of no known kind")
                table[field] = None
                if which:
                    kind_of, _, name_of = names[which - 1].rpartition("=")
                    table[field] = self._table(name_of, self._offset(where))
                    table[field][TYPE] = kind_of or name_of
                continue
            if kind in _SCALARS:
                where = place(index, struct.calcsize("<" + _SCALARS[kind]))
                table[field] = self._scalar(kind, where) if where else 0
            else:
                where = place(index, 4)
                table[field] = self._beyond(kind, self._offset(where)) if where else None
            index += 1
        return table

    def _beyond(self, kind: str, at: int) -> Any:
        """What an offset to `at` leads to."""
        if kind == "str":
            length = int(self._scalar("u32", at))
            if length >= len(self._raw) - at - 4 or self._raw[at + 4 + length]:
                raise DamagedError(f"the text at byte {at} does not end within the file")
            self._read(length)
            try:
                return str(self._raw[at + 4 : at + 4 + length], "utf-8")
            except UnicodeDecodeError:
                raise DamagedError(f"the text at byte {at} is not UTF-8") from None
        if not kind.startswith("["):
            return self._table(kind, at)
        inner = kind[1:-1]
        length = int(self._scalar("u32", at))
        code = _SCALARS.get(inner, "I")
        width, start = struct.calcsize("<" + code), at + 4
        if length > (len(self._raw) - start) // width:
            raise DamagedError(f"the list at byte {at} does not end within the file")
        if length and start % width:
            raise DamagedError(f"the list at byte {at} begins where none can")
        self._read(length * width)
        found = struct.unpack_from(f"<{length}{code}", self._raw, start)
        if inner in _SCALARS:
            return found
        return [self._beyond(inner, start + 4 * n + place) for n, place in enumerate(found)]
