"""Opening a bundle: one directory, one manifest, nothing in it taken on trust."""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from retnet_edge.errors import InputError
from retnet_edge.files import check_name, file_entry, read_regular, regular_file
from retnet_edge.progress import hashing
from retnet_edge.runtime.bundle.contract import check_contract
from retnet_edge.runtime.bundle.external_data import external_data
from retnet_edge.runtime.bundle.manifest import (
    MANIFEST_FILE,
    GraphSpec,
    Manifest,
    decode,
    model_digest,
)
from retnet_edge.tokenizer import check_vocabulary, load_tokenizer

_MANIFEST_BYTES = 4 << 20
# A file with holes can be of any size. The most that is ever written are two ExecuTorch programs in
# float32 beside the weights of two ONNX graphs; reports and a tokenizer come on top.
_BYTES_A_PARAMETER = 32
_BYTES_BESIDE = 512 << 20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its directory, and its manifest, which the files were checked against."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Check everything that can be checked without a backend, and return the bundle.

        In this order: the manifest's schema and its own SHA-256, file names, links, sizes and
        SHA-256 of every listed file, the graphs' fields and external data, the step contract, the
        tokenizer. Raises InputError, one
        sentence that names the file, the value and what is allowed, at the first thing wrong.
        """
        path = Path(path)
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise InputError(f"{path} {what}: a bundle is a directory with a {MANIFEST_FILE}")
        where = path / MANIFEST_FILE
        if not where.exists():
            raise InputError(f"{path} is not a bundle: it has no {MANIFEST_FILE}")
        regular_file(path, MANIFEST_FILE, path)
        manifest = decode(read_regular(where, _MANIFEST_BYTES, "a manifest"), str(where))
        check_references(manifest, where)
        _check_files(path, manifest, where)
        for graph in manifest.graphs:
            if graph.backend == "onnxruntime":
                _check_external_data(path, manifest, graph)
        check_contract(manifest, where)
        bundle = cls(path, manifest)
        tokenizer, where = bundle.tokenizer(), bundle.file(manifest.tokenizer.file)
        check_vocabulary(tokenizer, manifest.model.vocab_size, where)
        check_named_tokens(tokenizer, manifest, where)
        return bundle

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the bundle computes, not of its reports.

        Of graphs, weights and tokenizer, and of the model's config, states and schemes.
        """
        files = self._files_fingerprint
        return hashlib.sha256(f"{files} {model_digest(self.manifest)}\n".encode()).hexdigest()

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a state file's fingerprint is that of this bundle.

        One that an older version wrote covers the files only, and holds for as long as they are the
        same.
        """
        return fingerprint in (self.fingerprint, self._files_fingerprint)

    @property
    def _files_fingerprint(self) -> str:
        manifest = self.manifest
        names = {manifest.tokenizer.file}
        for graph in manifest.graphs:
            names |= {graph.file, *graph.external_data}
        lines = [f"{name} {manifest.files[name].sha256}\n" for name in sorted(names)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def check_made_from(self, checkpoint: Path, weights_sha256: str) -> None:
        """Raises InputError where it was not made from `checkpoint`, whose weights hash to this."""
        if self.manifest.provenance.checkpoint_sha256 != weights_sha256:
            raise InputError(
                f"{self.path} was not made from {checkpoint}: the weights' SHA-256 differ"
            )

    def file(self, name: str) -> Path:
        """Path of a file of the bundle. Raises InputError where the manifest does not list it."""
        if name not in self.manifest.files:
            raise InputError(f"{self.path / MANIFEST_FILE}: the bundle lists no file {name!r}")
        return self.path / name

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer, freshly loaded. Raises InputError where its file does not parse."""
        return load_tokenizer(self.file(self.manifest.tokenizer.file))

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all listed files and the manifest itself."""
        listed = sum(entry.size for entry in self.manifest.files.values())
        return listed + (self.path / MANIFEST_FILE).stat().st_size


def check_references(manifest: Manifest, where: Path) -> None:
    """Every file that the manifest speaks of has an allowed name and an entry in `files`."""
    for name in manifest.files:
        check_name(name, where)
    named = [(manifest.tokenizer.file, "the tokenizer")]
    for graph in manifest.graphs:
        named.append((graph.file, f"the {graph.kind} graph"))
        named += [(name, f"external data of {graph.file}") for name in graph.external_data]
    for name, role in named:
        check_name(name, where)
        if name not in manifest.files:
            raise InputError(f"{where}: {name!r} ({role}) is not listed in files")


def check_named_tokens(tokenizer: tokenizers.Tokenizer, manifest: Manifest, where: Path) -> None:
    """Raises InputError unless the tokenizer has the tokens that the manifest names."""
    named = manifest.tokenizer
    for name, ids in (
        ("end_of_text", (named.end_of_text,)),
        ("other_ends", named.other_ends),
        ("begin_of_text", (named.begin_of_text,)),
        ("padding", (named.padding,)),
    ):
        for token in ids:
            if token is not None and tokenizer.id_to_token(token) is None:
                raise InputError(
                    f"{where} has no token {token}, which the manifest names as {name}"
                )


def _check_files(root: Path, manifest: Manifest, where: Path) -> None:
    """Sizes first (cheap), then hashes."""
    total = sum(entry.size for entry in manifest.files.values())
    if total > (most := manifest.model.parameters * _BYTES_A_PARAMETER + _BYTES_BESIDE):
        raise InputError(
            f"{where}: its files take {total} bytes; a bundle of {manifest.model.parameters} "
            f"parameters takes at most {most}"
        )
    paths = {name: regular_file(root, name, where) for name in manifest.files}
    for name, entry in manifest.files.items():
        if (size := paths[name].stat().st_size) != entry.size:
            raise InputError(f"{paths[name]} has {size} bytes; the manifest says {entry.size}")
    with hashing(f"check {root.name}", sum(e.size for e in manifest.files.values())) as advance:
        for name, entry in manifest.files.items():
            if (found := file_entry(paths[name], advance)) != entry:
                raise InputError(
                    f"{paths[name]} was changed: its SHA-256 is {found.sha256}; the manifest says "
                    f"{entry.sha256}"
                )


def _check_external_data(root: Path, manifest: Manifest, graph: GraphSpec) -> None:
    """The graph's weights lie in files that the manifest lists as its external data."""
    path = root / graph.file
    for external in external_data(path):
        name = check_name(posixpath.join(posixpath.dirname(graph.file), external.location), path)
        if name not in graph.external_data:
            raise InputError(
                f"{path}: its weights lie in {name!r}, which the manifest does not list as its "
                f"external data (listed: {', '.join(graph.external_data) or 'none'})"
            )
        size = manifest.files[name].size
        if external.offset + (external.length or 0) > size:
            raise InputError(
                f"{path}: a tensor lies at bytes {external.offset} to "
                f"{external.offset + (external.length or 0)} of {name!r}, which has {size}"
            )
