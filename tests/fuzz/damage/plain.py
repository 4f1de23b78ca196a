"""Damage that knows nothing of a format: bits, whole numbers, cuts, repeats, and odd files."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from random import Random

WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0)
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e38, -1e38, 1e-45, 65505.0)


def damage_bytes(raw: bytes, rng: Random) -> bytes:
    """One to six changes anywhere."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        _change(data, rng)
    return bytes(data)


def _change(data: bytearray, rng: Random) -> None:
    at, way = rng.randrange(len(data) + 1), rng.randrange(8)
    length = min(len(data) - at, rng.choice((1, 2, 4, 8, 16, 64, 4096)))
    if way == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif way == 1 and at < len(data):
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif way == 2:
        at &= ~3
        data[at : at + 4] = struct.pack("<I", rng.choice(WORDS))
    elif way == 3:
        data[at : at + length] = rng.randbytes(length)
    elif way == 4:
        del data[at : at + length]
    elif way == 5:
        data[at:at] = data[at : at + length] * rng.choice((1, 2, 100))
    elif way == 6:
        del data[at:]
    else:
        data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))


def damage_numbers(raw: bytes, rng: Random) -> bytes:
    """Of a file of float32: values that are no numbers, other lengths, nothing at all."""
    data = bytearray(raw)
    way = rng.randrange(8)
    if way < 4:
        for _ in range(rng.choice((1, 4, 200))):
            at = rng.randrange(max(1, len(data) // 4)) * 4
            data[at : at + 4] = struct.pack("<f", rng.choice(FLOATS))
    elif way == 4:
        data = bytearray(rng.choice((b"\0", b"\xff", b"\x7f\xc0", b"\x80\x7f")) * len(data))
    elif way == 5:
        data = data[: rng.choice((0, 1, len(data) // 2, max(0, len(data) - 1)))]
    elif way == 6:
        data += bytes(rng.choice((1, 3, 4096, 1_000_000)))
    else:
        return damage_bytes(raw, rng)
    return bytes(data)


ODD = ("missing", "empty", "folder", "fifo", "zeros", "random", "link", "sparse", "socket", "shut")


def odd_file(path: Path, rng: Random) -> str:
    """Put something that is no ordinary file in the place of `path`; what it was."""
    what = rng.choice(ODD)
    path.unlink()
    if what == "empty":
        path.touch()
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what in ("zeros", "random"):
        path.symlink_to({"zeros": "/dev/zero", "random": "/dev/urandom"}[what])
    elif what == "link":
        path.symlink_to(path.name)
    elif what == "sparse":
        path.touch()
        os.truncate(path, rng.choice((1 << 20, 1 << 33, 1 << 40)))
    elif what == "socket":
        os.mknod(path, 0o140644)
    elif what == "shut":
        path.touch(mode=0)
    return what
