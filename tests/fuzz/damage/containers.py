"""Damage to files of a header and a body: safetensors, state files, .npz and torch's zip files."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
import zipfile
from random import Random

from fuzz.damage.documents import NUMBERS, Pairs, Raw, damage_json, parse, write
from fuzz.damage.packed import damage_record_state
from fuzz.damage.plain import damage_bytes, damage_numbers

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "X", "")
DESCRIPTIONS = (
    "<f8",
    "<f4",
    ">f4",
    "<i8",
    "<f2",
    "|O",
    "|S9",
    "<U1",
    "|V4",
    "<c16",
    "<m8[s]",
    "f",
    "",
)
SHAPES = (
    "()",
    "(0,)",
    "(1,)",
    "(-1,)",
    "(4294967296,)",
    f"({2**62}, 4)",
    "(1,)*9",
    "[1]",
    "(1.5,)",
)


def damage_safetensors(raw: bytes, rng: Random) -> bytes:
    """The header's tensors, places and length, or the numbers behind it."""
    length = int.from_bytes(raw[:8], "little")
    header, body = raw[8 : 8 + length], raw[8 + length :]
    way = rng.randrange(10)
    if way < 3:
        header = damage_json(header, rng)
    elif way < 7:
        header = _damage_tensors(header, rng)
    elif way == 7:
        body = damage_numbers(body, rng)
    elif way == 8:
        lied = rng.choice((0, 1, length - 1, length + 1, len(raw), 100_000_001, 2**63, 2**64 - 1))
        return struct.pack("<Q", lied) + header + body
    else:
        return damage_bytes(raw, rng)
    return struct.pack("<Q", len(header)) + header + body


def _damage_tensors(header: bytes, rng: Random) -> bytes:
    tree = parse(header)
    tensors = [pair for pair in tree if pair[0] != "__metadata__"]
    for pair in rng.sample(tensors, min(len(tensors), rng.choice((1, 1, 2, len(tensors))))):
        fields = {key: (pair[1], at) for at, (key, _) in enumerate(pair[1])}
        entry, way = pair[1], rng.randrange(8)
        offsets, shape = entry[fields["data_offsets"][1]][1], entry[fields["shape"][1]][1]
        if way == 0:
            entry[fields["dtype"][1]][1] = rng.choice(DTYPES)
        elif way == 1:
            shape[:] = shape[::-1]
        elif way == 2 and shape:
            shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
        elif way == 3:
            shape[:] = rng.choice(([], [0], [1], [1] * 70, [2**32, 2**32], [2**63, 0], [-1, -1]))
        elif way == 4:
            offsets[rng.randrange(2)] += rng.choice((-4, 4, -1, 1, 2**31, 2**63))
        elif way == 5:
            offsets[:] = rng.choice(tensors)[1][fields["data_offsets"][1]][1]
        elif way == 6:
            pair[0] = rng.choice(
                (f"_orig_mod.{pair[0]}", f"module.{pair[0]}", pair[0][:-1], "", "\n")
            )
        else:
            tree.append([pair[0] + rng.choice(("", ".x")), parse(write(entry))])
    if rng.random() < 0.1:
        tree.insert(0, ["__metadata__", rng.choice((Pairs([["a", 1]]), [], Raw("NaN")))])
    return write(tree)


def damage_state(raw: bytes, rng: Random) -> bytes:
    """A state file with another header, other numbers or other lengths, its digest made to fit."""
    if raw.startswith(b"RETSTAT3"):
        return damage_record_state(raw, rng)
    length = int.from_bytes(raw[8:12], "little")
    magic, header, body, way = (
        raw[:8],
        raw[12 : 12 + length],
        raw[12 + length : -32],
        rng.randrange(9),
    )
    size = None
    if way < 5:
        header = damage_json(header, rng)
    elif way == 5:
        body = damage_numbers(body, rng)
    elif way == 6:
        size = rng.choice((0, 1, length - 1, length + 1, 2**20, 2**20 + 1, 2**31, 2**32 - 1))
    elif way == 7:
        magic = damage_bytes(magic, rng)
    else:
        return damage_bytes(raw, rng)
    size = len(header) if size is None else size
    content = magic + struct.pack("<I", size & 0xFFFFFFFF) + header + body
    return content + (
        hashlib.sha256(content).digest() if rng.random() < 0.95 else rng.randbytes(32)
    )


def damage_npz(raw: bytes, rng: Random) -> bytes:
    """Arrays' headers and data, or the archive around them."""
    return _damage_zip(raw, rng, _damage_npy)


def damage_torch(raw: bytes, rng: Random) -> bytes:
    """What torch.save wrote: the pickle in the archive, the numbers beside it, the archive."""
    return _damage_zip(raw, rng, damage_pickle)


def _damage_zip(raw: bytes, rng: Random, change: object) -> bytes:
    assert callable(change)
    if rng.random() < 0.2:
        return damage_bytes(raw, rng) if rng.random() < 0.9 else b""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError):
        return damage_bytes(raw, rng)
    method, way, at = zipfile.ZIP_STORED, rng.randrange(10), rng.randrange(max(1, len(entries)))
    if not entries:
        return damage_bytes(raw, rng)
    name, content = entries[at]
    if way < 5:
        entries[at] = (name, change(content, rng))
    elif way == 5:
        # a small file of a large array; the slower methods pack less
        method, most = rng.choice(
            ((zipfile.ZIP_DEFLATED, 10**8), (zipfile.ZIP_BZIP2, 10**6), (zipfile.ZIP_LZMA, 10**6))
        )
        entries[at] = (name, content + bytes(rng.choice((0, most // 100, most))))
    elif way == 6:
        del entries[at]
    elif way == 7:
        entries.append((name, change(content, rng)))
    elif way == 8:
        entries[at] = (
            rng.choice(("../x.npy", "/x", "", "a\\b", name.upper(), name + "/")),
            content,
        )
    else:
        entries += [(f"{index}", b"") for index in range(2000)]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name twice
        for name, content in entries:
            # a fixed time: the same case gives the same bytes on another day
            archive.writestr(zipfile.ZipInfo(name), content, method)
    written = out.getvalue()
    return _lie_about_sizes(written, rng) if rng.random() < 0.15 else written


def _lie_about_sizes(raw: bytes, rng: Random) -> bytes:
    """In one entry of the archive's table of contents."""
    data, starts = bytearray(raw), [m.start() for m in re.finditer(b"PK\x01\x02", raw)]
    if starts:
        at = rng.choice(starts) + rng.choice((20, 24, 42))
        data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**20, 2**31, 2**32 - 1)))
    return bytes(data)


def _damage_npy(raw: bytes, rng: Random) -> bytes:
    """The text of the header (its length made to fit), or the data."""
    if not raw.startswith(b"\x93NUMPY") or rng.random() < 0.25:
        return damage_numbers(raw, rng)
    size = int.from_bytes(raw[8:10], "little")
    header, body = raw[10 : 10 + size].decode("latin-1"), raw[10 + size :]
    way = rng.randrange(6)
    if way == 0:
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(DESCRIPTIONS)}'", header)
    elif way < 3:
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': {rng.choice(SHAPES)}", header)
    elif way == 3:
        header = header.replace("False", rng.choice(("True", "None", "1", "'a'")))
    elif way == 4:
        header = "(" * rng.choice((50, 250, 3000)) + header
    else:
        header = damage_bytes(header.encode("latin-1"), rng).decode("latin-1")
    encoded = header.encode("latin-1")[:60_000]
    return raw[:8] + struct.pack("<H", len(encoded)) + encoded + body


OPCODES = (
    b"(.0123789FIJKLMNRSUTVXabcdeghijloqrstu}]\x80\x81\x85\x86\x87\x88\x8a\x8b\x8c\x8d\x93\x94\x95"
)


def damage_pickle(raw: bytes, rng: Random) -> bytes:
    """Opcodes, names of classes, lengths; of what is no pickle, numbers."""
    if not raw.startswith(b"\x80"):
        return damage_numbers(raw, rng)
    data, way = bytearray(raw), rng.randrange(6)
    at = rng.randrange(2, max(3, len(data)))
    if way == 0:
        data[at : at + 1] = bytes([rng.choice(OPCODES)])
    elif way == 1:
        data[at:at] = bytes([rng.choice(OPCODES)])
    elif way == 2:
        names = (b"torch", b"builtins", b"os", b"Size", b"FloatStorage", b"float32", b"OrderedDict")
        old, new = rng.choice(names), rng.choice(names)
        return bytes(data.replace(old, new[: len(old)].ljust(len(old), b"_")))
    elif way == 3:
        numbers = [i for i, byte in enumerate(data[:-4]) if byte in b"JK"]
        if numbers:
            at = rng.choice(numbers)
            value = rng.choice((0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1))
            data[at : at + 5] = b"J" + struct.pack("<I", value)
    elif way == 4:
        del data[at:]
        data += b"." if rng.random() < 0.5 else b""
    else:
        return damage_bytes(raw, rng)
    return bytes(data)
