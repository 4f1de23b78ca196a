"""Damage to JSON that stays JSON for the most part: numbers, types, keys, nesting, odd strings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

Node = Any
"""What a parsed document consists of: Pairs, list, str, int, Raw, bool, None."""


class Raw(str):
    """Text that is written as it stands: a number of any size, or no JSON at all."""


class Pairs(list[list[Any]]):
    """An object as [key, value] pairs, so that keys may repeat and keep their order."""


NUMBERS: tuple[int | Raw, ...] = (
    *(0, 1, -1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 96, 127, 128, 160, 224, 255, 256, 257, 384),
    *(1000, 4095, 65535, 65536, 1_000_000, 10**9),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(-5, -(2**31), 10**30, 10**400),
    *map(Raw, ("0.0", "-0.0", "0.5", "1.5", "1e-320", "1e30", "1e308", "-1e308", "1e999", "1E5")),
    *map(Raw, ("NaN", "Infinity", "-Infinity", "1" * 5000, "00", "1.", "+1")),
)
STRINGS: tuple[str, ...] = (
    *("", " ", "a", "0", "null", "../x", "/etc/passwd", "a/../b", "./a", "a\0b", "a\\b", "con"),
    *(
        "\x1b[31mred\x1b[0m",
        "\x07\x08\r\n",
        "\u202e\u2066",
        "\ufeff",
        "\ud800",
        "é" * 70,
        "\U0001f642",
    ),
    *("*/_ORT_MEM_ADDR_/*", "manifest.json", ".metadata", "weights.bin", "native.json"),
    *("x" * 199, "x" * 201, "y" * 100_000, "float16", "int8", "uint8", "float32", "int64"),
    *("native", "executorch", "onnxruntime", "past", "batch", "T", "transformer", "retnet"),
)
MOST_BYTES = 4 << 20
"""Of what is repeated."""
JUNK: tuple[bytes, ...] = (
    b"\xff\xfe",
    b"\x80",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\0",
    b"\\ud800",
    b'"',
    b"{",
    b"]",
    b",",
)


def parse(raw: bytes) -> Node:
    """The document; numbers that are no integers are kept as they are written."""
    return json.loads(raw, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)), parse_float=Raw)


def write(node: Node) -> bytes:
    """The document, indented by nothing; lone surrogates become escapes."""
    return "".join(_pieces(node)).encode("utf-8", "surrogatepass")


def _pieces(node: Node) -> Iterator[str]:
    if isinstance(node, Raw):
        yield node
    elif isinstance(node, Pairs):
        yield "{"
        for index, (key, value) in enumerate(node):
            yield f"{', ' if index else ''}{json.dumps(key)}: "
            yield from _pieces(value)
        yield "}"
    elif isinstance(node, list):
        yield "["
        for index, value in enumerate(node):
            if index:
                yield ", "
            yield from _pieces(value)
        yield "]"
    elif isinstance(node, int) and not isinstance(node, bool):
        yield _digits(node)
    else:
        yield json.dumps(node)


def _digits(number: int) -> str:
    return str(number) if abs(number) < 10**4000 else "1" * 5000


def damage_json(raw: bytes, rng: Random) -> bytes:
    """A damaged document: one to three changes of its tree, sometimes of its bytes."""
    try:
        tree = parse(raw)
    except (ValueError, RecursionError):
        return _junk(raw, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = rng.choices(CHANGES, WEIGHTS)[0](tree, rng)
    written = write(tree)
    return _junk(written, rng) if rng.random() < 0.06 else written


def slots(tree: Node) -> list[tuple[list[Any], int]]:
    """(container, index) of every value below the root: of an object the pair and 1."""
    found: list[tuple[list[Any], int]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Pairs):
            found += [(pair, 1) for pair in node]
            waiting += [pair[1] for pair in node]
        elif isinstance(node, list):
            found += [(node, index) for index in range(len(node))]
            waiting += node
    return found


def pick(tree: Node, rng: Random) -> tuple[list[Any], int] | None:
    """A slot, by a walk from the root, so that long lists do not take all chances."""
    node, slot = tree, None
    while True:
        if isinstance(node, Pairs) and node:
            slot = (rng.choice(node), 1)
        elif isinstance(node, list) and not isinstance(node, Pairs) and node:
            slot = (node, rng.randrange(len(node)))
        else:
            return slot
        node = slot[0][slot[1]]
        if rng.random() < 0.12:
            return slot


def _set(tree: Node, rng: Random, make: Callable[[Node], Node]) -> Node:
    slot = pick(tree, rng)
    if slot is None:
        return make(tree)
    slot[0][slot[1]] = make(slot[0][slot[1]])
    return tree


def other_value(node: Node, rng: Random) -> Node:
    """Another value, of the same kind more often than not."""
    if rng.random() < 0.2:
        values: tuple[Node, ...] = (
            None,
            True,
            False,
            [],
            Pairs(),
            [Pairs()],
            Pairs([["a", 1]]),
            [0] * 9,
        )
        return rng.choice((*values, rng.choice(NUMBERS), rng.choice(STRINGS)))
    if isinstance(node, bool):
        return not node
    if isinstance(node, int):
        near = (
            node + 1,
            node - 1,
            node * 2,
            node // 2,
            -node,
            node + 4,
            node ^ (1 << rng.randrange(40)),
        )
        return rng.choice(near) if rng.random() < 0.5 else rng.choice(NUMBERS)
    if isinstance(node, Raw):
        return rng.choice(NUMBERS)
    if isinstance(node, str):
        return _other_text(node, rng)
    if isinstance(node, list):
        return type(node)(node[: rng.randrange(len(node) + 1)])
    return rng.choice(NUMBERS)


def _other_text(text: str, rng: Random) -> str:
    way = rng.randrange(5)
    at = rng.randrange(len(text) + 1)
    if way == 0:
        return text[:at] + rng.choice(STRINGS)[:20] + text[at:]
    if way == 1:
        return text[:at]
    if way == 2:
        return text * rng.choice((2, 50))
    if way == 3 and text:
        return text[: at - 1] + chr(rng.randrange(1, 0x2FF)) + text[at:]
    return rng.choice(STRINGS)


def _change_value(tree: Node, rng: Random) -> Node:
    return _set(tree, rng, lambda node: other_value(node, rng))


def _change_everywhere(tree: Node, rng: Random) -> Node:
    """One number or text, wherever it stands: what is checked against itself still agrees."""
    found = [box[at] for box, at in slots(tree) if isinstance(box[at], int | str)]
    if not found:
        return tree
    old = rng.choice(found)
    new = other_value(old, rng)
    same = [(box, at) for box, at in slots(tree) if type(box[at]) is type(old) and box[at] == old]
    for box, at in same[: MOST_BYTES // len(write(new)) + 1]:
        box[at] = new
    return tree


def _delete(tree: Node, rng: Random) -> Node:
    boxes = _boxes(tree)
    if boxes:
        box = rng.choice(boxes)
        del box[rng.randrange(len(box))]
    return tree


def _repeat(tree: Node, rng: Random) -> Node:
    """A key twice, with another value or the same; an item of a list many times."""
    boxes = _boxes(tree)
    if boxes:
        box = rng.choice(boxes)
        at = rng.randrange(len(box))
        again = box[at]
        if isinstance(box, Pairs):
            again = [again[0], other_value(again[1], rng) if rng.random() < 0.7 else again[1]]
            # copies are text: what is changed later is changed in one of them
            again[1] = Raw(written := write(again[1]).decode("utf-8", "replace"))
        else:
            again = Raw(written := write(again).decode("utf-8", "replace"))
        count = min(rng.choice((1, 1, 2, 17, 1025)), MOST_BYTES // len(written) + 1)
        box[at:at] = [again[:] if isinstance(box, Pairs) else again for _ in range(count)]
    return tree


def _rename(tree: Node, rng: Random) -> Node:
    objects = [box for box in _boxes(tree) if isinstance(box, Pairs)]
    if objects:
        pair = rng.choice(rng.choice(objects))
        pair[0] = _other_text(pair[0], rng)
    return tree


def _swap(tree: Node, rng: Random) -> Node:
    """Two values change places. Neither lies inside the other, or the tree would have no end."""
    one, two = pick(tree, rng), pick(tree, rng)
    if one is None or two is None:
        return tree
    a, b = one[0][one[1]], two[0][two[1]]
    if isinstance(a, list) or isinstance(b, list):
        one[0][one[1]] = deepcopy(b)
    else:
        one[0][one[1]], two[0][two[1]] = b, a
    return tree


def _nest(tree: Node, rng: Random) -> Node:
    depth = rng.choice((10, 200, 600, 2000, 20_000, 200_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    text = opening * depth + "0" + closing * (depth if rng.random() < 0.8 else 0)
    return _set(tree, rng, lambda node: Raw(text))


def _add(tree: Node, rng: Random) -> Node:
    """A key that nobody knows, or an item that does not belong."""
    boxes = _boxes(tree) or [tree]
    box = rng.choice(boxes)
    if isinstance(box, Pairs):
        box.append([rng.choice(STRINGS), rng.choice(NUMBERS)])
    elif isinstance(box, list):
        box.insert(rng.randrange(len(box) + 1), rng.choice(NUMBERS))
    return tree


def _whole(tree: Node, rng: Random) -> Node:
    return rng.choice((None, [], Pairs(), 0, "", [tree], Raw("NaN"), Raw(""), Pairs([["", tree]])))


def _boxes(tree: Node) -> list[list[Any]]:
    """Objects and lists that hold something; an object's pairs are none of them."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list) and node:
            found.append(node)
            waiting += [pair[1] for pair in node] if isinstance(node, Pairs) else node
    return found


CHANGES = (
    *(_change_value, _change_everywhere, _delete, _repeat, _rename, _swap, _nest, _add, _whole),
)
WEIGHTS = (40, 20, 10, 8, 5, 6, 3, 4, 1)


def _junk(raw: bytes, rng: Random) -> bytes:
    """Bytes that no JSON has: cut off, not UTF-8, a byte-order mark, more behind the end."""
    at = rng.randrange(len(raw) + 1)
    way = rng.randrange(5)
    if way == 0:
        return raw[:at]
    if way == 1:
        return rng.choice(JUNK) + raw
    if way == 2:
        return raw + rng.choice(JUNK)
    if way == 3:
        return raw.decode("utf-8", "replace").encode(
            rng.choice(("utf-16", "utf-32", "utf-7")), "ignore"
        )
    return raw[:at] + rng.choice(JUNK) + raw[at:]
