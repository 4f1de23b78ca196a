"""A packed model, `a.retnet`: one file that C maps and runs, as Python sees it.

native/format.h has the layout. Python reads what C does not: the bundle's manifest and its
tokenizer.json, which a packed file carries for it, and the golden replay. Weights and tables are
C's, which checks every hash when a session opens.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from retnet_edge.errors import InputError
from retnet_edge.files import open_regular
from retnet_edge.runtime.bundle.bundle import Bundle, check_named_tokens, check_references
from retnet_edge.runtime.bundle.contract import check_contract
from retnet_edge.runtime.bundle.manifest import decode
from retnet_edge.tokenizer import check_vocabulary, tokenizer_of

MAGIC = b"RETNETPK"
VERSION = 1
SECTION_ALIGN, WEIGHTS_ALIGN = 64, 16384
MOST_SECTIONS = 64

TABLE, WEIGHTS, TOKENIZER, GENERATION, CHAT_TEMPLATE, GOLDEN, LICENCE, CARD = range(1, 9)
MANIFEST, TOKENIZER_JSON = 9, 10
NAMES = {
    TABLE: "model table",
    WEIGHTS: "weights",
    TOKENIZER: "tokenizer table",
    GENERATION: "generation",
    CHAT_TEMPLATE: "chat template",
    GOLDEN: "golden replay",
    LICENCE: "licence",
    CARD: "model card",
    MANIFEST: "manifest",
    TOKENIZER_JSON: "tokenizer.json",
}

HEADER = struct.Struct("<8sIIQII32s32s")
SECTION = struct.Struct("<IIQQQ32s")
_LARGEST = 64 << 20  # bytes of a section that is read here


@dataclass(frozen=True)
class Section:
    """Where a section lies in the file: `size` bytes at `offset`; sha256: of them, hex."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class PackedBundle(Bundle):
    """An opened packed file; of its graphs, the manifest has the native ones alone."""

    sections: Mapping[int, Section] = field(default_factory=dict)
    label: str = ""
    """The fingerprint of the bundle that it was packed from, which its state files carry."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) that names the bundle that it was packed from."""
        return self.label

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a state file's fingerprint is that of this model."""
        return fingerprint == self.label

    def file(self, name: str) -> Path:
        """Raises InputError: there is one file only."""
        raise InputError(f"{self.path} is a packed file: it holds no file {name!r} by itself")

    def section(self, kind: int) -> bytes | None:
        """A section's bytes, None where there is none. Raises InputError for another hash."""
        found = self.sections.get(kind)
        return None if found is None else _read(self.path, found, NAMES.get(kind, str(kind)))

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer, freshly loaded. Raises InputError where the file has none."""
        raw = self.section(TOKENIZER_JSON)
        if raw is None:
            raise InputError(f"{self.path} was packed without a tokenizer.json")
        return tokenizer_of(raw, self.path)

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def is_packed(path: Path) -> bool:
    """Whether a file begins as packed ones do."""
    if not path.is_file():
        return False
    with open_regular(path, links=True) as file:
        return file.read(len(MAGIC)) == MAGIC


def open_bundle(path: str | Path) -> Bundle:
    """A bundle, or a packed file. Raises InputError as `Bundle.open` does."""
    path = Path(path)
    return open_packed(path) if is_packed(path) else Bundle.open(path)


def open_packed(path: Path) -> PackedBundle:
    """Check header, manifest and tokenizer; weights and tables are checked by who runs them.

    Raises InputError, one sentence that names the file and what is wrong.
    """
    sections, label = _read_header(path)
    raw = sections.get(MANIFEST)
    if raw is None:
        raise InputError(f"{path} carries no manifest: only libretnet can run it")
    where = f"{path}: manifest"
    manifest = decode(_read(path, raw, "manifest"), where)
    check_references(manifest, Path(where))
    check_contract(manifest, Path(where))
    for graph in manifest.graphs:
        if graph.backend != "native":
            raise InputError(f"{where}: a packed file has native graphs only; {graph.file} is not")
        _check_hash(path, sections, TABLE, manifest.files[graph.file].sha256)
        for name in graph.external_data:
            _check_hash(path, sections, WEIGHTS, manifest.files[name].sha256)
    bundle = PackedBundle(path, manifest, sections, label)
    if TOKENIZER_JSON in sections:
        _check_hash(path, sections, TOKENIZER_JSON, manifest.files[manifest.tokenizer.file].sha256)
        tokenizer = bundle.tokenizer()
        check_vocabulary(tokenizer, manifest.model.vocab_size, path)
        check_named_tokens(tokenizer, manifest, path)
    return bundle


def _check_hash(path: Path, sections: Mapping[int, Section], kind: int, sha256: str) -> None:
    found = sections.get(kind)
    if found is None or found.sha256 != sha256:
        raise InputError(f"{path}: its {NAMES[kind]} is not the one that its manifest lists")


def _read_header(path: Path) -> tuple[dict[int, Section], str]:
    """Sections by kind, and the fingerprint. Raises InputError."""
    with open_regular(path, links=True) as file:
        raw = file.read(HEADER.size)
        size = path.stat().st_size
        if len(raw) < HEADER.size or not raw.startswith(MAGIC):
            raise InputError(f"{path} is not a packed model: it does not begin with {MAGIC!r}")
        _, version, header_bytes, file_bytes, count, _, label, digest = HEADER.unpack(raw)
        if version != VERSION:
            raise InputError(
                f"{path}: the file's version is {version}; this version of retnet-edge reads "
                f"{VERSION}"
            )
        expected = HEADER.size + count * SECTION.size
        if count > MOST_SECTIONS or header_bytes != expected or not expected <= file_bytes == size:
            raise InputError(
                f"{path} has {size} bytes; its header says {file_bytes}, with {count} sections"
            )
        records = file.read(count * SECTION.size)
    if hashlib.sha256(raw[:-32] + bytes(32) + records).digest() != digest:
        raise InputError(f"{path}: the file's header was changed: its SHA-256 does not fit")
    sections: dict[int, Section] = {}
    for kind, _, offset, section_size, _, sha256 in SECTION.iter_unpack(records):
        if offset + section_size > size:
            raise InputError(
                f"{path}: the section of kind {kind} lies at bytes {offset} to "
                f"{offset + section_size}; the file has {size}"
            )
        if kind in sections:
            raise InputError(f"{path}: two sections are of kind {kind}")
        sections[kind] = Section(offset, section_size, sha256.hex())
    return sections, label.hex()


def _read(path: Path, section: Section, name: str) -> bytes:
    if section.size > _LARGEST:
        raise InputError(f"{path}: its {name} has {section.size} bytes; at most {_LARGEST}")
    with open_regular(path, links=True) as file:
        file.seek(section.offset)
        content = bytearray()
        while len(content) < section.size and (part := file.read(section.size - len(content))):
            content += part
    if hashlib.sha256(content).hexdigest() != section.sha256:
        raise InputError(f"{path}: its {name} was changed: the SHA-256 does not fit")
    return bytes(content)
