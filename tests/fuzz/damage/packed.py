"""Damage to model tables, packed files and state files: the records of native/format.h."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from random import Random

from fuzz.damage.bundles import damage_manifest, mended_digest
from fuzz.damage.documents import damage_json
from fuzz.damage.plain import damage_bytes, damage_numbers

HEADER, SECTION = struct.Struct("<8sIIQII32s32s"), struct.Struct("<IIQQQ32s")
TABLE, WEIGHTS, TOKENIZER, GENERATION, GOLDEN, MANIFEST, TOKENIZER_JSON = 1, 2, 3, 4, 6, 9, 10
TABLE_HEADER, LAYER, MATRIX, NORMS = 328, 456, 96, 72
STATE_HEADER = struct.Struct("<8sIIqQQ32s")
MENDED_SHARE = 0.9
Record = list[int]
"""Kind, version, offset, bytes and what is reserved, of a section."""


def odd(was: int, rng: Random) -> int:
    """A number at an edge, or beside the one that stood there."""
    edges = (0, 1, was + 1, was - 1, was * 2, was // 2, was + 64, was - 64, was + 4, was ^ 1 << 31)
    return rng.choice((*edges, 2 ** rng.randrange(64), 2 ** rng.randrange(64) - 1, 2**64 - 1))


def change_word(data: bytearray, at: int, size: int, rng: Random) -> None:
    """Another number in `size` bytes at `at`, where there are so many."""
    if 0 <= at <= len(data) - size:
        was = int.from_bytes(data[at : at + size], "little")
        data[at : at + size] = (odd(was, rng) % 2 ** (8 * size)).to_bytes(size, "little")


def damage_table(raw: bytes, rng: Random) -> bytes:
    """The header's numbers, places, matrices that agree with themselves, decays, own bytes."""
    data = bytearray(raw)
    if len(data) < TABLE_HEADER + LAYER:
        return damage_bytes(raw, rng)
    layers, gammas = struct.unpack_from("<2Q", data, 72)
    for _ in range(rng.choice((1, 1, 2))):
        layer = min(layers, len(data) - LAYER) + LAYER * rng.randrange(2)
        matrix = rng.choice((136, 232, *(layer + NORMS + i * MATRIX for i in range(4))))
        way = rng.randrange(10)
        if way < 2:
            change_word(data, 4 * rng.randrange(16), 4, rng)
        elif way == 2:
            change_word(data, 64 + 8 * rng.randrange(9), 8, rng)
        elif way == 3:
            change_word(data, layer + 8 * rng.randrange(9), 8, rng)
        elif way == 4:
            change_word(data, matrix + 8 * rng.randrange(9), 8, rng)
        elif way == 5:
            change_word(data, matrix + NORMS + 4 * rng.randrange(6), 4, rng)
        elif way == 6:
            other_blocks(data, matrix, rng)
        elif way == 7 and gammas <= len(data) - 8:
            number = rng.choice((0.0, -1.0, 1.0, 1.5, 1e-320, float("nan"), float("inf"), 0.5))
            struct.pack_into("<d", data, gammas + 8 * rng.randrange(2), number)
        elif way == 8:
            return damage_numbers(bytes(data), rng)
        else:
            return damage_bytes(bytes(data), rng)
    return bytes(data)


def other_blocks(data: bytearray, at: int, rng: Random) -> None:
    """Other blocks or bits of a matrix, and as many bytes as they take, from somewhere."""
    if not 0 <= at <= len(data) - MATRIX:
        return
    rows, inputs = struct.unpack_from("<2I", data, at + NORMS)
    bits, block = rng.choice((4, 8)), rng.choice((32, 64, 128, 256))
    halves, zeros = rng.randrange(2), rng.randrange(2)
    blocks = -(-inputs // block)
    sizes = (
        rows * blocks * block * bits // 8,
        rows * blocks * (2 if halves else 4),
        rows * -(-blocks * bits // 8),
    )
    places = (struct.pack("<QQq", 4 * rng.randrange(64), size % 2**64, 0) for size in sizes)
    numbers = struct.pack("<2I4i", rows, inputs, bits, block, halves, zeros)
    data[at : at + MATRIX] = b"".join(places) + numbers


def damage_generation(raw: bytes, rng: Random) -> bytes:
    """Versions, counts, ids, options; fewer or more ends."""
    data = bytearray(raw)
    if rng.random() < 0.3:
        at = 24 + 8 * rng.randrange(4)
        data[at : at + 8] = struct.pack("<d", rng.choice((0.0, -1.0, 1.5, 1e300, float("nan"))))
    elif rng.random() < 0.7:
        change_word(data, 4 * rng.randrange(9), 4, rng)
    else:
        return damage_bytes(raw, rng)
    return bytes(data)


INSIDE: dict[int, Callable[[bytes, Random], bytes]] = {
    TABLE: damage_table,
    WEIGHTS: damage_numbers,
    GENERATION: damage_generation,
    GOLDEN: damage_numbers,
    MANIFEST: damage_manifest,
    TOKENIZER_JSON: damage_json,
}


def damage_packed(raw: bytes, rng: Random) -> bytes:
    """A section's content with all that says its size or hash, a record, the header, or bytes."""
    if len(raw) < HEADER.size or rng.random() < 0.05:
        return damage_bytes(raw, rng)
    header = list(HEADER.unpack_from(raw))
    records, contents = sections_of(raw)
    way = rng.randrange(10)
    if way < 6 and records:
        number = rng.randrange(len(records))
        kind, old = records[number][0], contents[number]
        contents[number] = INSIDE.get(kind, damage_bytes)(old, rng)
        if rng.random() < MENDED_SHARE:
            mend_manifest(records, contents, {old: contents[number]})
        return joined(header, records, contents)
    if way == 6 and records:  # one less, one twice, another order
        order = list(range(len(records)))
        number = order.pop(rng.randrange(len(order)))
        order[:0] = rng.choice(([number], [number, number], [], []))
        return joined(header, [records[at] for at in order], [contents[at] for at in order])
    data = bytearray(raw)
    if way < 9 and records:
        at = HEADER.size + SECTION.size * rng.randrange(len(records))
        offset, size = rng.choice(((0, 4), (4, 4), (8, 8), (16, 8), (24, 8)))
        change_word(data, at + offset, size, rng)
    else:
        offset, size = rng.choice(((8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 8)))
        change_word(data, offset, size, rng)
        if rng.random() < 0.3:  # cut, and in most cases the header knows of it
            data = data[: rng.randrange(rng.choice((200, 1000, len(data))))]
            if rng.random() < 0.8 and len(data) >= HEADER.size:
                count = rng.randrange(20)
                struct.pack_into("<I", data, 12, HEADER.size + SECTION.size * count)
                struct.pack_into("<QI", data, 16, len(data), count)
    return mended(bytes(data)) if rng.random() < MENDED_SHARE else bytes(data)


def sections_of(raw: bytes) -> tuple[list[Record], list[bytes]]:
    """Records and contents, in the order of the file, of a whole one."""
    count = min(int.from_bytes(raw[24:28], "little"), (len(raw) - HEADER.size) // SECTION.size)
    found = SECTION.iter_unpack(raw[HEADER.size : HEADER.size + count * SECTION.size])
    records = [list(record[:5]) for record in found]
    return records, [raw[at : at + size] for _, _, at, size, _ in records]


def joined(header: list[bytes | int], records: list[Record], contents: list[bytes]) -> bytes:
    """A file of these sections, each where it has to lie, with hashes that fit."""
    start = HEADER.size + SECTION.size * len(records)
    body, listed = bytearray(), bytearray()
    for (kind, version, _, _, reserved), content in zip(records, contents, strict=True):
        align = 16384 if kind == WEIGHTS else 64
        body += bytes(-(start + len(body)) % align)
        at = start + len(body)
        listed += SECTION.pack(kind, version, at, len(content), reserved, bytes(32))
        body += content
    header[2:5] = start, start + len(body), len(records)
    return mended(HEADER.pack(*header[:-1], bytes(32)) + listed + body)


def mended(raw: bytes) -> bytes:
    """With the hashes of what stands in the file, as far as its records can be read."""
    data = bytearray(raw)
    if len(data) < HEADER.size:
        return raw
    count = min(int.from_bytes(data[24:28], "little"), (len(data) - HEADER.size) // SECTION.size)
    end = HEADER.size + SECTION.size * count
    for at in range(HEADER.size, end, SECTION.size):
        _, _, offset, size, _, _ = SECTION.unpack_from(data, at)
        data[at + 32 : at + 64] = hashlib.sha256(data[offset : offset + size]).digest()
    said = HEADER.size + SECTION.size * int.from_bytes(data[24:28], "little")  # all that there is
    data[64:96] = bytes(32)
    data[64:96] = hashlib.sha256(data[:said]).digest()
    return bytes(data)


def mend_manifest(
    records: list[Record], contents: list[bytes], changed: dict[bytes, bytes]
) -> None:
    """What the manifest says of a section's size and hash, and its hash of itself."""
    kinds = [record[0] for record in records]
    if MANIFEST not in kinds:
        return
    at = kinds.index(MANIFEST)
    for old, new in changed.items():
        before, after = (hashlib.sha256(part).hexdigest().encode() for part in (old, new))
        entry = rb'("size"\s*:\s*)%d(\s*,\s*"sha256"\s*:\s*")%s' % (len(old), before)
        fitting = rb"\g<1>%d\g<2>%s" % (len(new), after)
        contents[at] = re.sub(entry, fitting, contents[at]).replace(before, after)
    contents[at] = mended_digest(contents[at])


def damage_record_state(raw: bytes, rng: Random) -> bytes:
    """A state file of version 3: its header, ids, numbers or lengths, its digest made to fit."""
    data, way = bytearray(raw[:-32]), rng.randrange(8)
    counts = STATE_HEADER.unpack_from(raw)[4:6]
    ids = STATE_HEADER.size + -(-STATE_HEADER.unpack_from(raw)[2] // 2) * 8
    if way < 3:
        offset, size = rng.choice(((8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (72, 4)))
        change_word(data, offset, size, rng)
    elif way == 3:
        change_word(data, ids + 4 * rng.randrange(max(1, sum(counts))), 4, rng)
    elif way == 4:  # an id more or fewer, and their number
        field, more = rng.randrange(2), rng.random() < 0.5
        struct.pack_into("<Q", data, 24 + 8 * field, max(0, counts[field] + (1 if more else -1)))
        data[ids : ids if more else ids + 4] = struct.pack("<i", 1) if more else b""
    elif way == 5:
        data[ids:] = damage_numbers(bytes(data[ids:]), rng)
    else:
        return damage_bytes(raw, rng)
    digest = hashlib.sha256(data).digest()
    return bytes(data) + (digest if rng.random() < 0.95 else rng.randbytes(32))
