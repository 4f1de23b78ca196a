"""Dictionaries: entries of dictd databases, and senses of WordNet."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus.cleaning import grouped, is_prose, unwrap
from benchmarks.corpus.documents import RawDoc


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
