"""Prose and JSON lines: where documents begin and end, byte-order marks, what is no UTF-8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retnet_edge.data.sources import find_sources, read_texts
from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT

MARK = "\N{ZERO WIDTH NO-BREAK SPACE}".encode()


def texts_of(path: Path, field: str = "text") -> list[str]:
    return list(read_texts(find_sources([path]), field))


def test_documents_are_split_at_lines_of_end_of_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(
        f"{END_OF_TEXT}\none\nstill one\n{END_OF_TEXT}\n\n  {END_OF_TEXT}  \n"
        f"two says {END_OF_TEXT} inside a line\n{END_OF_TEXT}\nthree, no newline at its end",
        encoding="utf-8",
    )
    assert texts_of(path) == [
        "one\nstill one",
        f"two says {END_OF_TEXT} inside a line",
        "three, no newline at its end",
    ]


@pytest.mark.parametrize("content", [b"", b"   \n\n", f"{END_OF_TEXT}\n{END_OF_TEXT}\n".encode()])
def test_a_file_without_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"empty\.txt: holds no text$"):
        texts_of(path)


@pytest.mark.parametrize("content", [b"\xe9t\xe9", b"fine\n" * 10_000 + b"\xc3("])
def test_a_file_that_is_not_utf8(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(content)
    seen = f"0x{next(byte for byte in content if byte > 127):02x}"
    with pytest.raises(InputError, match=rf"latin\.txt: not UTF-8 text \(byte {seen} ") as caught:
        texts_of(path)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(MARK + b"one")
    assert texts_of(path) == ["one"]


def test_a_byte_order_mark_hides_no_end_of_text(tmp_path: Path) -> None:
    """At the beginning, and in the middle of files that were joined, each with a mark."""
    end = END_OF_TEXT.encode()
    path = tmp_path / "a.txt"
    joined = [MARK + end, b"one", MARK + end, MARK + b"two" + MARK, end, MARK + end, b"3"]
    path.write_bytes(b"\n".join(joined))
    assert texts_of(path) == ["one", "two" + MARK.decode(), "3"]


def test_a_byte_order_mark_before_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps({"text": MARK.decode() + "kept"}).encode()
    path.write_bytes(MARK + row + b"\n" + MARK + row + b"\n")
    assert texts_of(path) == [MARK.decode() + "kept"] * 2


def test_a_row_s_white_space_and_marks_are_its_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = f"  a\n{END_OF_TEXT}\nb  "
    path.write_text(json.dumps({"text": text}))
    assert texts_of(path) == [text]
