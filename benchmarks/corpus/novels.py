"""Novels and speeches out of their packages."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus.cleaning import grouped, sentences_to_paragraphs, unwrap
from benchmarks.corpus.documents import CorpusError, RawDoc


def read_r_strings(data: bytes) -> list[str]:
    """The strings of one character vector serialised by R (XDR, version 3)."""
    (encoding_length,) = struct.unpack_from(">I", data, 14)
    pos = 18 + encoding_length
    flags, count = struct.unpack_from(">II", data, pos)
    if flags & 0xFF != 16:
        raise CorpusError("The R data of janeaustenr does not start with a character vector.")
    pos += 8
    out: list[str] = []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", data, pos + 4)
        pos += 8
        out.append(data[pos : pos + max(length, 0)].decode("utf-8", "replace"))
        pos += max(length, 0)
    return out


def extract_austen(root: Path) -> Iterator[RawDoc]:
    """Jane Austen's six novels, in documents of five chapters."""
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    pos = 0
    while pos < len(data):
        stream = zlib.decompressobj()
        lines = read_r_strings(stream.decompress(data[pos + 4 :]))
        pos = len(data) - len(stream.unused_data)
        yield from austen_novel(lines)


def austen_novel(lines: list[str]) -> Iterator[RawDoc]:
    """One novel, without its title page and end matter."""
    title = next(line for line in lines if line.strip()).title()
    heads = [i for i, x in enumerate(lines) if re.match(r"chapter\s+[ivxlc\d]+\b", x, re.I)]
    parts: list[list[str]] = []
    for start, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        paragraphs = [p.replace("_", "") for p in unwrap(lines[start:end])]
        paragraphs = [
            p
            for p in paragraphs
            if not re.match(r"(finis|the end|volume [ivx]+|end of |transcriber)", p, re.I)
        ]
        if len(paragraphs) > 1:
            parts.append(paragraphs)
    yield from grouped(title, parts, 5)


def extract_moby(root: Path) -> Iterator[RawDoc]:
    """Moby Dick in documents of five chapters."""
    chapters: list[tuple[int, list[str]]] = []
    for path in (root / "package/data").glob("chapter_*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        paragraphs = [p.replace("_", "") for p in re.split(r"\n\s*\n", record["text"])]
        title = f"Chapter {record['chapter']}. {record['title']}"
        chapters.append((int(path.stem.split("_")[1]), [title, *paragraphs]))
    yield from grouped("moby-dick", [p for _, p in sorted(chapters)], 5)


def extract_sotu(root: Path) -> Iterator[RawDoc]:
    """One document for each State of the Union address."""
    for path in sorted((root / "package/data").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        yield path.stem, sentences_to_paragraphs(record["text"])
