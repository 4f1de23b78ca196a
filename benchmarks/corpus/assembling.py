"""Cleaned documents, no paragraph twice, put aside whole for validation, and written."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.corpus.cleaning import mostly_latin, normalise
from benchmarks.corpus.documents import CorpusError, Doc, Source

SEPARATOR = "<|endoftext|>"
SALT = "edge-15m"


@dataclass
class Split:
    """Share of a group's bytes to put aside, by split name."""

    heldout: float
    valid: float


#: heldout.txt ships in the repository, so only public-domain and CC0 text goes into it.
SPLITS = {True: Split(heldout=0.028, valid=0.012), False: Split(heldout=0.0, valid=0.012)}
MIN_SPLIT_DOC = 8_000  # bytes; shorter documents always go to training
MIN_DOC = 300


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
