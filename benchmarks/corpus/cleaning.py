"""Paragraphs out of raw text, and which of them are English sentences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from benchmarks.corpus.documents import RawDoc

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
