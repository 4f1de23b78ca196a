"""Documents out of lines: prose between its marks, and one JSON object a line."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from retnet_edge.data.kinds import BYTE_ORDER_MARK, unpacked
from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT

Positioned = Iterator[tuple[str, int]]
"""A text, and how many bytes of its file had been read by then."""


def prose(path: Path, packing: str) -> Positioned:
    """What stands between lines that hold only `<|endoftext|>`, without white space around it.

    Raises InputError for what is not UTF-8.
    """
    try:
        with path.open("rb") as raw, unpacked(path, packing, raw) as file:
            for text in documents(io.TextIOWrapper(file, encoding="utf-8")):
                yield text, raw.tell()
    except UnicodeDecodeError as error:
        seen = error.object[error.start]
        raise InputError(
            f"{path}: not UTF-8 text (byte 0x{seen:02x} at {error.start} of a block)"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def documents(lines: Iterable[str]) -> Iterator[str]:
    """The documents of lines with their ends; a byte-order mark before one is no part of it."""
    held: list[str] = []
    for line in lines:
        if line.lstrip(BYTE_ORDER_MARK).strip() == END_OF_TEXT:
            yield from _document(held)
            held = []
        else:
            held.append(line)
    yield from _document(held)


def json_rows(path: Path, packing: str, field: str) -> Positioned:
    """`field` of one JSON object a line, as it stands; lines of white space only are left out.

    Raises InputError, naming the line, for what is no object with such a text.
    """
    row: Any = msgspec.defstruct("Row", [("text", str)], rename={"text": field})
    decoder = msgspec.json.Decoder(row)
    mark, number, line = BYTE_ORDER_MARK.encode(), 0, b""
    try:
        with (
            path.open("rb") as raw,
            unpacked(path, packing, raw, lambda: f"after line {number}: ") as file,
        ):
            for number, line in enumerate(file, 1):  # noqa: B007 - the errors name it
                bare = line.removeprefix(mark)
                if bare.strip():
                    yield decoder.decode(bare).text, raw.tell()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: line {number}: not UTF-8 text") from error
    except msgspec.ValidationError as error:
        raise InputError(
            f"{path}: line {number}: {error} (--text-field names the field with the text)"
            f"{_remedy(line)}"
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{path}: line {number}: {error}{_remedy(line)}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _document(lines: list[str]) -> Iterator[str]:
    if text := "".join(lines).lstrip(BYTE_ORDER_MARK).strip():
        yield text


def _remedy(line: bytes) -> str:
    """What a line is, where it is none of JSON lines."""
    bare = line.removeprefix(BYTE_ORDER_MARK.encode()).strip()
    if bare == b"{" or bare.startswith(b"["):
        return ": JSON over several lines or in an array; `jq -c .` or `jq -c '.[]'` makes lines"
    if not bare.startswith(b"{"):
        shown = bare[:20].decode("utf-8", "replace")
        return f": a line begins with {shown!r}, where one JSON object a line is read"
    return ""
