"""SentencePiece's tables of characters: a lookup that leaves them is seen before it is made."""

from __future__ import annotations

import base64
import itertools
import random

import numpy as np
import pytest
from tokenizer_shapes import WIDE, charsmap, t5
from tokenizers import normalizers

from retnet_edge.tokenizing.charsmap import check_charsmap

TABLE = charsmap(WIDE)


def lookup(raw: bytes, key: bytes) -> str | None:
    """As SentencePiece looks a character up; IndexError and ValueError where that leaves it."""
    size = int.from_bytes(raw[:4], "little")
    units = np.frombuffer(raw, "<u4", count=size // 4, offset=4).tolist()
    texts = raw[4 + size :]

    def offset(unit: int) -> int:
        return int(unit >> 10 << ((unit & 1 << 9) >> 6))

    place = offset(units[0])
    for byte in key:
        place ^= byte
        unit = units[place]
        if unit & (1 << 31 | 0xFF) != byte:
            return None
        place ^= offset(unit)
        if unit >> 8 & 1:
            start = units[place] & (1 << 31) - 1
            if start > len(texts):
                raise IndexError
            return texts[start:].split(b"\0")[0].decode()
    return None


def test_the_table_of_the_test_is_the_library_s() -> None:
    raw = base64.b64decode(TABLE)
    assert {key: lookup(raw, key.encode()) for key in (*WIDE, "b")} == WIDE | {"b": None}
    assert normalizers.Precompiled(raw).normalize_str("ａﬁ①b") == "afi1b"
    check_charsmap(TABLE)
    assert t5().encode("ａ").tokens == t5().encode("a").tokens


@pytest.mark.parametrize(
    ("encoded", "sentence"),
    [
        ("", "has 0 bytes"),
        ("!", "is not base64"),
        (base64.b64encode(bytes(7)).decode(), "has 7 bytes, which do not hold an array of 0"),
        (
            base64.b64encode(b"\xff" * 12).decode(),
            "has 12 bytes, which do not hold an",
        ),
        (TABLE[: len(TABLE) // 2 // 4 * 4], "which do not hold an array of"),
        (base64.b64encode(base64.b64decode(TABLE) + b"\xff").decode(), "texts that are not UTF-8"),
    ],
)
def test_what_is_no_table(encoded: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_charsmap(encoded)


def test_a_table_that_passes_is_never_left() -> None:
    """Units changed at random: those of nodes, labels and texts, by one bit or altogether."""
    rng = random.Random(0)
    whole = base64.b64decode(TABLE)
    size = int.from_bytes(whole[:4], "little")
    used = [place for place in range(4, 4 + size, 4) if whole[place : place + 4] != bytes(4)]
    keys = [bytes(key) for n in (1, 2) for key in itertools.product(range(0, 256, 5), repeat=n)]
    keys += [key.encode() for key in WIDE] + [key.encode()[:2] for key in WIDE]
    refused = passed = 0
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.choice(used)
            if rng.random() < 0.7:
                raw[place + rng.randrange(4)] ^= 1 << rng.randrange(8)
            else:
                raw[place : place + 4] = rng.randbytes(4)
        try:
            check_charsmap(base64.b64encode(raw).decode())
        except ValueError:
            refused += 1
            continue
        passed += 1
        for key in rng.sample(keys, 150):
            lookup(bytes(raw), key)
        for wide in WIDE:
            lookup(bytes(raw), wide.encode())
    assert refused > 20
    assert passed > 20
