"""Which external data an ONNX graph asks for, read from its bytes without onnx or a backend.

A walker over protobuf's wire format that knows the messages of onnx.proto, nested graphs of
attributes, functions, training graphs and sparse tensors included, and counts them. Bytes and texts
are skipped by their length, so weights stored inside the graph are not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retnet_edge.errors import InputError
from retnet_edge.files import open_regular

# Field number -> message type: all messages of onnx.proto, so that what a parser will build out of
# a graph is counted before one sees it.
_ENTRY, _TYPE, _META = "Entry", "Type", {16: "Entry"}
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "OperatorSet", 14: _ENTRY, 20: "Training", 25: "Function"},
    "OperatorSet": {},
    "Training": {1: "Graph", 2: "Graph", 3: _ENTRY, 4: _ENTRY},
    "Function": {
        7: "Node",
        9: "OperatorSet",
        11: "Attribute",
        12: "ValueInfo",
        14: _ENTRY,
    },
    "Graph": {
        1: "Node",
        5: "Tensor",
        11: "ValueInfo",
        12: "ValueInfo",
        13: "ValueInfo",
        14: "TensorAnnotation",
        15: "SparseTensor",
        **_META,
    },
    "Node": {5: "Attribute", 9: _ENTRY},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        14: _TYPE,
        15: _TYPE,
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {3: "Segment", 13: _ENTRY, **_META},
    "Segment": {},
    "ValueInfo": {2: _TYPE, 4: _ENTRY},
    "TensorAnnotation": {2: _ENTRY},
    _ENTRY: {},
    _TYPE: {
        1: "TensorType",
        4: "ElementType",
        5: "MapType",
        8: "TensorType",
        9: "ElementType",
    },
    "TensorType": {2: "Shape"},
    "ElementType": {1: _TYPE},
    "MapType": {2: _TYPE},
    "Shape": {1: "Dimension"},
    "Dimension": {},
}
# Fields that are bytes, text or numbers as wide as in the file: a parser keeps them as they are.
# Every other one, an integer a byte at the worst, counts as that many fields.
_FLAT: dict[str, frozenset[int]] = {
    "Model": frozenset({2, 3, 4, 6}),
    "OperatorSet": frozenset({1}),
    "Function": frozenset({1, 4, 5, 6, 8, 10, 13}),
    "Graph": frozenset({2, 10}),
    "Node": frozenset({1, 2, 3, 4, 6, 7, 8}),
    "Attribute": frozenset({1, 4, 7, 9, 13, 21}),
    "Tensor": frozenset({4, 6, 8, 9, 10, 12}),
    "ValueInfo": frozenset({1, 3}),
    "TensorAnnotation": frozenset({1}),
    _ENTRY: frozenset({1, 2}),
    _TYPE: frozenset({6}),
    "Dimension": frozenset({2, 3}),
}
_MOST_FIELDS = 1_000_000
_MOST_MESSAGES = 150_000
_MODEL_GRAPH = 7
_TENSOR_NAME = 8
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100  # protobuf's own limit on nested messages

_Buffer = mmap.mmap | bytes


@dataclass(frozen=True)
class ExternalData:
    """Where the bytes of the tensor `name` lie: `location` as written in the graph, `offset` and
    `length` in bytes (`length` None: up to the end of the file).
    """

    name: str
    location: str
    offset: int
    length: int | None


class _GarbledError(ValueError):
    """The bytes are not a protobuf message of the expected kind."""


def external_data(path: Path) -> tuple[ExternalData, ...]:
    """Every distinct external tensor of the ONNX graph at `path`, in the order of the file.

    Raises InputError where the file is truncated, is not an ONNX graph, nests messages deeper than
    100, or has more fields or messages than a graph of a bundle can need: parsers take a hundred
    times as much memory for an empty one as the file does.
    """
    scan = _Scan()
    try:
        with (
            open_regular(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer,
        ):
            found = tuple(dict.fromkeys(scan.walk(buffer, 0, len(buffer), "Model", 0)))
    except InputError:
        raise
    except ValueError as error:  # mmap refuses an empty file with a ValueError
        raise InputError(f"{path} is truncated or not an ONNX graph: {error}") from error
    if not scan.has_graph:
        raise InputError(f"{path} is truncated or not an ONNX graph: it holds no graph")
    return found


class _Scan:
    """One walk over a file, and how much it has seen."""

    def __init__(self) -> None:
        self.fields = self.messages = 0
        self.has_graph = False

    def walk(
        self, buffer: _Buffer, start: int, end: int, kind: str, depth: int
    ) -> Iterator[ExternalData]:
        """External tensors of the message of type `kind` in buffer[start:end]."""
        if depth > _MAX_DEPTH:
            raise _GarbledError(f"messages are nested deeper than {_MAX_DEPTH}")
        self.messages += 1
        children, flat = _CHILDREN[kind], _FLAT.get(kind, frozenset())
        for number, wire, first, last in _fields(buffer, start, end):
            child = children.get(number)
            self.fields += 1 if wire != _BYTES or child or number in flat else 1 + last - first
            if self.fields > _MOST_FIELDS or self.messages > _MOST_MESSAGES:
                raise _GarbledError(
                    f"it has more than {_MOST_MESSAGES} messages or {_MOST_FIELDS} fields"
                )
            if child is None:
                continue
            if wire != _BYTES:
                raise _GarbledError(
                    f"field {number} of a {kind} has wire type {wire} at byte {first}"
                )
            self.has_graph |= kind == "Model" and number == _MODEL_GRAPH
            yield from self.walk(buffer, first, last, child, depth + 1)
        if kind == "Tensor":
            yield from _tensor(buffer, start, end)


def _tensor(buffer: _Buffer, start: int, end: int) -> Iterator[ExternalData]:
    """The tensor's external data, if it has any."""
    entries: dict[str, str] = {}
    external = False
    name = ""
    for number, wire, first, last in _fields(buffer, start, end):
        if number == _TENSOR_NAME and wire == _BYTES:
            name = bytes(buffer[first:last]).decode("utf-8")
        elif number == _TENSOR_EXTERNAL_DATA and wire == _BYTES:
            key, value = _entry(buffer, first, last)
            # Which of two equal keys counts is the backend's choice, so there may not be two.
            if key in entries:
                raise _GarbledError(f"a tensor gives its external {key!r} twice")
            entries[key] = value
        elif number == _TENSOR_DATA_LOCATION and wire == _VARINT:
            external = _varint(buffer, first, last)[0] == 1
    if not (entries or external):
        return
    if "location" not in entries:
        raise _GarbledError("a tensor is external but names no location")
    offset, length = entries.get("offset", "0"), entries.get("length")
    for value in (offset, length or "0"):
        if not (value.isascii() and value.isdigit() and len(value) <= 19):
            raise _GarbledError(f"a tensor's external offset or length is {value!r}")
    yield ExternalData(name, entries["location"], int(offset), int(length) if length else None)


def _entry(buffer: _Buffer, start: int, end: int) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    texts = {_ENTRY_KEY: "", _ENTRY_VALUE: ""}
    for number, wire, first, last in _fields(buffer, start, end):
        if number in texts and wire == _BYTES:
            texts[number] = bytes(buffer[first:last]).decode("utf-8")
    return texts[_ENTRY_KEY], texts[_ENTRY_VALUE]


def _fields(buffer: _Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, first byte, one past the last byte) of each field's payload."""
    at = start
    while at < end:
        tag, at = _varint(buffer, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise _GarbledError(f"field number 0 at byte {at}")
        first = at
        if wire == _VARINT:
            at = _varint(buffer, at, end)[1]
        elif wire == _FIXED64:
            at += 8
        elif wire == _FIXED32:
            at += 4
        elif wire == _BYTES:
            size, first = _varint(buffer, at, end)
            at = first + size
        else:
            raise _GarbledError(f"wire type {wire} at byte {at}")
        if at > end:
            raise _GarbledError(f"a field of {at - first} bytes at byte {first} ends past its end")
        yield number, wire, first, at


def _varint(buffer: _Buffer, at: int, end: int) -> tuple[int, int]:
    """(value, first byte after it) of the base-128 integer at `at`."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _GarbledError(f"an integer is cut off at byte {at}")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _GarbledError(f"an integer of more than 10 bytes at byte {at}")
