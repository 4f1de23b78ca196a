"""Damage to an ONNX graph on the level of protobuf's wire format.

A message is read into a list of fields by a table of which fields hold messages; a field is
changed, repeated, renumbered or given a length that lies, and all lengths around it are written
anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from fuzz.damage.documents import STRINGS
from fuzz.damage.plain import damage_bytes

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Field number -> kind of message, for what onnx.proto nests.
CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "Opset", 14: "Entry", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 9: "Opset", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 13: "Value", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Value": {2: "Type"},
    "Type": {1: "TensorType"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Dim"},
    "Tensor": {13: "Entry"},
}
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    10,
    16,
    127,
    128,
    255,
    2**20,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
)
MOST_BYTES = 4 << 20
"""Of what is repeated."""
HUGE = (2**63, 2**64 - 1, 2**64 - 2, 2**69)
LOCATIONS = ("", "/etc/passwd", "../weights.bin", "weights.bin", "*/_ORT_MEM_ADDR_/*", "a\0b")
OPERATORS = (
    *("MatMul", "Add", "Loop", "If", "Scan", "Reshape", "Expand", "Tile", "Range", "Pad", "Gather"),
    *("MatMulNBits", "LinearAttention", "Resize", "ConstantOfShape", "SequenceAt", "Identity"),
)


class GarbledError(ValueError):
    """The bytes are no message."""


@dataclass
class Field:
    """A field; `value` is an integer, the bytes of a payload, or a nested message."""

    number: int
    wire: int
    value: int | bytes | list[Field]
    kind: str = ""
    lie: int = field(default=0)


def read(raw: bytes, kind: str) -> list[Field]:
    """The fields of a message of that kind. Raises GarbledError."""
    found, at = [], 0
    children = CHILDREN.get(kind, {})
    while at < len(raw):
        tag, at = _varint(raw, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(raw, at)
            found.append(Field(number, wire, value))
            continue
        if wire == BYTES:
            size, at = _varint(raw, at)
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(wire, 1 << 60)
        if at + size > len(raw):
            raise GarbledError(f"a field of {size} bytes at {at}")
        payload = raw[at : at + size]
        at += size
        child = children.get(number, "") if wire == BYTES else ""
        found.append(Field(number, wire, read(payload, child) if child else payload, child))
    return found


def write(fields: list[Field]) -> bytes:
    """The message, with lengths that fit but where a field lies."""
    pieces = []
    for f in fields:
        pieces.append(_encoded(f.number << 3 | f.wire))
        if isinstance(f.value, int):
            pieces.append(_encoded(f.value))
            continue
        payload = write(f.value) if isinstance(f.value, list) else f.value
        if f.wire == BYTES:
            pieces.append(_encoded(max(0, len(payload) + f.lie)))
        pieces.append(payload)
    return b"".join(pieces)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise GarbledError("cut off")
        value |= (raw[at] & 0x7F) << shift
        at += 1
        if raw[at - 1] < 0x80:
            return value, at
    raise GarbledError("an integer without end")


def _encoded(value: int) -> bytes:
    value &= (1 << 70) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def damage_graph(raw: bytes, rng: Random) -> bytes:
    """A damaged ONNX model: one to three fields of it changed."""
    try:
        tree = read(raw, "Model")
    except GarbledError:
        return damage_bytes(raw, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _damage(tree, rng)
    return write(tree)


def _pick(tree: list[Field], rng: Random) -> tuple[list[Field], int] | None:
    """A field by a walk from the root."""
    box = tree
    while box:
        kinds = sorted({(f.number, f.wire) for f in box})
        chosen = rng.choice(kinds)
        at = rng.choice([i for i, f in enumerate(box) if (f.number, f.wire) == chosen])
        value = box[at].value
        if not isinstance(value, list) or not value or rng.random() < 0.15:
            return box, at
        box = value
    return None


def _damage(tree: list[Field], rng: Random) -> None:
    slot = _pick(tree, rng)
    if slot is None:
        return
    box, at = slot
    f = box[at]
    way = rng.randrange(12)
    if way == 0:
        del box[at]
    elif way == 1:
        # copies are bytes: what is changed later is changed in one of them
        copy = Field(f.number, f.wire, write(f.value) if isinstance(f.value, list) else f.value)
        most = MOST_BYTES // max(1, len(write([copy])))
        box[at:at] = [copy] * min(most, rng.choice((1, 1, 2, 100, 5000)))
    elif way == 2:
        f.number = rng.choice((1, 2, 5, 7, 8, 9, 13, 14, 20, 25, rng.randrange(1, 30), 2**28))
    elif way == 3:
        f.wire, f.value = rng.choice(((VARINT, rng.choice(NUMBERS)), (FIXED64, bytes(8)), (3, b"")))
    elif way == 4:
        f.lie = rng.choice((-1, 1, 100, 2**20, 2**31, 2**40, -(2**20)))
    elif way == 5:
        other = _pick(tree, rng)
        if other is not None:
            value = other[0][other[1]].value
            f.wire = other[0][other[1]].wire
            f.value = write(value) if isinstance(value, list) else value
    elif way == 6:
        empty = Field(rng.choice((1, 5, 11, 12)), BYTES, b"")
        box += [empty] * rng.choice((1, 1000, 200_000))
    else:
        _damage_value(f, rng)


def _damage_value(f: Field, rng: Random) -> None:
    if isinstance(f.value, int):
        near = (f.value + 1, f.value - 1, f.value * 2, f.value // 2)
        f.value = abs(rng.choice((rng.choice(near), rng.choice(NUMBERS), rng.choice(HUGE))))
    elif isinstance(f.value, list):
        rng.shuffle(f.value)
    elif f.value.isascii() and f.value.decode().isprintable():
        f.value = _other_text(f.value.decode(), rng).encode("utf-8", "surrogatepass")
    else:
        f.value = damage_bytes(f.value, rng)


def _other_text(text: str, rng: Random) -> str:
    if text.isdigit():
        return rng.choice(
            (str(int(text) + 4), "0", "-1", str(2**62), str(2**64), "9" * 30, "1e3", " 1")
        )
    pool = rng.choice((LOCATIONS, OPERATORS, STRINGS))
    return rng.choice((text[:-1], text + "_0", text.upper(), rng.choice(pool)))
